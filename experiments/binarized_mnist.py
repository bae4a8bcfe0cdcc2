"""The MNIST models on Larochelle's fixed binarisation: `python -m experiments.binarized_mnist`."""

from typing import Any

from experiments import cli
from experiments.settings import Settings

# The paper's settings for MNIST.
DEFAULTS = Settings()


def load(settings: Settings) -> Any:
    """Binarised MNIST, read from the settings' folders."""
    from lvae_jax.data import binarized_mnist

    return binarized_mnist.load(settings.data_dir or None, settings.tfds_dir or None)


if __name__ == "__main__":
    cli.main("binarized_mnist", load, DEFAULTS)
