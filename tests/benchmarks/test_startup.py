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
import pathlib, signal, sys, time

def stop(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    raise SystemExit(143)

signal.signal(signal.SIGTERM, stop)
time.sleep(0.5)  # to compile, and for the first four steps
print("the first 4 steps took until 9.9 s after this start, compilation included", file=sys.stderr)
sys.stderr.flush()
time.sleep(60)
"""


def test_the_first_steps_are_timed_and_the_run_is_stopped(tmp_path):
    saved = tmp_path / "saved"
    start = time.perf_counter()
    elapsed = startup.first_steps([sys.executable, "-c", RUN, str(saved)])
    assert 0.5 <= elapsed <= time.perf_counter() - start
    assert saved.read_text() == "saved"  # before the next run starts


def test_a_run_that_ends_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('error: no data')"]
    with pytest.raises(RuntimeError, match="error: no data"):
        startup.first_steps(command)


def test_random_images_are_loaded_as_mnist(tmp_path):
    startup.write_random_images(tmp_path, 20, 10)
    dataset = mnist.load(None, tmp_path)
    assert dataset.train_images.shape == (20, 28, 28)
    assert dataset.test_images.shape == (10, 28, 28)
    assert dataset.train_images.dtype == np.uint8


def test_the_command_is_one_that_the_experiment_takes(tmp_path):
    startup.write_random_images(tmp_path / "data", 20, 10)
    command = startup.training_command(PAPER, tmp_path / "data", tmp_path / "w", tmp_path / "c")
    # Refused for its batch alone, which is larger than the data set: every flag before was taken.
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --batch_size=256: mnist has 20 training images")
    assert ended.stderr.count("\n") == 1
