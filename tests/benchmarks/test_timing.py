"""Contenders run in turn, and ratios are of the same round."""

import itertools

import pytest

from benchmarks import timing


def test_in_turn_runs_each_once_before_and_once_a_round_and_times_those(monkeypatch):
    calls = []
    clock = itertools.count()  # a call lasts from one tick to the next
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    times = timing.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_spread_is_median_and_range():
    assert timing.spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0}


def test_ratio_is_formed_round_by_round():
    # A machine at half its speed in the second round changes no ratio.
    assert timing.ratio([1.0, 2.0, 1.0], [4.0, 8.0, 4.0]) == timing.spread([0.25] * 3)
    with pytest.raises(ValueError, match="shorter"):
        timing.ratio([1.0, 2.0], [1.0])


def test_shown_has_the_unit_and_the_range():
    assert timing.shown({"median": 1.5, "min": 1.0, "max": 2.0}, 1, 1e3) == (
        "1,500.0 (1,000.0 to 2,000.0)"
    )


def test_a_markdown_table_has_a_line_a_row_and_equal_columns():
    lines = timing.markdown(["", "ms"], [["plain JAX", "1"], ["b", "10"]]).splitlines()
    assert lines[1] == "| --------- | -- |"
    assert lines[3] == "| b         | 10 |"
    assert len({len(line) for line in lines}) == 1
