"""The paper's MNIST models: `python -m experiments.mnist --depth=5 --warmup_epochs=200`."""

from typing import Any

from experiments import launcher
from experiments.settings import Settings

# Table 1, L_5000 after 2,000 epochs, before fine-tuning.
PAPER_LOG_LIKELIHOODS = {("lvae", 5): -82.12}


def load(settings: Settings) -> Any:
    """MNIST, from where the settings say."""
    from lvae_jax.data import mnist

    return mnist.load(settings.data_dir or None, settings.tfds_dir or None)


if __name__ == "__main__":
    launcher.main(load, Settings(), PAPER_LOG_LIKELIHOODS)
