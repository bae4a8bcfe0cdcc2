"""The command, on tiny models and without PyTorch: figures, tables, notes, JSON."""

import json
import sys

import numpy as np
import pytest

from benchmarks import likelihood, optional, products, run, startup, training_step
from benchmarks.sizes import Sizes

TINY = Sizes(12, (4, 3), (8, 6))


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
    monkeypatch, tmp_path, capsys, no_pytorch, compile_sooner
):
    plan = training_step.Plan(
        sizes=TINY, batch_size=16, steps=2, rounds=3, sweep_rounds=1, sweep_flops=1.0,
        depths=(1,), batch_sizes=(), widths=(2,), replicas=(2,),
    )  # fmt: skip
    monkeypatch.setattr(training_step, "QUICK", plan)
    result = _run(monkeypatch, tmp_path, "--quick", "--only=step")["step"]
    assert set(result["paper"]["step_seconds"]) == {"lvae_jax", "plain_jax", "products"}
    assert optional.NO_PYTORCH in result["notes"]
    sweeps = [(sweep["what"], sweep["value"]) for sweep in result["sweeps"]]
    assert sweeps == [("depth", 1), ("width", 2)]
    spreads = list(_spreads(result))
    assert len(spreads) > 20
    for spread in spreads:
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    ratio = result["paper"]["ratios"]["lvae_jax_over_plain_jax"]
    step = result["paper"]["step_seconds"]
    assert ratio["min"] <= step["lvae_jax"]["max"] / step["plain_jax"]["min"]
    output = capsys.readouterr().out
    assert "| plain JAX" in output
    assert "| width x2" in output
    assert f"Note: {optional.NO_PYTORCH}." in output


def test_the_likelihood_is_timed_and_its_memory_is_flat_in_k(
    monkeypatch, tmp_path, capsys, no_pytorch, compile_sooner
):
    # The process for each K has the paper's lowest layer: all log weights of K = 40,000 and 1,000
    # images would be 160 MB.
    plan = likelihood.Plan(
        sizes=Sizes(784, (64,), (512,)), images=3, num_samples=4, chunk_sizes=(1, 2), rounds=2,
        memory_samples=(1, 40_000), memory_images=1, memory_chunk_size=500,
    )  # fmt: skip
    monkeypatch.setattr(likelihood, "QUICK", plan)
    result = _run(monkeypatch, tmp_path, "--quick", "--only=likelihood")["likelihood"]
    assert [row["chunk_size"] for row in result["chunks"]] == [1, 2]
    for spread in _spreads(result["chunks"]):
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    few, many = result["memory"]
    assert many["num_samples"] == 40_000
    # All the logits at once would be 125 MB, and hidden layers 160.
    assert many["peak_mib"] < few["peak_mib"] + 60
    assert "| 40,000" in capsys.readouterr().out


def test_products_are_timed_forward_and_backward(monkeypatch, tmp_path, capsys, no_pytorch):
    plan = products.Plan(shapes=((4, 3, 2), (2, 5, 5)), rounds=2, flops=100.0)
    monkeypatch.setattr(products, "QUICK", plan)
    result = _run(monkeypatch, tmp_path, "--quick", "--only=products")["products"]
    assert [(row["shape"], row["product"][:2]) for row in result["rows"]] == [
        (shape, name) for shape in ([4, 3, 2], [2, 5, 5]) for name in ("y ", "dW", "dx")
    ]
    assert len(list(_spreads(result))) == 6
    assert "| 4x3x2 " in capsys.readouterr().out


def test_xla_computes_each_product_from_operands_as_they_are_stored():
    rng = np.random.default_rng(0)
    x, w, g = (np.float32(rng.normal(size=shape)) for shape in ((4, 3), (3, 2), (4, 2)))
    for a, b in ((x, w), (x.T, g), (g, w.T)):
        np.testing.assert_allclose(products._by_xla(a, b)(), a @ b, rtol=1e-5, atol=1e-6)


def test_sections_are_refused_or_put_in_order(capsys, monkeypatch):
    assert run.sections_of("targets,step") == ["step", "targets"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", "--only=steps"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert (
        "'steps'; give some of step,likelihood,startup,products,targets" in capsys.readouterr().err
    )


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
