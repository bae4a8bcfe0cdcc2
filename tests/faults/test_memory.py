"""The check of memory: a run's arrays, and the limits of accelerator, host and cgroup."""

import dataclasses
import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import SettingsError
from experiments.run import memory
from experiments.run import setup as experiment
from experiments.run.loop import run
from experiments.run.program import training_program
from experiments.settings import Settings
from experiments.store.workdir import Workdir
from lvae_jax import training
from lvae_jax.data import Dataset

SMALL = Settings(
    depth=2, latent_sizes=(50, 20), hidden_sizes=(400, 100), batch_size=200, epochs=1,
    eval_samples=3, compilation_cache="off",
)  # fmt: skip


def noise(columns: int = 100, images: int = 400) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (images, columns)).astype(np.uint8)
    labels = np.zeros(images, np.int32)
    return Dataset("noise", pixels, labels, pixels[:10], labels[:10], "bernoulli", "dynamic")


@pytest.mark.parametrize("replicas", [1, 3])
def test_the_size_of_a_state_is_that_of_its_arrays(replicas):
    settings = dataclasses.replace(SMALL, replicas=replicas)
    made = experiment.make_experiment(settings, noise())
    state = experiment.new_state(made)
    expected = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    assert memory.size(state) == expected
    assert memory.size(experiment.state_like(made)) == expected


def test_a_device_of_several_holds_its_shard():
    mesh = jax.sharding.AbstractMesh((2, 4), training.MESH_AXES)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("replica"))
    whole = jax.ShapeDtypeStruct((4, 10), jnp.float32)
    assert memory.size(whole) == 160
    shard = jax.ShapeDtypeStruct((4, 10), jnp.float32, sharding=sharding)
    assert memory.size({"a": shard, "b": shard}) == 2 * 80


# Refusing


def floats(number: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((number,), jnp.float32)


def test_more_than_there_is_is_refused_in_one_line_that_says_what_to_reduce():
    a_gigabyte = floats(250_000_000)
    memory.check_arrays(a_gigabyte, [a_gigabyte] * 2, 1_500_000, 4_001_500_000)
    memory.check_arrays(a_gigabyte, [a_gigabyte] * 2, 1_500_000, None)
    with pytest.raises(SettingsError) as refusal:
        memory.check_arrays(a_gigabyte, [a_gigabyte] * 2, 1_500_000, 2_000_000_000)
    assert str(refusal.value) == (
        "the run needs about 4 GB of memory (parameters, their gradients and moments 4 GB, data "
        "1.5 MB) and 2 GB are available; give smaller --hidden_sizes, or images of fewer values"
    )
    with pytest.raises(SettingsError, match=r"give fewer --replicas, or smaller --hidden_sizes$"):
        memory.check_arrays(a_gigabyte, [a_gigabyte] * 2, 1_500_000, 2_000_000_000, replicas=2)
    with pytest.raises(SettingsError, match="give fewer images"):
        memory.check_arrays(floats(10), floats(20), 1000, 500)


def test_a_million_replicas_are_refused_before_anything_is_allocated(monkeypatch):
    settings = dataclasses.replace(SMALL, replicas=1_000_000)
    monkeypatch.setattr(memory, "available", lambda device: 8_000_000_000)
    with pytest.raises(SettingsError, match=r"the run needs about .* TB .* fewer --replicas"):
        experiment.make_experiment(settings, noise())


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_700_000, "1 GB"),
        (2.5e15, "2,500.0 TB"),
        (3e50, "3.0e+38 TB"),
    ],
)
def test_a_size_has_few_digits(size, text):
    assert memory.in_words(size) == text


def test_a_program_needs_its_results_and_what_is_between_but_not_what_it_updates_in_place():
    x = jax.ShapeDtypeStruct((1_000_000,), jnp.float32)

    def size(function, **given):
        return memory.size_of_program(jax.jit(function, **given).lower(x).compile())

    little = 100_000
    assert 4_000_000 <= size(lambda x: x + 1) < 4_000_000 + little
    assert size(lambda x: x + 1, donate_argnums=0) < little
    assert size(lambda x: jnp.sort(x)[0]) >= 4_000_000


