"""A small ladder on scikit-learn's 8×8 digits, which need no download: a minute from end to end."""

from typing import Any

from experiments import launcher
from experiments.settings import Settings

DEFAULTS = Settings(
    depth=3,
    latent_sizes=(16, 8, 4),
    hidden_sizes=(128, 64, 32),
    epochs=400,
    warmup_epochs=100,
    batch_size=100,
    schedule="cosine",
    eval_every=20,
)


def load(_: Settings) -> Any:
    """The digits; they come with scikit-learn."""
    from lvae_jax.data import digits

    return digits.load()


if __name__ == "__main__":
    launcher.main(load, DEFAULTS)
