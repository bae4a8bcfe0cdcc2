"""The command with this machine's CPU as the target, and with no compiler at all."""

import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks import run, targets
from benchmarks.sizes import Sizes
from benchmarks.targets import Plan, Target
from benchmarks.timing import markdown

TINY = Plan(Sizes(12, (4,), (8,)), ("here",), (1,), (2,), 16, images=64, evaluated=4, num_samples=8)
HERE = Target("cpu", "jaxlib", "", "", 1, 2**30)


def test_every_program_of_a_run_is_compiled_and_counted():
    rows = targets.compile_all("here", HERE, TINY)
    assert [row["program"] for row in rows] == [
        "step, depth 1, 2 replicas",
        "re-estimation, per batch",
        "ELBO, per 4 images",
        "log-likelihood, per 625 samples of 4 images",
    ]
    for row in rows:
        assert sum(row["kernels"].values()) > 0
        assert row["bytes_moved"] > 0
        assert row["collectives"] == {}
    # Parameters and both of Adam's moments, of two replicas, and the images, in bytes; at most a
    # few numbers more.
    arguments = rows[0]["argument_bytes"]
    weights = (12 * 8 + 8 * 8 + 8 * 8) + (4 * 8 + 8 * 8 + 8 * 12) + 2 * (8 + 8 + 8 + 8 + 8) + 12
    assert 0 <= arguments - (2 * 3 * 4 * weights + 64 * 12) < 200
    cells = [targets._cells(row) for row in rows]
    assert cells[0]["kernels"] == sum(rows[0]["kernels"].values())
    assert markdown(cells).count("| here ") == len(rows)


def test_a_program_that_does_not_fit_is_an_error():
    with pytest.raises(RuntimeError, match=r"depth 1, 2 replicas needs .*, but a device of here"):
        targets.compile_all("here", HERE._replace(memory=1000), TINY)


def test_a_target_without_its_compiler_is_left_out_with_what_installs_it(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", "--only=targets", f"--json={figures}"])
    run.main()
    assert list(json.loads(figures.read_text())["targets"]["tables"].values()) == [[]]
    said = capsys.readouterr().out
    assert 'pip install "lvae-jax[gpu-target]"' in said
    assert 'pip install "lvae-jax[tpu-target]"' in said


def test_a_target_that_fails_ends_the_command_with_its_last_line(monkeypatch):
    def failing(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "a traceback\nRuntimeError: too large\n")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(RuntimeError, match="h100: RuntimeError: too large"):
        targets.measure(targets.FULL)


def test_a_plan_reaches_the_process_of_its_target_whole():
    assert targets.plan_of(json.dumps(TINY)) == TINY
