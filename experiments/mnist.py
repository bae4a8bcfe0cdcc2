"""The paper's MNIST models: `python -m experiments.mnist --depth=5 --warmup_epochs=200`."""

from typing import Any

from experiments import cli
from experiments.settings import Settings

# Section 3 of the paper.
DEFAULTS = Settings()


def load(settings: Settings) -> Any:
    """MNIST, read from the settings' folders."""
    from lvae_jax.data import mnist

    return mnist.load(settings.data_dir or None, settings.tfds_dir or None)


if __name__ == "__main__":
    cli.main("mnist", load, DEFAULTS)
