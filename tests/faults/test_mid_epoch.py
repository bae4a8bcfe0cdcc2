"""Runs that are stopped in the middle of an epoch, by signals to the tests' own process."""

import dataclasses
import json
import os
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.errors import Interrupted
from experiments.run import loop as run_lib
from experiments.run import program
from experiments.run.signals import Interruption
from experiments.settings import Settings
from experiments.store.checkpoints import Checkpoints
from lvae_jax.data import Dataset

EPOCHS, STEPS = 2, 3


def stripes() -> Dataset:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 4, 3)).astype(np.uint8)
    labels = np.zeros(50, np.int32)
    return Dataset(
        "stripes", images[:33], labels[:33], images[33:], labels[33:], "bernoulli", "dynamic"
    )


def settings_of(workdir: Path, replicas: int) -> Settings:
    return Settings(
        depth=1, latent_sizes=(3,), hidden_sizes=(8,), epochs=EPOCHS, warmup_epochs=2, batch_size=7,
        eval_every=1, eval_samples=5, validation=10, replicas=replicas,
        workdir=str(workdir),
    )  # fmt: skip


def files_of(workdir: Path) -> tuple:
    """What two equal runs have the same of: parameters, metrics and results, without times."""
    parts = []
    for folder in ("checkpoints", "chosen"):
        checkpoints = Checkpoints(workdir / folder)
        for name in ("params", "opt_state", "step")[: 3 if folder == "checkpoints" else 1]:
            parts.append(checkpoints.read(name))
        checkpoints.close()
    arrays = json.dumps(parts, default=lambda array: [str(array.dtype), array.tobytes().hex()])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines.append(json.loads((workdir / "results.json").read_text()))
    return arrays, [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


@pytest.mark.parametrize(
    ("steps_per_epoch", "most", "expected"),
    # 26 steps are a ninth of 234, and skip one of 233; 4 skip 2 of 10 as 3 do, in fewer calls.
    [(234, 35, 26), (233, 35, 26), (7, 35, 7), (36, 35, 18), (5, 0.3, 1), (10, 4.9, 4)],
)
def test_an_epoch_is_split_into_calls_that_skip_few_steps_at_its_end(
    steps_per_epoch, most, expected, monkeypatch
):
    monkeypatch.setitem(program.CALL_FLOP, "cpu", 6.0 * 100 * most)
    assert program.steps_per_call(steps_per_epoch, 100) == expected
    monkeypatch.setattr(jax, "default_backend", lambda: "an accelerator of another name")
    monkeypatch.setitem(program.CALL_FLOP, "default", 6.0 * 100 * most)
    assert program.steps_per_call(steps_per_epoch, 100) == expected


class Received(Interruption):
    """A signal that stops a run after its first call."""

    def __init__(self):
        super().__init__()
        self.received = signal.SIGTERM


@pytest.mark.usefixtures("without_figures")
def test_a_run_resumed_with_longer_calls_equals_one_that_was_not_stopped(
    tmp_path, monkeypatch, capsys
):
    run_lib.run(settings_of(tmp_path / "whole", 1), stripes())
    with monkeypatch.context() as patch:
        patch.setitem(program.CALL_FLOP, "cpu", 0.0)  # one step per call
        patch.setattr(run_lib, "Interruption", Received)
        program._training_program.cache_clear()
        with pytest.raises(Interrupted):
            run_lib.run(settings_of(tmp_path / "stopped", 1), stripes())
    assert "the first 1 step took" in capsys.readouterr().err
    program._training_program.cache_clear()
    # A call of all three steps begins after the first, and ends with the epoch.
    run_lib.run(settings_of(tmp_path / "stopped", 1), stripes())
    said = capsys.readouterr().err
    assert "resuming after epoch 0 and 1 steps" in said
    assert "the first 2 steps took" in said
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("without_figures")
def test_a_run_stopped_before_its_first_validation_is_resumed(tmp_path, monkeypatch):
    settings = dataclasses.replace(settings_of(tmp_path, 1), eval_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(run_lib, "Interruption", Received)
        with pytest.raises(Interrupted):
            run_lib.run(settings, stripes())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    run_lib.run(settings, stripes())
    assert json.loads((tmp_path / "results.json").read_text())["chosen_epoch"] == 2


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_stopped_after_every_single_step_equals_one_that_was_not(
    replicas, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(program.CALL_FLOP, "cpu", 0.0)  # a step a call
    run_lib.run(settings_of(tmp_path / "whole", replicas), stripes())
    assert "the first 1 step took" in capsys.readouterr().err

    interruptions: list[Interruption] = []

    class Kept(Interruption):
        def __init__(self):
            super().__init__()
            interruptions.append(self)

    def check_and_signal(*arguments):
        check_finite(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        while not interruptions[-1].received:
            time.sleep(0.001)

    check_finite = run_lib.check_finite  # called after every call of the training program
    with monkeypatch.context() as patch:
        patch.setattr(run_lib, "Interruption", Kept)
        patch.setattr(run_lib, "check_finite", check_and_signal)
        for step in range(1, EPOCHS * STEPS + 1):
            with pytest.raises(Interrupted) as interrupted:
                run_lib.run(settings_of(tmp_path / "stopped", replicas), stripes())
            assert interrupted.value.status == 128 + signal.SIGTERM
            said = capsys.readouterr().err
            if step > 1:
                assert re.search(rf"resuming after epoch {(step - 1) // STEPS}\b", said)
                steps = (step - 1) % STEPS
                assert (f" and {steps} steps" in said) == (steps > 0)
            if step < EPOCHS * STEPS:
                assert f"stopped after step {step}, which is saved" in str(interrupted.value)
    assert "stopped while evaluating" in str(interrupted.value)
    run_lib.run(settings_of(tmp_path / "stopped", replicas), stripes())
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
