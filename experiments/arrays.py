"""A ladder on your own arrays: `python -m experiments.arrays --train=a.npy --test=b.npy`."""

import dataclasses
from typing import Any, Literal

from experiments import cli
from experiments.settings import (
    FLAG,
    MOST_SEEDS,
    SOURCE,
    Settings,
    choice,
    operational,
    real,
    setting,
    whole,
)


@dataclasses.dataclass(frozen=True)
class ArraysSettings(Settings):
    """The files of the arrays, and how they are observed."""

    train: str = operational("", SOURCE, "images to train on: FILE.npy, or FILE.npz:KEY")
    test: str = operational("", SOURCE, "images to test on; the default is a part of --train")
    train_labels: str = operational(
        "",
        SOURCE,
        "labels of the images of --train, whole numbers, for figures and for probe; -1: unknown",
    )
    test_labels: str = operational("", SOURCE, "labels of the images of --test")
    observation: Literal["bernoulli", "gaussian", "discretized_logistic"] = setting(
        "bernoulli",
        choice("bernoulli", "gaussian", "discretized_logistic"),
        "p(x | z_1): bernoulli for binary or grey values, gaussian for real ones, "
        "discretized_logistic for 256 grey values as they are",
    )
    holdout: float = setting(
        0.1,
        real("a number between 0 and 1", lambda v: 0 < v < 1),
        "fraction of --train to test on if there is no --test",
    )
    holdout_seed: int = setting(0, whole(0, MOST_SEEDS - 1), "seed of the choice of that part")
    check_scale: bool = setting(
        True,
        FLAG,
        "refuse training and test images whose ranges of values are far apart",
    )


# Not the paper's: short, for a first look at new data.
DEFAULTS = ArraysSettings(epochs=200, warmup_epochs=50, schedule="cosine")


def load(settings: ArraysSettings) -> Any:
    """The arrays that the settings name."""
    from lvae_jax.data import DataError, arrays

    if not settings.train:
        raise DataError("--train is not given; name a .npy or .npz file of images")
    return arrays.load(
        settings.train,
        settings.test or None,
        observation=settings.observation,
        holdout=settings.holdout,
        seed=settings.holdout_seed,
        check_scale=settings.check_scale,
        train_labels=settings.train_labels or None,
        test_labels=settings.test_labels or None,
    )


if __name__ == "__main__":
    cli.main("arrays", load, DEFAULTS)
