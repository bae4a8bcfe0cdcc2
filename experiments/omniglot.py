"""The paper's OMNIGLOT models: `python -m experiments.omniglot`."""

from typing import Any

from experiments import cli
from experiments.settings import Settings

# Section 3 of the paper: as for MNIST, except for the number of epochs.
DEFAULTS = Settings(epochs=1500)


def load(settings: Settings) -> Any:
    """OMNIGLOT in Burda's split, read from the settings' folders."""
    from lvae_jax.data import omniglot

    return omniglot.load(settings.data_dir or None, settings.tfds_dir or None)


if __name__ == "__main__":
    cli.main("omniglot", load, DEFAULTS)
