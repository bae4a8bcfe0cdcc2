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


def test_a_spread_has_a_factor_for_its_unit():
    assert timing.spread([0.001, 0.002], 1e3) == {"median": 1.5, "min": 1.0, "max": 2.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.012345, "0.0123"), (12.345, "12.3"), (1234.5, "1,234"), (7, "7"), ("x", "x"),
     ({"median": 1.5, "min": 1.0, "max": 20.0}, "1.50 (1.00 to 20.0)")],
)  # fmt: skip
def test_a_number_is_shown_to_three_digits(value, text):
    assert timing.shown(value) == text


def test_a_markdown_table_has_a_line_per_row_and_a_column_per_heading():
    lines = timing.markdown([{"": "plain JAX", "ms": 1}, {"": "b", "ms": 10, "s": 2}]).splitlines()
    assert lines[0] == "|           | ms | s |"
    assert lines[1] == "| --------- | -- | - |"
    assert lines[3] == "| b         | 10 | 2 |"
    assert len({len(line) for line in lines}) == 1
