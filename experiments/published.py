"""The paper's settings and numbers (arXiv:1602.02282): log-likelihoods and bounds in nats."""

from collections.abc import Mapping
from typing import Any, NamedTuple

TABLE_1 = {
    "VAE 1-layer + NF": (-85.10, "Rezende and Mohamed, 2015"),
    "IWAE, 2-layer + IW=1": (-85.33, "Burda et al., 2015"),
    "IWAE, 2-layer + IW=50": (-82.90, "Burda et al., 2015"),
    "VAE, 2-layer + VGP": (-81.90, "Tran et al., 2015"),
    "LVAE, 5-layer": (-82.12, "the paper"),
    "LVAE, 5-layer + finetuning": (-81.84, "the paper"),
    "LVAE, 5-layer + finetuning + IW=10": (-81.74, "the paper"),
}
"""MNIST, L_5000 of the paper's own models; each row with its source."""

VARIANTS = ("VAE", "VAE+BN", "VAE+BN+WU", "LVAE+BN+WU")
"""The models compared: batch normalisation (BN), warm-up (WU), and the ladder."""

TABLE_2: dict[str, dict[int, tuple[float | None, ...]]] = {
    "omniglot": {
        1: (-111.21, -105.62, -104.51, None),
        2: (-110.58, -105.51, -102.61, -102.63),
        3: (-111.26, -106.09, -102.52, -102.18),
        4: (-111.58, -105.66, -102.66, -102.21),
        5: (-110.46, -105.45, -102.48, -102.11),
    },
    "small_norb": {
        1: (2741, 3198, 3338, None),
        2: (2792, 3224, 3483, 3272),
        3: (2786, 3235, 3492, 3519),
        4: (2689, 3201, 3482, 3449),
        5: (2654, 3198, 3422, 3455),
    },
}
"""L_5000 by data set and depth, the variants in their order; the ladder of one layer is the VAE."""

OMNIGLOT_NOTE = (
    "Burda et al. (2015) have -103.38, with two layers of 100 and 50 latents and 50 importance "
    "samples in training."
)

TEST_ELBO = {("LVAE+BN+WU", 5): -85.23, ("VAE+BN+WU", 3): -87.49}
"""MNIST, L_1 by variant and depth: the best of each model in Figure 3 b, from the text."""

BEST_VAE = -82.74
"""MNIST, L_5000 of the best VAE in Figure 3 c, from the text, which does not say its depth."""

NORB_NOTE = (
    "By the authors' code, images were resized bicubically, and noise was added to them once. "
    "Unless those files are given, ours are means of 3×3 pixels, with noise drawn anew every "
    "epoch. Densities depend on the scale: dividing by 256 instead of 255 alone raises a "
    "log-likelihood by 1024 ln(256/255) = 4.0 nats. The authors' code loads camera 0 twice, so its "
    "epoch has 189 steps and ours 94."
)

PARAMETERS_NOTE = (
    "The paper says that the ladder does not increase the number of parameters. By equation (13), "
    "with d fed upward, the five-layer ladder has 1,859,424 and the VAE 1,707,104; with mu_hat fed "
    "upward (--mean_upward, as in the authors' code) both have 1,707,104."
)

LATENT_SIZES = [64, 32, 16, 8, 4]
"""Units of z_1 to z_5, on every data set."""

HIDDEN_SIZES = [512, 256, 128, 64, 32]
"""Units of the two hidden layers of the MLPs at each layer."""

EPOCHS = {"mnist": 2000, "omniglot": 1500, "small_norb": 2000}
"""Epochs by data set."""

OWN_SETTINGS = ", at its own settings"
"""Qualifies a number of the paper beside a run with other settings."""

_STATED = {
    "activation": "leaky_relu",
    "own_top_down": False,
    "wide_generative": False,
    "mean_upward": False,
    "beta": 1.0,
    "batch_size": 256,
    "learning_rate": 0.001,
    "schedule": "constant",
    "mc_samples": 1,
    "iw_samples": 1,
    "gradient": "standard",
    "closed_form_kl": True,
    "free_bits": 0.0,
    "ema_decay": 0.0,
    "validation": 0,
    "eval_samples": 5000,
    "eval_subset": 0,
}
"""What sections 2 and 3 state for every model, besides its variant, epochs and N_t = 200."""


class Published(NamedTuple):
    """The paper's numbers for a model."""

    log_likelihood: float | None
    """L_5000, nats."""
    test_elbo: float | None
    """L_1, nats."""
    same_settings: bool
    """Whether the run has every setting that the paper states for its model."""

    @property
    def qualifier(self) -> str:
        """`OWN_SETTINGS` if the run has other settings; else empty."""
        return "" if self.same_settings else OWN_SETTINGS


def variant(settings: Mapping[str, Any]) -> str | None:
    """Which of `VARIANTS` the settings of a config.json make; None for any other, or several."""
    if isinstance(settings["warmup_epochs"], list):
        return None  # its replicas are different models
    name = (
        settings["model"].upper()
        + "+BN" * settings["batch_norm"]
        + "+WU" * (settings["warmup_epochs"] != 0)
    )
    return name if name in VARIANTS else None


def find(config: Mapping[str, Any]) -> Published | None:
    """The paper's numbers for the data set and model of a config.json.

    Args:
      config: the content of config.json.

    Returns:
      The numbers; None if the paper has no model of these sizes and variant on these data.
    """
    if config.get("experiment") == "arrays":
        return None  # a data set that is named after the user's file
    settings = config["settings"]
    dataset = config["dataset"].removesuffix("-resized")
    name, depth = variant(settings), settings["depth"]
    sizes = settings["latent_sizes"], settings["hidden_sizes"]
    if name is None or sizes != (LATENT_SIZES[:depth], HIDDEN_SIZES[:depth]):
        return None
    if settings["init_from"]:
        return None  # Table 1 has separate rows for fine-tuned models
    number = elbo = None
    if dataset == "mnist":
        elbo = TEST_ELBO.get((name, depth))
        number = TABLE_1["LVAE, 5-layer"][0] if (name, depth) == (VARIANTS[-1], 5) else None
    elif depth in TABLE_2.get(dataset, {}):
        number = TABLE_2[dataset][depth][VARIANTS.index(name)]
    if number is None and elbo is None:
        return None
    return Published(number, elbo, _same_settings(config, dataset))


def _same_settings(config: Mapping[str, Any], dataset: str) -> bool:
    settings = config["settings"]
    stated = _STATED | {"epochs": EPOCHS[dataset]}
    if dataset == "small_norb":
        if config["dataset"] != "small_norb-resized":
            return False  # the paper's images were resized in another way
        stated["activation"] = "tanh"
    return settings["warmup_epochs"] in (0, 200) and all(
        settings.get(name, value) == value for name, value in stated.items()
    )
