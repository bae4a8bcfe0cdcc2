"""Small runs of the digits, as their command makes them: a few seconds each."""

import dataclasses
from pathlib import Path

import pytest

import experiments.run.loop
from experiments import digits
from experiments.progress import Progress
from experiments.run import evaluation
from experiments.run.loop import run
from experiments.settings import Command, Settings

DIGITS = Command("digits", digits.DEFAULTS)

SMALL = dataclasses.replace(
    digits.DEFAULTS,
    depth=2,
    latent_sizes=(4, 2),
    hidden_sizes=(16, 8),
    epochs=3,
    warmup_epochs=2,
    eval_samples=3,
    checkpoint_seconds=0.0,
)

SINGLE = dataclasses.replace(
    SMALL, eval_every=2, eval_samples=20, eval_subset=40, checkpoint_seconds=60.0
)
"""Of the fixture `finished_run`, whose only checkpoint is that of its end."""

PAIR = dataclasses.replace(
    SMALL,
    replicas=2,
    seed=4,
    learning_rate=(1e-30, 1e-3),  # the first stays where it began
    validation=100,
    eval_every=1,
    eval_samples=20,
    eval_subset=40,
)
"""Of the fixture `finished_pair`."""

VALIDATION_ELBOS = ((-42.0, -40.0, -41.0), (-45.0, -44.0, -43.0))
"""Of the replicas of `finished_pair`, by epoch, in place of what is measured."""


def train(workdir: Path, settings: Settings) -> Path:
    """Makes a run in a folder, or resumes it."""
    run(dataclasses.replace(settings, workdir=str(workdir)), digits.load(settings), DIGITS)
    return workdir


def train_pair(workdir: Path) -> Path:
    """The run of `PAIR`, whose replicas choose the second and the third epoch, on any machine."""

    def given(experiment, variables, epoch, replica=0):
        return VALIDATION_ELBOS[replica][epoch - 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "evaluate_validation_set", given)
        return train(workdir, PAIR)


def break_off(workdir: Path, settings: Settings) -> Path:
    """A run that was interrupted after its second epoch."""

    class Interrupted(Progress):
        def update(self, done: int, note: str = "") -> None:
            if done == 2:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.run.loop, "Progress", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(workdir, settings)
    return workdir
