"""A small ladder on scikit-learn's 8×8 digits, without a download: half a minute in all."""

import dataclasses
from typing import Any

from experiments import cli
from experiments.settings import FLAG, Settings, setting


@dataclasses.dataclass(frozen=True)
class DigitsSettings(Settings):
    """The digits' own settings: binary or continuous."""

    continuous: bool = setting(
        False, FLAG, "dequantised grey values and a Gaussian p(x | z_1) instead of binarised ones"
    )


DEFAULTS = DigitsSettings(
    depth=3,
    latent_sizes=(16, 8, 4),
    hidden_sizes=(128, 64, 32),
    epochs=400,
    warmup_epochs=100,
    batch_size=100,
    schedule="cosine",
    eval_every=20,
)


def load(settings: DigitsSettings) -> Any:
    """The digits; they come with scikit-learn."""
    from lvae_jax.data import digits

    return digits.load(settings.continuous)


if __name__ == "__main__":
    cli.main("digits", load, DEFAULTS)
