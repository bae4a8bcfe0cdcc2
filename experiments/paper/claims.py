"""The claims that the paper makes about its figures, checked against finished runs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.published import VARIANTS
from experiments.results import USED_KL, RunResults

Models = Mapping[tuple[str, int], RunResults]
"""Results by variant and depth."""

Claim = tuple[str, bool, str]
"""The claim, whether it holds here, and the numbers."""


def of(item: str, models: Models, depth: int) -> list[str]:
    """One sentence per claim about a figure, if all runs that the claim needs are finished.

    Args:
      item: such as "figure3".
      models: the finished runs of the item.
      depth: of the deepest model of the item, finished or not.

    Returns:
      The claims, whether they hold here, and the numbers.
    """
    if not models:
        return []
    sentences = []
    for check in _CHECKS.get(item, ()):
        try:
            claim, holds, evidence = check(models, depth)
        except KeyError:  # a run that the claim needs is not finished
            continue
        sentences.append(f"{claim} {'It holds' if holds else 'It does not hold'} here: {evidence}.")
    return sentences


def _ladder_is_ahead(models: Models, depth: int) -> Claim:
    ladder, vae = (models[name, depth].mean("test_elbo") for name in ("LVAE+BN+WU", "VAE"))
    numbers = f"test L_1 is {ladder:.2f} for the LVAE and {vae:.2f} for the VAE"
    return "The LVAE improves performance over the regular VAE.", ladder > vae, numbers


def _no_overfitting(models: Models, depth: int) -> Claim:
    gaps = {
        name: models[name, depth].mean("train_elbo") - models[name, depth].mean("test_elbo")
        for name in VARIANTS
    }
    numbers = ", ".join(f"{name} {gap:.2f}" for name, gap in gaps.items())
    claim = "There are no signs of over-fitting (here: train L_1 less than 2 nats above test L_1)."
    return claim, max(gaps.values()) < 2, f"train minus test L_1 is {numbers}"


def _by_depth(models: Models, depth: int, name: str) -> list[float]:
    """Test L_1 for one layer, two layers, and so on."""
    depths = range(1, depth + 1)
    # The ladder of one layer is the VAE of one layer.
    names = [name if d > 1 else name.replace("LVAE", "VAE") for d in depths]
    return [models[key].mean("test_elbo") for key in zip(names, depths, strict=True)]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _vae_needs_one_layer(models: Models, depth: int) -> Claim:
    elbos = _by_depth(models, depth, "VAE")
    claim = "The VAE without batch norm and warm-up does not improve beyond one layer."
    return claim, max(elbos) == elbos[0], f"test L_1 by layers is {_listed(elbos)}"


def _vae_improves_to_three(models: Models, depth: int) -> Claim:
    elbos = _by_depth(models, depth, "VAE+BN+WU")
    first = elbos[:3]
    claim = "With batch norm and warm-up the VAE improves up to three layers."
    holds = first == sorted(first) and max(elbos) == first[-1]
    return claim, holds, f"test L_1 by layers is {_listed(elbos)}"


def _ladder_improves_always(models: Models, depth: int) -> Claim:
    elbos = _by_depth(models, depth, "LVAE+BN+WU")
    claim = "The LVAE improves with every layer."
    return claim, elbos == sorted(elbos), f"test L_1 by layers is {_listed(elbos)}"


def _batch_norm_matters_most(models: Models, depth: int) -> Claim:
    def gain(with_: str, without: str, d: int) -> float:
        return models[with_, d].mean("test_elbo") - models[without, d].mean("test_elbo")

    vae = [gain("VAE+BN", "VAE", d) for d in range(1, depth + 1)]
    ladder = gain("LVAE+BN+WU", "LVAE+WU", depth)
    numbers = f"it adds {ladder:.2f} nats to the deepest LVAE, {_listed(vae)} to the VAE by layers"
    claim = "Batch norm improves all models, the LVAE especially."
    return claim, min(vae) > 0 and ladder > vae[-1], numbers


def _tighter_bound(models: Models, depth: int) -> Claim:
    gaps = [models[name, depth].bound_gap for name in ("LVAE+BN+WU", "VAE+BN+WU")]
    numbers = f"L_K - L_1 is {gaps[0]:.2f} for LVAE+BN+WU and {gaps[1]:.2f} for VAE+BN+WU"
    return "The LVAE's bound is tighter.", gaps[0] < gaps[1], numbers


def _used(models: Models, depth: int, name: str) -> list[float]:
    """The number of units in use in each layer, the mean over the replicas."""
    return [float(units) for units in np.mean(models[name, depth].used_units(), axis=0)]


def _ladder_uses_most_units(models: Models, depth: int) -> Claim:
    used = {name: _used(models, depth, name) for name in VARIANTS}
    most = [max(units) for units in zip(*used.values(), strict=True)]
    numbers = "; ".join(
        f"{name} {', '.join(f'{count:g}' for count in units)}" for name, units in used.items()
    )
    claim = "The LVAE activates the highest number of units in each layer."
    return claim, used["LVAE+BN+WU"] == most, f"units with KL > {USED_KL} are {numbers}"


def _ladder_uses_high_layers(models: Models, depth: int) -> Claim:
    shares = {}
    for name in VARIANTS:
        layers = np.mean(models[name, depth].kl_by_layer(), axis=0)
        shares[name] = sum(layers[len(layers) // 2 :]) / sum(layers)
    best = max(shares, key=lambda name: shares[name])
    numbers = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    claim = "The LVAE puts more of its KL into the higher layers."
    return claim, best == "LVAE+BN+WU", f"z_{depth // 2 + 1} and above have {numbers} of the KL"


def _layers_in_use(models: Models, depth: int) -> Claim:
    used = {}
    for name in VARIANTS:
        layers = np.array(models[name, depth].used_units()) > 0  # [replicas, layers]
        used[name] = float(layers.sum(axis=1).mean())
    numbers = ", ".join(f"{name} {layers:g}" for name, layers in used.items())
    claim = "The vanilla VAE uses two layers, batch norm and warm-up one more each, the LVAE all."
    holds = list(used.values()) == [min(n, depth) for n in (2, 3, 4, depth)]
    return claim, holds, f"layers with a unit of KL > {USED_KL}: {numbers}"


_CHECKS: dict[str, tuple[Callable[[Models, int], Claim], ...]] = {
    "figure2": (_ladder_is_ahead, _no_overfitting),
    "figure3": (
        _vae_needs_one_layer,
        _vae_improves_to_three,
        _ladder_improves_always,
        _batch_norm_matters_most,
        _tighter_bound,
    ),
    "figure4": (_ladder_uses_most_units,),
    "figure5": (_ladder_uses_high_layers,),
    "figure6": (_layers_in_use,),
}
