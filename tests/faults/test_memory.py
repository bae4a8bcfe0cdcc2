"""The estimate of memory, against the model's own parameters and what XLA's compiler takes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import SettingsError
from experiments.run import memory
from experiments.run import setup as experiment
from experiments.run.memory import Estimate
from experiments.settings import Settings
from lvae_jax import Objective, training
from lvae_jax.data import Dataset, as_stored

SMALL = Settings(depth=3, latent_sizes=(5, 4, 3), hidden_sizes=(9, 8, 7))


@pytest.mark.parametrize("observation", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"depth": 1},
        {"model": "vae"},
        {"batch_norm": False},
        {"own_top_down": True},
        {"mean_upward": True, "own_top_down": True},
    ],
)
def test_the_number_of_parameters_is_that_of_the_model(changed, observation):
    settings = dataclasses.replace(SMALL, **changed)
    model = experiment.make_model(settings, 13, observation)
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    params = jax.eval_shape(model.init, keys, jnp.zeros((1, 13)))["params"]
    expected = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    assert memory.number_of_parameters(settings, 13, observation) == expected


def test_the_five_layer_model_of_mnist_has_the_parameters_that_it_is_known_to_have():
    found = memory.number_of_parameters(Settings(), 784, "bernoulli")
    assert found == pytest.approx(1.86e6, rel=0.005)


def taken(program) -> int:
    """Bytes of a compiled program: what it is given and gives, and what it needs in between."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


@pytest.mark.parametrize("samples", [1, 20])
def test_the_estimate_of_training_is_what_the_compiler_takes_within_a_factor_of_two(samples):
    settings = dataclasses.replace(
        SMALL, depth=2, latent_sizes=(50, 20), hidden_sizes=(400, 100), batch_size=200,
        mc_samples=samples,
    )  # fmt: skip
    model = experiment.make_model(settings, 500, "bernoulli")
    optimizer = training.make_optimizer()
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: training.init_state(model, optimizer, key))
    images = jax.ShapeDtypeStruct((1000, 500), jnp.float32)
    program = training.train_epoch.lower(
        model, optimizer, as_stored, state, images, key, jnp.float32(1), jnp.float32(1e-3),
        batch_size=200, objective=Objective(mc_samples=samples),
    ).compile()  # fmt: skip
    estimate = memory.estimate(settings, 500, "bernoulli", 1000 * 500 * 4)
    assert 0.5 < taken(program) / estimate.total < 2


def test_replicas_need_as_much_as_so_many_runs_but_for_the_data_which_they_share():
    settings = dataclasses.replace(
        SMALL, depth=1, latent_sizes=(50,), hidden_sizes=(400,), batch_size=200, replicas=3
    )
    model = experiment.make_model(settings, 500, "bernoulli")
    optimizer = training.make_optimizer()
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    state = jax.eval_shape(lambda: training.init_state(model, optimizer, keys))
    images = jax.ShapeDtypeStruct((1000, 500), jnp.float32)
    program = training.train_replicas.lower(
        model, optimizer, as_stored, state, images, keys, jnp.ones(3), jnp.ones(3), batch_size=200
    ).compile()
    estimate = memory.estimate(settings, 500, "bernoulli", 1000 * 500 * 4)
    assert 0.5 < taken(program) / estimate.total < 2
    one = memory.estimate(dataclasses.replace(settings, replicas=1), 500, "bernoulli", 2_000_000)
    assert estimate == (3 * one.parameters, 3 * one.activations, one.data)


def test_a_device_of_several_needs_memory_for_its_part():
    settings = dataclasses.replace(SMALL, batch_size=8, replicas=4)
    part = dataclasses.replace(SMALL, batch_size=2, replicas=2)
    found = memory.estimate(settings, 13, "bernoulli", 1000, by_replica=2, by_data=4)
    assert found == memory.estimate(part, 13, "bernoulli", 1000)


# Refusing


def test_more_than_there_is_is_refused_in_one_line_that_says_what_to_reduce():
    needed = Estimate(parameters=3_000_000_000, activations=20_000, data=1_500_000)
    memory.check(needed, needed.total)
    memory.check(needed, None)
    with pytest.raises(SettingsError) as refusal:
        memory.check(needed, 2_000_000_000)
    assert str(refusal.value) == (
        "the run needs about 3 GB of memory (parameters 3 GB, activations 20 kB, data "
        "1.5 MB) and 2 GB are available; give smaller --hidden_sizes, or images of fewer values"
    )


@pytest.mark.parametrize(
    ("largest", "advice"),
    [("parameters", "--hidden_sizes"), ("activations", "--batch_size"), ("data", "fewer images")],
)
def test_the_advice_is_about_what_needs_most(largest, advice):
    parts = {"parameters": 10, "activations": 10, "data": 10} | {largest: 1000}
    with pytest.raises(SettingsError, match=advice):
        memory.check(Estimate(**parts), 500)


class Device:
    """An accelerator as JAX describes it."""

    platform = "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_an_accelerator_says_itself_what_it_has_left():
    assert memory.available(Device({"bytes_limit": 1000, "bytes_in_use": 300})) == 700
    assert memory.available(Device(None)) is None


def test_a_cpu_has_what_the_host_has_available(tmp_path, monkeypatch):
    (cpu,) = jax.local_devices(backend="cpu")[:1]
    found = memory.available(cpu)
    assert found is not None
    assert 1e6 < found < 1e15
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:    2000 kB\nHugePages_Total:   0\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    assert memory.available(cpu) == 2000 * 1024
    monkeypatch.setattr(jax, "local_device_count", lambda backend: 4)
    assert memory.available(cpu) == 500 * 1024


def test_a_million_columns_are_refused_before_anything_is_allocated(monkeypatch):
    images = np.zeros((4, 1_000_000), np.uint8)
    labels = np.zeros(4, np.int32)
    dataset = Dataset("wide", images, labels, images, labels, "bernoulli", "fixed")
    settings = dataclasses.replace(Settings(), batch_size=2)
    monkeypatch.setattr(memory, "available", lambda device: 8_000_000_000)
    before = sum(array.nbytes for array in jax.live_arrays())
    with pytest.raises(SettingsError, match=r"the run needs about .* GB of memory") as refusal:
        experiment.make_experiment(settings, dataset)
    assert re.search(r"parameters 16\.\d GB", str(refusal.value))
    assert sum(array.nbytes for array in jax.live_arrays()) == before
