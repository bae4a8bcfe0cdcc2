"""When a run saves a checkpoint, by a clock that the test sets."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.run import checkpointing as checkpointing_lib
from experiments.run.checkpointing import Checkpointing

LAST_STEP = 20


class Clock:
    """Stands for the module `time`."""

    def __init__(self, now: float):
        self.now = now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock(1000.0)
    monkeypatch.setattr(checkpointing_lib, "time", clock)
    return clock


def saving_every(seconds: float, clock: Clock):
    """Checkpointing every so many seconds, and the steps that it saves; a save takes 5 seconds."""
    saved = []

    def save(state, step, score):
        saved.append(step)
        clock.now += 5.0

    settings = SimpleNamespace(checkpoint_seconds=seconds, epochs=4)
    experiment = SimpleNamespace(settings=settings, steps_per_epoch=LAST_STEP // 4)
    workdir = SimpleNamespace(save=save, path=Path("run"))
    return Checkpointing(experiment, workdir, SimpleNamespace(received=0), None), saved


def test_a_run_saves_once_its_seconds_have_passed_since_the_start_or_the_end_of_a_save(clock):
    checkpointing, saved = saving_every(60.0, clock)
    # Saved at 1060 until 1065, at 1125 until 1130, and not again by 1189.
    for step, now in enumerate((1001, 1059, 1060, 1066, 1124, 1125, 1189), start=1):
        clock.now = float(now)
        checkpointing.after(None, step, None)
    assert saved == [3, 6]


def test_a_run_saves_after_every_step_if_it_need_not_wait_and_always_after_its_last(clock):
    for seconds, steps in ((0.0, [18, 19, 20]), (1e9, [20])):
        checkpointing, saved = saving_every(seconds, clock)
        for step in (18, 19, LAST_STEP):
            checkpointing.after(None, step, None)
        assert saved == steps
