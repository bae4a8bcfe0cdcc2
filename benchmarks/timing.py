"""Times contenders in turn within one process: medians, ranges, and ratios round by round.

A drift of the machine's speed affects all of them alike, so their ratios are more reliable than
their times.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.show import numbers

Spread = dict[str, float]
"""Median, minimum and maximum of a quantity measured several times."""

Row = dict[str, str | int | float | Spread]
"""One row of a table, by the heading of each column."""


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """The wall time of a call, until its results are ready, and the results."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def in_turn(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one untimed call of each.

    Args:
      contenders: functions by name; a call ends when its results are ready.
      rounds: how often each is timed.

    Returns:
      The times by name, one per round.
    """
    for function in contenders.values():
        seconds(function)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            times[name].append(seconds(function)[0])
    return times


def spread(values: Sequence[float], factor: float = 1.0) -> Spread:
    """Median, minimum and maximum, times a factor for the unit."""
    scaled = [factor * value for value in values]
    return {"median": statistics.median(scaled), "min": min(scaled), "max": max(scaled)}


def ratio(values: Sequence[float], others: Sequence[float]) -> Spread:
    """The spread of the ratios of two contenders, formed round by round."""
    return spread([a / b for a, b in zip(values, others, strict=True)])


def shown(value: str | int | float | Spread) -> str:
    """A cell of a table: real numbers to three digits, a spread as median (min to max)."""
    if isinstance(value, dict):
        return "{median} ({min} to {max})".format(**{k: shown(v) for k, v in value.items()})
    if isinstance(value, float):
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:,.{max(digits, 0)}f}"
    return str(value)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table with aligned columns; a row may lack some of them."""
    header = list(dict.fromkeys(heading for row in rows for heading in row))
    return numbers.markdown(header, *([shown(row.get(h, "")) for h in header] for row in rows))


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error) or repr(error)).splitlines()[0]
