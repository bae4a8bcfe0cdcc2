"""The time to the first step is read from a run's own lines, and the run is ended."""

import json
import sys
import textwrap
import time

import numpy as np
import pytest

from benchmarks import startup
from benchmarks.sizes import PAPER
from lvae_jax.data import mnist

RUN = """
import json, sys, time
path = sys.argv[1] + "/metrics.jsonl"
first = int(sys.argv[2])
time.sleep(1.0)
for epoch in range(first, first + 100):
    with open(path, "a") as file:
        # Of four steps each; those after the first are said to take 0.8 s.
        file.write(json.dumps({"epoch": epoch, "step": 4 * (epoch + 1), "seconds": 0.8}) + "\\n")
    time.sleep(0.05)
time.sleep(60)
"""


def test_seconds_to_first_step_leave_out_the_other_steps_of_its_epoch(tmp_path):
    start = time.perf_counter()
    command = [sys.executable, "-c", RUN, str(tmp_path), "0"]
    seconds = startup.seconds_to_first_step(command, tmp_path, tmp_path / "cache")
    waited = time.perf_counter() - start
    # At least the second before the first line, less three of its epoch's four steps.
    assert 1.0 - 0.75 * 0.8 <= seconds < waited - 0.75 * 0.8
    lines = len(startup.metrics(tmp_path))
    time.sleep(0.3)
    assert len(startup.metrics(tmp_path)) == lines  # the run is no more


def test_a_resumed_run_is_timed_by_its_new_epochs(tmp_path):
    old = {"epoch": 6, "step": 28, "seconds": 0.8}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    command = [sys.executable, "-c", RUN, str(tmp_path), "5"]
    seconds = startup.seconds_to_first_step(command, tmp_path, tmp_path / "cache")
    assert seconds >= 1.0 - 0.75 * 0.8
    assert max(line["epoch"] for line in startup.metrics(tmp_path)) >= 9


def test_a_run_that_ends_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('error: no data')"]
    with pytest.raises(RuntimeError, match="error: no data"):
        startup.seconds_to_first_step(command, tmp_path, tmp_path / "cache")


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
    import subprocess

    startup.write_random_images(tmp_path / "data", 20, 10)
    command = startup.training_command(PAPER, tmp_path / "data", tmp_path / "w", tmp_path / "c")
    # Refused for its batch alone, which is larger than the data set: every flag before was taken.
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --batch_size=256: mnist has 20 training images")
    assert textwrap.dedent(ended.stderr).count("\n") == 1
