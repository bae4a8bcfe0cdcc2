"""Numbers of metrics.jsonl and results.json as a reader is shown them, with their uncertainty."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.replicas import each


def with_deviation(values: Sequence[float | None], form: str = ".2f") -> str:
    """A single number, or the mean of those of several replicas ± their standard deviation.

    "none" where a replica has none, as of an epoch all of whose updates were skipped.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "none"
    shown = f"{np.mean(known):{form}}"
    return f"{shown} ± {np.std(known, ddof=1):{form}}" if len(known) > 1 else shown


def count_with_deviation(values: Sequence[int]) -> str:
    """A count, or the mean of those of several replicas ± their standard deviation."""
    return with_deviation(values, ".1f" if len(values) > 1 else ".0f")


def over_replicas(numbers: Mapping[str, Any], name: str) -> str:
    """A number of a line or of results.json, ± its deviation where there are replicas."""
    return with_deviation([replica[name] for replica in each(numbers)])


def with_error(replica: Mapping[str, Any]) -> str:
    """The test log-likelihood ± its standard error over the images; of one image there is none."""
    error = replica["test_log_likelihood_standard_error"]
    return f"{replica['test_log_likelihood']:.2f}" + ("" if error is None else f" ± {error:.2f}")


def seeds(settings: Mapping[str, Any]) -> str:
    """The seed of a run of these settings, or the first and the last of its replicas' seeds."""
    others = settings.get("replicas", 1) - 1
    return f"{settings['seed']}-{settings['seed'] + others}" if others else str(settings["seed"])


def part_of_the_test_set(settings: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Which test images the log-likelihood is of; empty if all."""
    images = results.get("eval_images")
    if not settings.get("eval_subset") or images != settings["eval_subset"]:
        return ""  # a test set of fewer images is taken whole
    return f"the first {images:,} test images" if images > 1 else "the first test image"


def different_by_replica(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that differ by replica, with a value for each."""
    by_replica = ("warmup_epochs", "beta", "learning_rate")
    return {name: settings[name] for name in by_replica if isinstance(settings.get(name), list)}
