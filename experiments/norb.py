"""The paper's small NORB models: `python -m experiments.norb`."""

import dataclasses
from typing import Any, Literal

from experiments import cli
from experiments.settings import Settings, choice, setting


@dataclasses.dataclass(frozen=True)
class NorbSettings(Settings):
    """NORB's own settings: which camera's images to use."""

    cameras: Literal["one", "both"] = setting(
        "one", choice("one", "both"), "the first camera's images, or both's"
    )


# Section 3 of the paper: as for MNIST, except for tanh and a Gaussian observation model. The
# authors' code loads camera 0 twice, so its epoch has 189 steps; this one has 94.
DEFAULTS = NorbSettings(activation="tanh")


def load(settings: NorbSettings) -> Any:
    """Small NORB, read from the settings' folders."""
    from lvae_jax.data import small_norb

    return small_norb.load(
        settings.data_dir or None, settings.tfds_dir or None, cameras=settings.cameras
    )


if __name__ == "__main__":
    cli.main("norb", load, DEFAULTS)
