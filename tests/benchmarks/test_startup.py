"""The time to the first step is read from a run's own lines, and the run is ended."""

import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import startup
from benchmarks.sizes import PAPER
from lvae_jax.data import mnist

RUN = """
import json, signal, sys, time

path, start = sys.argv[1] + "/metrics.jsonl", int(sys.argv[2])

def stop(*_):
    raise SystemExit(f"error: SIGTERM: stopped after step {start + 12}, which is saved")

signal.signal(signal.SIGTERM, stop)
time.sleep(1.0)  # to compile, and for the first four steps
print("the first 4 steps took until 9.9 s after this start, compilation included", file=sys.stderr)
sys.stderr.flush()
time.sleep(0.4)  # for six steps more
with open(path, "a") as file:
    file.write(json.dumps({"epoch": 0, "step": start + 10}) + "\\n")
time.sleep(60)
"""


@pytest.mark.parametrize("steps_before", [0, 20])
def test_the_first_step_is_timed_without_those_after_it_and_the_run_is_stopped(
    tmp_path, steps_before
):
    if steps_before:
        (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 20}\n')
    start = time.perf_counter()
    command = [sys.executable, "-c", RUN, str(tmp_path), str(steps_before)]
    measured = startup.first_step(command, tmp_path, steps_before)
    waited = time.perf_counter() - start
    # A machine in a hurry takes longer, but the six steps after the first four at least 0.4 s.
    assert measured.stopped_after == steps_before + 12
    assert measured.seconds <= waited - 0.4 - 3 * 0.4 / 6
    assert measured.seconds >= 1.0 - 3 * (waited - 1.0) / 6


def test_a_run_that_ends_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('error: no data')"]
    with pytest.raises(RuntimeError, match="error: no data"):
        startup.first_step(command, tmp_path)


def test_a_line_that_is_half_written_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo')
    assert startup.metrics(tmp_path) == [{"epoch": 0}]


def test_random_images_are_loaded_as_mnist(tmp_path):
    startup.write_random_images(tmp_path, 20, 10)
    dataset = mnist.load(None, tmp_path)
    assert dataset.train_images.shape == (20, 28, 28, 1)
    assert dataset.test_images.shape == (10, 28, 28, 1)
    assert dataset.train_images.dtype == np.uint8


def test_every_program_of_a_run_is_compiled_and_a_checkpoint_saved(compile_sooner):
    plan = startup.Plan(sizes=PAPER.lowest(1), rounds=2, train_images=512)
    programs = startup.programs(plan)
    assert set(programs) == {
        "init_state", "train_epoch", "reestimate_batch_stats", "elbo", "log_likelihood"
    }  # fmt: skip
    assert all(s > 0 for times in programs.values() for s in times.values())
    times = startup.checkpoints(plan)
    assert times["save"]["min"] > 0
    assert times["restore"]["min"] > 0


def test_the_command_is_one_that_the_experiment_takes(tmp_path):
    startup.write_random_images(tmp_path / "data", 20, 10)
    command = startup.training_command(PAPER, tmp_path / "data", tmp_path / "w", tmp_path / "c")
    # Refused for its batch alone, which is larger than the data set: every flag before was taken.
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --batch_size=256: mnist has 20 training images")
    assert ended.stderr.count("\n") == 1
