"""Timing contenders in turn within one process: medians, ranges, and ratios pair by pair.

A machine whose speed drifts slows all of them alike, so their ratio holds where their times do not.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Spread = dict[str, float]
"""Median, least and greatest of the same quantity measured several times."""


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, its results waited for, and the results."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def in_turn(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; each runs once before, since first calls differ.

    Args:
      contenders: functions by name; what they return is waited for and dropped.
      rounds: how often each is timed.

    Returns:
      The times by name, one a round.
    """
    for function in contenders.values():
        seconds(function)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            times[name].append(seconds(function)[0])
    return times


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(values: Sequence[float], others: Sequence[float]) -> Spread:
    """The spread of the ratios of two contenders, formed round by round."""
    return spread([a / b for a, b in zip(values, others, strict=True)])


def shown(s: Spread, digits: int = 2, factor: float = 1.0) -> str:
    """A spread for a table: median (min to max), times a factor for the unit."""
    median, least, greatest = (
        f"{factor * s[name]:,.{digits}f}" for name in ("median", "min", "max")
    )
    return f"{median} ({least} to {greatest})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
