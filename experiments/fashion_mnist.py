"""The MNIST models on Fashion-MNIST: `python -m experiments.fashion_mnist`."""

import dataclasses
from typing import Any, Literal

from experiments import cli
from experiments.settings import Settings, choice, setting


@dataclasses.dataclass(frozen=True)
class FashionSettings(Settings):
    """Fashion-MNIST's own settings: how images are observed."""

    observation: Literal["bernoulli", "discretized_logistic"] = setting(
        "bernoulli",
        choice("bernoulli", "discretized_logistic"),
        "p(x | z_1): bernoulli for binarised images, discretized_logistic for 256 grey values",
    )


# The paper's settings for MNIST.
DEFAULTS = FashionSettings()


def load(settings: FashionSettings) -> Any:
    """Fashion-MNIST, read from the settings' folders."""
    from lvae_jax.data import fashion_mnist

    return fashion_mnist.load(
        settings.data_dir or None, settings.tfds_dir or None, settings.observation
    )


if __name__ == "__main__":
    cli.main("fashion_mnist", load, DEFAULTS)
