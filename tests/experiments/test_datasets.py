"""Every data set's experiment: from its files to results, and what is said of bad ones."""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_files
from PIL import Image

from experiments import arrays, binarized_mnist, cli, digits, fashion_mnist, mnist, norb, omniglot
from experiments.run.loop import run
from experiments.settings import Settings
from lvae_jax import data
from lvae_jax.data import DataError, Dataset

ROOT = Path(__file__).parents[2]

TINY = {
    "depth": 1,
    "latent_sizes": (4,),
    "hidden_sizes": (16,),
    "epochs": 3,
    "warmup_epochs": 2,
    "batch_size": 10,
    "eval_every": 0,
    "eval_samples": 3,
}


def run_tiny(experiment, defaults: Settings, workdir: Path, **settings) -> tuple[Dataset, dict]:
    """Three epochs of one layer on a few of the images; the data set and results.json.

    The run was of these images, and its log-likelihood is that of a model of hardly trained bits.
    """
    settings = dataclasses.replace(defaults, workdir=str(workdir), **TINY, **settings)
    dataset = experiment.load(settings)
    few = dataclasses.replace(
        dataset,
        train_images=dataset.train_images[:100],
        train_labels=dataset.train_labels[:100],
        test_images=dataset.test_images[:50],
        test_labels=dataset.test_labels[:50],
    )
    run(settings, few)
    config, results = (
        json.loads((workdir / f"{name}.json").read_text()) for name in ("config", "results")
    )
    images = few.train_images.tobytes() + few.test_images.tobytes()
    assert config["data_sha256"] == hashlib.sha256(images).hexdigest()
    if dataset.observation == "bernoulli":
        # A probability is at most 1, and a model that knows nothing gives each bit one half.
        bits = results["test_log_likelihood"] / (dataset.data_dim * math.log(2))
        assert -2 < bits < 0
    return dataset, results


@pytest.fixture
def folders_of(tmp_path, real_tfds_dir, monkeypatch):
    """A function of an experiment's name: where its files are, and where they are prepared.

    The files are the real ones where available, else small ones.
    """

    def folders(experiment: str) -> tuple[Path, Path]:
        module = getattr(data, "small_norb" if experiment == "norb" else experiment)
        real = Path(os.environ.get("LVAE_JAX_TEST_DATA", "nowhere")) / experiment
        if real.is_dir():
            prepared = module is not data.omniglot  # whose stand-in is read as it is
            return real, real_tfds_dir(module) if prepared else tmp_path / "tfds"
        small = small_files.WRITERS[module](tmp_path / "files")
        monkeypatch.setattr(module, "SOURCE", small_files.small_source(small, module.SOURCE))
        return small, tmp_path / "tfds"

    return folders


@pytest.mark.parametrize(
    ("experiment", "names", "data_dim", "given"),
    [
        (mnist, ["mnist"], 784, {}),
        (fashion_mnist, ["fashion_mnist"], 784, {"observation": "discretized_logistic"}),
        (binarized_mnist, ["binarized_mnist"], 784, {}),
        (omniglot, ["omniglot", "omniglot-standin"], 784, {}),
        (norb, ["small_norb"], 1024, {}),
    ],
)
def test_a_data_set_is_prepared_from_its_files_trained_on_and_evaluated(
    experiment, names, data_dim, given, folders_of, tmp_path, without_figures
):
    folder, tfds_dir = folders_of(experiment.__name__.split(".")[-1])
    defaults = getattr(experiment, "DEFAULTS", Settings())
    nowhere = {"data_dir": str(tmp_path / "no files"), "tfds_dir": str(tmp_path / "none prepared")}
    with pytest.raises(DataError, match="no files is not a folder"):
        experiment.load(dataclasses.replace(defaults, **nowhere))
    dataset, results = run_tiny(
        experiment,
        defaults,
        tmp_path / "run",
        data_dir=str(folder),
        tfds_dir=str(tfds_dir),
        **given,
    )
    assert dataset.data_dim == data_dim
    assert results["dataset"] in names
    assert ("standin" in results["dataset"]) == (folder / "chardata_standin.mat").exists()
    if given:
        assert (dataset.observation, dataset.binarisation) == ("discretized_logistic", "none")
        # Of 784 pixels with 256 values each no model gives a mass above 1, and none need be this
        # bad.
        assert -784 * 20 < results["test_log_likelihood"] < 0


def test_digits_are_trained_on_as_continuous_values(tmp_path, without_figures):
    dataset, results = run_tiny(digits, digits.DEFAULTS, tmp_path / "run", continuous=True)
    assert results["dataset"] == dataset.name == "digits-continuous"
    assert (dataset.observation, dataset.binarisation) == ("gaussian", "none")


def test_own_arrays_of_any_shape_are_trained_on_and_drawn(tmp_path):
    generator = np.random.default_rng(0)
    np.save(tmp_path / "volumes.npy", generator.random((150, 40, 5, 2)))
    dataset, _ = run_tiny(
        arrays,
        arrays.DEFAULTS,
        tmp_path / "run",
        train=str(tmp_path / "volumes.npy"),
        observation="gaussian",
        holdout=1 / 3,
    )
    assert (dataset.name, dataset.image_shape) == ("volumes", (40, 5, 2))
    assert (len(dataset.train_images), len(dataset.test_images)) == (100, 50)
    # Of the data sets here they alone are drawn: their shape is the one that no other run's has.
    for name in ("samples", "reconstructions", "layers", "interpolations"):
        with Image.open(tmp_path / "run" / "figures" / f"{name}.png") as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 0
            assert max(image.size) < 2000


def test_bad_arrays_end_in_one_line_with_status_2_and_nothing_created(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "bad.npy", np.array([[1.0, np.nan], [0.0, 1.0]]))
    np.save(tmp_path / "unit.npy", np.linspace(0, 1, 40).reshape(20, 2))
    np.save(tmp_path / "grey.npy", np.linspace(0, 255, 40).reshape(20, 2))
    before = sorted(tmp_path.iterdir())
    unit_and_grey = {"train": "unit.npy", "test": "grey.npy", "observation": "gaussian"}
    for given, message in (
        (unit_and_grey, "unit.npy runs from 0 to 1 but grey.npy from 0 to 255: they are on"),
        ({}, "--train is not given; name a .npy or .npz file of images"),
    ):
        with pytest.raises(SystemExit) as stopped, cli.errors_in_one_line():
            arrays.load(dataclasses.replace(arrays.DEFAULTS, **given))
        assert stopped.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: {message}")
        assert line.count("\n") == 1
    for arguments, message in (
        (
            ["--train=bad.npy", "--test=bad.npy"],
            "bad.npy holds values that are not finite, ",
        ),
        (["--train=bad.npy", "--holdout=1"], "flag --holdout=1: give a number between 0 and 1"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "experiments.arrays", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before


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
    for part in (str(tmp_path / "tfds"), "train-images-idx3-ubyte.gz", "data_dir"):
        assert part in result.stderr
    assert "or use the digits, which need no files" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_the_original_is_refused_by_its_name(tmp_path, capsys):
    folder = small_files.write_mnist(tmp_path / "files")
    settings = Settings(data_dir=str(folder), tfds_dir=str(tmp_path / "tfds"))
    with pytest.raises(SystemExit) as stopped, cli.errors_in_one_line():
        mnist.load(settings)
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "-ubyte.gz" in line
    assert "is not the original file: its sha256 is " in line
