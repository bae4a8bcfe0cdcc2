"""MNIST from its files to results, and what is said where there are none."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_files

from experiments import mnist
from experiments.run import run
from experiments.settings import Settings
from lvae_jax.data import mnist as mnist_data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def original_files(tmp_path, monkeypatch) -> Path:
    """MNIST's four files: the real ones where they are at hand, else small ones in their place."""
    if "LVAE_JAX_TEST_DATA" in os.environ:
        return Path(os.environ["LVAE_JAX_TEST_DATA"]) / "mnist"
    folder = small_files.write_mnist(tmp_path / "files")
    monkeypatch.setattr(mnist_data, "SOURCE", small_files.small_source(folder))
    return folder


def test_mnist_is_prepared_from_its_files_trained_on_and_evaluated(original_files, tmp_path):
    settings = Settings(
        depth=2,
        latent_sizes=(4, 2),
        hidden_sizes=(16, 8),
        epochs=1,
        warmup_epochs=0,
        batch_size=10,
        eval_samples=3,
        data_dir=str(original_files),
        tfds_dir=str(tmp_path / "tfds"),
        workdir=str(tmp_path / "run"),
    )
    dataset = mnist.load(settings)
    dataset = dataclasses.replace(  # a few of the real images are enough here
        dataset,
        train_images=dataset.train_images[:200],
        train_labels=dataset.train_labels[:200],
        test_images=dataset.test_images[:50],
        test_labels=dataset.test_labels[:50],
    )
    run(settings, dataset)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["dataset"] == "mnist"
    assert np.isfinite([results["test_elbo"], results["test_log_likelihood"]]).all()
    assert results["test_elbo"] < 0


def test_without_network_or_files_one_line_says_where_it_looked_and_what_to_do(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "experiments.mnist", f"--tfds_dir={tmp_path / 'tfds'}"],
        cwd=tmp_path,
        # A proxy that nobody listens at, so that there is no network whatever the machine has.
        env={**os.environ, "PYTHONPATH": str(ROOT), "HTTPS_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    for part in (str(tmp_path / "tfds"), "train-images-idx3-ubyte.gz", "--data_dir"):
        assert part in result.stderr
    assert "experiments.digits, which needs no files" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_the_original_is_refused_by_its_name(tmp_path):
    folder = small_files.write_mnist(tmp_path / "files")
    digest = hashlib.sha256((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()).hexdigest()
    assert digest not in (ROOT / "lvae_jax/data/checksums.tsv").read_text()
    result = subprocess.run(
        [
            sys.executable, "-m", "experiments.mnist",
            f"--data_dir={folder}", f"--tfds_dir={tmp_path / 'tfds'}",
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "-ubyte.gz" in result.stderr
    assert "it is cut short or not the original" in result.stderr
