"""Presets: flags that stand for several settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.settings import FLAG, OF_THE_LADDER, choice, setting

PRESETS: dict[str, dict[str, Any]] = {
    # Every choice of the authors' code that has a flag (docs/flags.md lists them).
    "as_authors": {
        "activation": "leaky_relu_0.01",
        "batch_norm_epsilon": 1e-10,
        "own_top_down": True,
        "wide_generative": True,
        "mean_upward": True,
        "variance_bias": 1.0,
        "closed_form_kl": False,
        "adam_epsilon": 1e-4,
        "max_gradient_norm": 4.0,
        "max_gradient": 0.9,
    },
    # The best short run on MNIST that was found (docs/results.md).
    "fast": {
        "schedule": "cosine",
        "learning_rate": 8e-3,
        "epochs": 120,
        "warmup_epochs": 30,
        "gradient": "stl",
    },
}
"""Each replaces some of an experiment's defaults; explicit flags override it. No two presets set
the same setting."""


@dataclasses.dataclass(frozen=True)
class Presets:
    """The flags that stand for several settings. A run stores those settings, not these flags."""

    as_authors: bool = setting(
        False, FLAG, "make every choice of the authors' code that has a flag; see docs/flags.md"
    )
    recipe: str = setting(
        "", choice("", "fast"), "fast: a short schedule at a high rate with --gradient=stl"
    )

    def defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults that these presets set.

        Args:
          values: every setting by name. A VAE gets none of the ladder's settings. The activation
            stays if it is tanh, which the authors used for NORB.
        """
        chosen = ["as_authors"] * self.as_authors + [self.recipe] * bool(self.recipe)
        left_out = set(OF_THE_LADDER) if values["model"] == "vae" else set()
        left_out |= {"activation"} if values["activation"] == "tanh" else set()
        return {
            name: value
            for preset in chosen
            for name, value in PRESETS[preset].items()
            if name not in left_out
        }
