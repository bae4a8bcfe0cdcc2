"""The command with this machine's CPU as the target, and with no compiler at all."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from xla_flags import with_cpu_devices

from benchmarks import run, targets
from benchmarks.sizes import Sizes
from benchmarks.targets import Plan, Program, Target
from benchmarks.timing import markdown

ROOT = Path(__file__).parents[2]

TINY = Plan(Sizes(12, (4,), (8,)), ("here",), (1,), (2,), 16, images=64, evaluated=4, num_samples=8)
HERE = Target("cpu", "jaxlib", "", "", 1, 2**30)

WEIGHTS = (12 * 8 + 8 * 8 + 8 * 8) + (4 * 8 + 8 * 8 + 8 * 12) + 2 * (8 + 8 + 8 + 8 + 8) + 12
REPLICA = 3 * 4 * WEIGHTS
"""Bytes of its parameters and both of Adam's moments."""

IMAGES = 64 * 12
"""Bytes of them all."""


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
    # At most a few numbers more.
    assert 0 <= rows[0]["argument_bytes"] - (2 * REPLICA + IMAGES) < 200
    cells = [targets._cells(row) for row in rows]
    assert cells[0]["kernels"] == sum(rows[0]["kernels"].values())
    assert markdown(cells).count("| here ") == len(rows)


def test_a_program_that_does_not_fit_is_an_error():
    with pytest.raises(RuntimeError, match=r"depth 1, 2 replicas needs .*, but a device of here"):
        targets.compile_all("here", HERE._replace(memory=1000), TINY)


def multiply_often(x):
    return jax.lax.fori_loop(0, 9, lambda _, y: jax.lax.dot(y, x), x)


MATRIX = jax.ShapeDtypeStruct((16, 16), jnp.float32)


def test_arguments_and_temporaries_must_fit_together(monkeypatch):
    lowered = jax.jit(multiply_often).lower(MATRIX)
    monkeypatch.setattr(targets, "programs", lambda *_: [Program("loop", 1, lambda _: lowered)])
    needed = lowered.compile().memory_analysis()
    assert needed.argument_size_in_bytes == 16 * 16 * 4
    assert needed.temp_size_in_bytes > 0
    both = needed.argument_size_in_bytes + needed.temp_size_in_bytes
    (row,) = targets.compile_all("here", HERE._replace(memory=both), TINY)
    assert row["argument_bytes"] + row["temporary_bytes"] == both
    with pytest.raises(RuntimeError, match="loop needs"):
        targets.compile_all("here", HERE._replace(memory=both - 1), TINY)


def test_products_are_compiled_in_float32(monkeypatch):
    precisions = []

    def lower(_):
        (product,) = jax.make_jaxpr(jax.lax.dot)(MATRIX, MATRIX).eqns
        precisions.append(product.params["precision"])
        return jax.jit(multiply_often).lower(MATRIX)

    monkeypatch.setattr(targets, "programs", lambda *_: [Program("loop", 1, lower)])
    targets.compile_all("here", HERE, TINY)
    assert precisions == [(jax.lax.Precision.HIGHEST,) * 2]


ON_TWO_DEVICES = """
import json, sys
from benchmarks import targets

programs = targets.programs
targets.programs = lambda *arguments: programs(*arguments)[:1]
plan, target = targets.plan_of(sys.argv[1]), targets.Target(*json.loads(sys.argv[2]))
print(json.dumps(targets.compile_all("two", target, plan)))
"""


def test_two_replicas_are_split_over_two_devices_which_exchange_nothing():
    two = HERE._replace(devices=2)
    result = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES, json.dumps(TINY), json.dumps(two)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": with_cpu_devices(2)},
    )
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert row["program"] == "step, depth 1, 2 replicas"
    assert row["collectives"] == {}
    # At most a few numbers more.
    assert 0 <= row["argument_bytes"] - (REPLICA + IMAGES) < 200


def test_a_row_of_the_table_has_the_units_of_its_headings():
    row = {
        "target": "here", "program": "step", "bytes_moved": 3_000_000, "collective_bytes": 5_000,
        "kernels": {"products": 7, "reductions": 6, "fusions": 5, "calls": 4, "others": 3},
        "collectives": {"all-reduce": 2, "all-gather": 1}, "argument_bytes": 2 * 2**20,
        "temporary_bytes": 3 * 2**20, "device_bytes": 40 * 2**20, "compile_seconds": 1.5,
    }  # fmt: skip
    assert targets._cells(row) == {
        "target": "here", "program": "step", "kernels": 25, "products": 7, "reductions": 6,
        "other fusions": 5, "calls and others": 7, "MB moved": 3.0,
        "collectives": "2 all-reduce, 1 all-gather", "their kB": 5.0, "arguments, MiB": 2.0,
        "temporary, MiB": 3.0, "of the device": "12.5%", "compile, s": 1.5,
    }  # fmt: skip


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


def test_a_target_alone_without_its_compiler_is_refused_with_what_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks.targets", "v5e:4x4"])
    with pytest.raises(SystemExit) as ended:
        targets.main()
    assert ended.value.code == 2
    assert 'v5e:4x4: its compiler is not installed (pip install "lvae-jax[tpu-target]")' in (
        capsys.readouterr().err
    )


def test_a_target_that_fails_ends_the_command_with_its_last_line(monkeypatch):
    def failing(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "a traceback\nRuntimeError: too large\n")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(RuntimeError, match="h100: RuntimeError: too large"):
        targets.measure(targets.FULL)


def test_a_plan_reaches_the_process_of_its_target_whole():
    assert targets.plan_of(json.dumps(TINY)) == TINY
