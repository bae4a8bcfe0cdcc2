"""The real files are tested too where LVAE_JAX_TEST_DATA names a folder with fashion_mnist/."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from small_files import small_source, write_mnist

from lvae_jax.data import DataError, fashion_mnist

DATA = os.environ.get("LVAE_JAX_TEST_DATA")


@pytest.fixture
def data_dir(tmp_path):
    return write_mnist(tmp_path / "original")


def test_fashion_mnist_is_the_original_files_in_their_order(data_dir, tmp_path, monkeypatch):
    source = small_source(data_dir, fashion_mnist.SOURCE)
    monkeypatch.setattr(fashion_mnist, "SOURCE", source)
    dataset = fashion_mnist.load(data_dir, tmp_path / "tfds")
    assert dataset.name == "fashion_mnist"
    assert (dataset.observation, dataset.binarisation) == ("bernoulli", "dynamic")
    content = gzip.decompress((data_dir / "t10k-images-idx3-ubyte.gz").read_bytes())
    grey = np.frombuffer(content[16:], np.uint8).reshape(20, 28, 28)
    np.testing.assert_array_equal(dataset.test_images, grey, strict=True)
    assert dataset.train_labels[:5].tolist() == [0, 7, 4, 1, 8]


def test_other_observations_are_refused():
    with pytest.raises(DataError) as caught:
        fashion_mnist.load(observation="gaussian")
    message = "observation is 'gaussian'; it must be one of bernoulli, discretized_logistic"
    assert str(caught.value) == f"fashion_mnist: {message}"


@pytest.mark.skipif(not DATA, reason="LVAE_JAX_TEST_DATA is not set")
def test_the_real_files_hold_as_many_images_of_every_class(real_tfds_dir):
    folder = real_tfds_dir(fashion_mnist)
    dataset = fashion_mnist.load(Path(DATA) / "fashion_mnist", folder)
    assert np.bincount(dataset.train_labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10
    # The mean and deviation of a training pixel, as published with the data set.
    pixels = dataset.train_images / 255
    assert (round(pixels.mean(), 4), round(pixels.std(), 4)) == (0.2860, 0.3530)


def test_files_of_mnist_are_refused_although_their_names_are_right(data_dir, tmp_path):
    with pytest.raises(DataError) as caught:
        fashion_mnist.load(data_dir, tmp_path / "tfds")
    path = data_dir / "train-images-idx3-ubyte.gz"
    assert str(caught.value).startswith(f"lvae_fashion_mnist: {path} is not the original file: ")
