"""The command, on tiny models and without PyTorch: figures, tables, notes, JSON."""

import json
import os
import sys

import jax
import numpy as np
import pytest

from benchmarks import likelihood, linear_layer, optional, run, startup, timing, training_step
from benchmarks.sizes import Sizes

TINY = Sizes(12, (4,), (8,))


@pytest.fixture
def no_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    optional.pytorch.cache_clear()
    yield
    optional.pytorch.cache_clear()


def _spreads(tree):
    """Every median with its range in a tree of figures."""
    if isinstance(tree, dict):
        if "median" in tree:
            yield tree
        for value in tree.values():
            yield from _spreads(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _spreads(value)


def _run(monkeypatch, tmp_path, *arguments):
    path = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", f"--json={path}", *arguments])
    run.main()
    return json.loads(path.read_text())


def test_steps_are_timed_and_pytorch_is_left_out_with_a_note(
    monkeypatch, tmp_path, capsys, no_pytorch
):
    plan = training_step.Plan(
        sizes=TINY, batch_size=16, steps=2, rounds=3, sweep_rounds=1, sweep_flops=1.0,
        depths=(1,), batch_sizes=(), widths=(),
    )  # fmt: skip
    monkeypatch.setattr(training_step, "QUICK", plan)
    result = _run(monkeypatch, tmp_path, "--quick", "--only=step")["step"]
    rows, sweeps = result["tables"].values()
    times = {row[""]: row for row in rows}
    assert set(times) == {"lvae_jax", "plain JAX", "products alone"}
    assert optional.NO_PYTORCH in result["notes"]
    assert [row[""] for row in sweeps] == ["depth 1"]
    spreads = list(_spreads(result))
    assert len(spreads) == 2 * len(rows) + 3 * len(sweeps)
    for spread in spreads:
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    ours, plain = (times[name]["step, ms"] for name in ("lvae_jax", "plain JAX"))
    assert times["plain JAX"]["lvae_jax / this"]["min"] <= ours["max"] / plain["min"]
    output = capsys.readouterr().out
    assert "| plain JAX" in output
    assert "| depth 1" in output
    assert f"Note: {optional.NO_PYTORCH}." in output


def test_the_likelihood_is_timed(monkeypatch, tmp_path, capsys, no_pytorch):
    plan = likelihood.Plan(sizes=TINY, images=3, num_samples=4, chunk_sizes=(1, 2), rounds=2)
    monkeypatch.setattr(likelihood, "QUICK", plan)
    result = _run(monkeypatch, tmp_path, "--quick", "--only=likelihood")["likelihood"]
    (rows,) = result["tables"].values()
    assert [row["chunk"] for row in rows] == [1, 2]
    for spread in _spreads(rows):
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert "| chunk | lvae_jax " in capsys.readouterr().out


def test_the_products_of_a_layer_are_timed(monkeypatch, tmp_path, capsys, no_pytorch):
    plan = linear_layer.Plan(layers=((4, 3, 2),), rounds=2, flops=1e3)
    monkeypatch.setattr(linear_layer, "QUICK", plan)
    result = _run(monkeypatch, tmp_path, "--quick", "--only=layer")["layer"]
    (rows,) = result["tables"].values()
    assert [row["product"] for row in rows] == ["y = x W", "dW = x^T g", "dx = g W^T"]
    for row in rows:
        assert 0 < row["XLA"]["min"] <= row["XLA"]["median"] <= row["XLA"]["max"]
    assert optional.NO_PYTORCH in result["notes"]
    assert "| 4x3x2 " in capsys.readouterr().out


def test_the_loop_multiplies_what_is_given():
    for a, b in linear_layer.operands((4, 3, 2)).values():
        hlo = jax.jit(linear_layer.by_xla(a, b, 5)).lower().as_text()
        assert hlo.count("stablehlo.dot_general") == 1
        assert f"tensor<{a.shape[0]}x{b.shape[1]}xf32>" in hlo


def test_sections_are_refused_or_put_in_order(capsys, monkeypatch):
    assert run.sections_of("targets,step") == ["step", "targets"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", "--only=steps"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert "'steps'; give some of step,layer,likelihood,startup,targets" in capsys.readouterr().err


def test_figures_are_written_after_each_section_and_nothing_is_measured_in_vain(
    monkeypatch, tmp_path, capsys
):
    def fails(_):
        raise RuntimeError("a section that fails")

    monkeypatch.setattr(likelihood, "measure", lambda _: {"tables": {}, "notes": []})
    monkeypatch.setattr(startup, "measure", fails)
    path = tmp_path / "figures.json"
    command = ["benchmarks.run", "--only=likelihood,startup"]
    monkeypatch.setattr(sys, "argv", [*command, f"--json={path}"])
    with pytest.raises(RuntimeError, match="a section that fails"):
        run.main()
    assert json.loads(path.read_text())["likelihood"] == {"tables": {}, "notes": []}

    monkeypatch.setattr(sys, "argv", [*command, f"--json={tmp_path}"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert f"--json={tmp_path}: Is a directory; give a file to be written" in said.err
    assert said.out == ""


def test_only_the_cores_that_a_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert run.machine()["cores"] == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert run.machine()["cores"] == os.cpu_count()


def test_an_error_without_a_message_has_a_first_line():
    assert timing.first_line(ValueError("one\ntwo")) == "one"
    assert timing.first_line(AssertionError()) == "AssertionError()"


def test_plans_of_a_quick_look_measure_less():
    for module in (training_step, likelihood, startup):
        assert len(module.QUICK.sizes.latent) < len(module.FULL.sizes.latent)
        assert module.QUICK.rounds <= module.FULL.rounds


def test_an_epoch_of_a_sweep_has_about_so_many_operations():
    assert training_step.steps_for(1e9, 1e8) == 10
    assert training_step.steps_for(1e9, 1e12) == 2
    assert training_step.steps_for(1e9, 1.0) == 100


def test_estimates_that_differ_are_refused():
    likelihood.check_estimates(np.array([-100.0, -90.0]), np.array([-99.5, -90.0]))
    with pytest.raises(ValueError, match="within 1%"):
        likelihood.check_estimates(np.array([-100.0]), np.array([-90.0]))
