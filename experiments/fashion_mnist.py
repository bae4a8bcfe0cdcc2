"""The MNIST models on Fashion-MNIST: `python -m experiments.fashion_mnist`."""

from typing import Any

from experiments import cli
from experiments.settings import Settings

# As MNIST, which the paper used.
DEFAULTS = Settings()


def load(settings: Settings) -> Any:
    """Fashion-MNIST, from where the settings say."""
    from lvae_jax.data import fashion_mnist

    return fashion_mnist.load(settings.data_dir or None, settings.tfds_dir or None)


if __name__ == "__main__":
    cli.main("fashion_mnist", load, DEFAULTS)