def test_a_step_that_does_not_fit_is_refused_before_training(tmp_path, monkeypatch):
    """By the compiler's own report: a step of 100 samples holds 100 times as many activations."""
    settings = dataclasses.replace(SMALL, workdir=str(tmp_path / "run"), mc_samples=100)
    state = memory.size(experiment.state_like(experiment.make_experiment(SMALL, noise())))
    monkeypatch.setattr(memory, "available", lambda device: 3 * state)
    training_program(experiment.make_experiment(SMALL, noise()))
    with pytest.raises(SettingsError) as refusal:
        run(settings, noise())
    assert re.fullmatch(
        r"a training step needs about [\d.]+ MB of memory besides parameters and data, and [\d.]+ "
        r"MB are available; give a smaller --batch_size, --mc_samples, --iw_samples or --replicas",
        str(refusal.value),
    )
    # Nothing says that the folder is this run's: other settings may use it.
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    other = Workdir(tmp_path / "run", {"dataset": "noise", "settings": {}})
    other.create()
    other.close()


def test_a_million_columns_are_refused_before_anything_is_allocated(monkeypatch):
    settings = dataclasses.replace(Settings(), batch_size=2)
    monkeypatch.setattr(memory, "available", lambda device: 8_000_000_000)
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    with pytest.raises(SettingsError, match=r"the run needs about .* GB of memory") as refusal:
        experiment.make_experiment(settings, noise(columns=1_000_000, images=4))
    assert re.search(r"moments 16\.\d GB", str(refusal.value))
    assert sum(array.nbytes for array in jax.live_arrays()) <= before


# What is available


class Device:
    """An accelerator as JAX describes it."""

    platform = "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_an_accelerator_says_itself_what_it_has_left():
    assert memory.available(Device({"bytes_limit": 1000, "bytes_in_use": 300})) == 700
    assert memory.available(Device(None)) is None


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with 2,000 kB available, and no cgroup but those that a test makes."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroups")
    memory.MEMINFO.write_text(
        "MemTotal:  9000 kB\nMemAvailable:    2000 kB\nHugePages_Total:   0\n"
    )
    return tmp_path


def the_cpu() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]


def test_a_cpu_has_what_the_host_has_available(monkeypatch):
    found = memory.available(the_cpu())
    assert found is not None
    assert 1e6 < found < 1e15


def test_a_cpu_of_several_has_its_part_of_what_the_host_has(host, monkeypatch):
    assert memory.available(the_cpu()) == 2000 * 1024
    monkeypatch.setattr(jax, "local_device_count", lambda backend: 4)
    assert memory.available(the_cpu()) == 500 * 1024


def test_a_limit_of_cgroups_v2_holds_less_what_is_used_but_the_cache(host):
    memory.CGROUP.write_text("0::/jobs/mine\n")
    group = memory.CGROUPS / "jobs" / "mine"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("300000\n")
    (group / "memory.stat").write_text("anon 200000\ninactive_file 100000\n")
    assert memory.available(the_cpu()) == 800_000
    # The limit of the group above is lower.
    (group.parent / "memory.max").write_text("900000\n")
    (group.parent / "memory.current").write_text("600000\n")
    (group.parent / "memory.stat").write_text("inactive_file 0\n")
    assert memory.available(the_cpu()) == 300_000
    for folder in (group, group.parent):
        (folder / "memory.max").write_text("max\n")
    assert memory.available(the_cpu()) == 2000 * 1024


def test_a_group_over_its_limit_has_nothing_left(host):
    memory.CGROUP.write_text("0::/mine\n")
    group = memory.CGROUPS / "mine"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("1004096\n")
    (group / "memory.stat").write_text("inactive_file 0\n")
    assert memory.available(the_cpu()) == 0


def test_a_host_that_does_not_say_what_is_available_has_all_of_its_memory(host):
    memory.MEMINFO.unlink()
    found = memory.available(the_cpu())
    assert 1e8 < found < 1e15  # bytes: a tenth of a gigabyte is too little to run this test


def test_a_limit_of_cgroups_v1_holds_within_a_container_that_shows_the_hosts_path(host):
    memory.CGROUP.write_text("7:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n1:name=systemd:/\n")
    group = memory.CGROUPS / "memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("500000\n")
    (group / "memory.usage_in_bytes").write_text("200000\n")
    (group / "memory.stat").write_text("inactive_file 5\ntotal_inactive_file 50000\n")
    assert memory.available(the_cpu()) == 350_000
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # v1's "no limit"
    assert memory.available(the_cpu()) == 2000 * 1024
