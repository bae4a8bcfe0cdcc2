"""One line for all replicas of a run: the mean of each number, its standard deviation, and each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

NO_MEAN = ("kl_per_unit",)
"""By unit: one replica's j-th unit has nothing to do with another's, so no mean is taken."""


def summarize(by_replica: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What metrics.jsonl and results.json hold of numbers that every replica has of its own.

    Args:
      by_replica: the numbers, (lists of) lists of numbers, or None, of every replica by name.

    Returns:
      Of one replica its numbers. Of more their means by the same names, but for those of
      `NO_MEAN`, "standard_deviation" (of the replicas, with one degree of freedom less than there
      are) by the same names, and "replicas", the numbers of each.

    Example:
      >>> summarize([{"elbo": -90.0, "kl": [1.0, 2.0]}, {"elbo": -92.0, "kl": [1.0, 4.0]}])
      ... # doctest: +NORMALIZE_WHITESPACE
      {'elbo': -91.0, 'kl': [1.0, 3.0],
       'standard_deviation': {'elbo': 1.4142135623730951, 'kl': [0.0, 1.4142135623730951]},
       'replicas': [{'elbo': -90.0, 'kl': [1.0, 2.0]}, {'elbo': -92.0, 'kl': [1.0, 4.0]}]}
    """
    first = by_replica[0]
    if len(by_replica) == 1:
        return dict(first)

    def over_replicas(statistic: Callable[[list[Any]], Any]) -> dict[str, Any]:
        return {
            name: _elementwise(statistic, [replica[name] for replica in by_replica])
            for name in first
            if name not in NO_MEAN
        }

    return {
        **over_replicas(lambda values: float(np.mean(values))),
        "standard_deviation": over_replicas(lambda values: float(np.std(values, ddof=1))),
        "replicas": [dict(replica) for replica in by_replica],
    }


def each(numbers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The numbers of every replica, of what `summarize` made; of one replica they are all."""
    return list(numbers.get("replicas", [numbers]))


def of_the_first(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics with the numbers of the first replica in place of the means."""
    return [{**line, **each(line)[0]} for line in lines]


def _elementwise(statistic: Callable[[list[Any]], Any], values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [_elementwise(statistic, list(parts)) for parts in zip(*values, strict=True)]
    return None if None in values else statistic(values)
