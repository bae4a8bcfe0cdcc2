"""Formats numbers: a mean ± its deviation over replicas, or ± a standard error."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.results import EpochRecord, Replicated, RunResults
from experiments.settings import BY_REPLICA

OVER_REPLICAS = "standard deviation over replicas"


def with_deviation(values: Sequence[float | None], form: str = ".2f") -> str:
    """One number, or the mean of several ± their standard deviation; "none" if one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "none"
    text = f"{np.mean(known):{form}}"
    return f"{text} ± {np.std(known, ddof=1):{form}}" if len(known) > 1 else text


def count(values: Sequence[int]) -> str:
    """One count, or the mean of several ± their standard deviation."""
    return with_deviation(values, ".1f" if len(values) > 1 else ".0f")


def number(record: Replicated, name: str) -> str:
    """A field of a record, formatted by `with_deviation`."""
    return with_deviation(record.each(name))


def log_likelihoods(results: RunResults) -> list[str]:
    """Each replica's test log-likelihood ± its standard error over the images."""
    return [
        f"{each.test_log_likelihood:.2f}" + ("" if error is None else f" ± {error:.2f}")
        for each in results.replicas
        for error in [each.test_log_likelihood_standard_error]
    ]


def log_likelihood(results: RunResults) -> str:
    """The test log-likelihood ± its deviation over replicas; for one, ± its standard error."""
    if len(results.replicas) > 1:
        return number(results, "test_log_likelihood")
    return log_likelihoods(results)[0]


def markdown(header: Sequence[str], *rows: Sequence[str]) -> str:
    """A Markdown table with aligned columns, which reads well on a console too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (header, ["-" * width for width in widths], *rows)
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)


class Layer(NamedTuple):
    """The numbers of a layer, formatted."""

    name: str
    kl: str
    units: int
    active: str
    used: str


def layers(measured: EpochRecord | RunResults) -> list[Layer]:
    """The layers of an evaluation, from bottom to top."""
    units = [len(layer) for layer in measured.each("kl_per_unit")[0]]
    columns = (measured.kl_by_layer(), measured.each("active_units"), measured.used_units())
    by_layer = (zip(*column, strict=True) for column in columns)
    return [
        Layer(f"z_{i}", with_deviation(kl), size, count(active), count(used))
        for i, (size, kl, active, used) in enumerate(zip(units, *by_layer, strict=True), start=1)
    ]


def seeds(settings: Mapping[str, Any]) -> str:
    """The seed of a run, or the first and last seed of its replicas."""
    first, replicas = settings["seed"], settings["replicas"]
    return f"{first}-{first + replicas - 1}" if replicas > 1 else f"{first}"


def part_of_the_test_set(settings: Mapping[str, Any], results: RunResults) -> str:
    """The test images that the log-likelihood was evaluated on; empty for all of them."""
    images = results.eval_images
    if not settings["eval_subset"] or images != settings["eval_subset"]:
        return ""  # a smaller test set is evaluated whole
    return f"the first {images:,} test images" if images > 1 else "the first test image"


def different_by_replica(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that differ between replicas, with one value per replica."""
    return {name: settings[name] for name in BY_REPLICA if isinstance(settings[name], list)}
