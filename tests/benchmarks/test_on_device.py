"""The day of an accelerator, rehearsed on the CPU at a tiny scale."""

import json
import signal
import subprocess

import pytest

from benchmarks import on_device, startup
from benchmarks.on_device import Plan
from benchmarks.sizes import Sizes


@pytest.fixture
def plan(tmp_path):
    return Plan(
        tmp_path / "results", tmp_path / "data", sizes=Sizes(784, (3,), (4,)), steps=2, rounds=2,
        replicas=(2,), num_samples=4, depths=(1,), seeds=2, scale=0.0005,
    )  # fmt: skip


def test_a_part_with_a_result_is_not_repeated_and_one_that_had_to_stop_is(plan):
    started = []

    def part(name, *results):
        remaining = list(results)

        def start():
            started.append(name)
            return remaining.pop(0)

        return start

    chosen = {"whole": part("whole", {"found": 1}), "long": part("long", None, {"found": 2})}
    assert on_device.measure(plan, chosen) == ["long"]
    assert on_device.measure(plan, chosen) == []
    assert on_device.measure(plan, chosen) == []
    assert started == ["whole", "long", "long"]
    assert json.loads((plan.results / "long.json").read_text())["found"] == 2


def test_steps_replicas_and_likelihood_are_timed(plan):
    wanted = ("step-default", "replicas-2", "likelihood")
    found = on_device.parts(plan)
    assert on_device.measure(plan, {name: found[name] for name in wanted}) == []
    for name, key in zip(wanted, ("step_seconds", "step_seconds", "seconds"), strict=True):
        result = json.loads((plan.results / f"{name}.json").read_text())
        assert 0 < result[key]["min"] <= result[key]["median"]
        assert result["machine"]["device"]


def test_an_option_that_xla_does_not_know_is_reported(plan):
    result = on_device.step(plan, 1, {"xla_of_another_version": True})
    assert "xla_of_another_version" in result["refused"]


@pytest.mark.slow
def test_a_run_is_made_from_prepared_images(plan):
    startup.write_random_images(plan.tfds_dir, 512, 4)
    # The paper's batch of 256, one epoch of two steps, two seeds in one program.
    plan = plan._replace(flags=("--latent_sizes=3", "--hidden_sizes=4"))
    name = "figure3-lvae-bn-wu-1"
    result = on_device.parts(plan)[name]()
    log = (plan.results / f"{name}.log").read_text()
    assert result is not None, log
    assert result["status"] == 0, log
    assert result["results"]["."]["dataset"] == "mnist"


@pytest.mark.parametrize("ends_with", [128 + signal.SIGTERM, -signal.SIGTERM])
def test_a_run_is_stopped_when_its_time_is_over_and_left_for_the_next_start(
    plan, monkeypatch, ends_with
):
    class Slow:
        """A process that ends only when it is told to."""

        def __init__(self, command, **_):
            self.status = None
            assert f"--tfds_dir={plan.tfds_dir}" in command

        def wait(self, timeout=None):
            if self.status is None:
                raise subprocess.TimeoutExpired("run", timeout)
            return self.status

        def send_signal(self, number):
            assert number == signal.SIGTERM
            self.status = ends_with

    monkeypatch.setattr(subprocess, "Popen", Slow)
    assert on_device.measure(plan, {"table1": on_device.parts(plan)["table1"]}) == ["table1"]
    assert not (plan.results / "table1.json").exists()


def test_runs_of_figure_3_are_the_papers_variants(plan):
    found = on_device.parts(plan._replace(depths=(1, 5), scale=1.0, seeds=8))
    command = found["figure3-vae-5"].args[1]
    assert {"--model=vae", "--batch_norm=false", "--warmup_epochs=0", "--depth=5"} <= set(command)
    command = found["figure3-lvae-bn-wu-1"].args[1]
    assert {"--model=lvae", "--batch_norm=true", "--warmup_epochs=200", "--epochs=2000",
            "--replicas=8", "--depth=1"} <= set(command)  # fmt: skip
