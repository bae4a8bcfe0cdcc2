"""The real files are tested too where LVAE_JAX_TEST_DATA names a folder that has them in mnist/."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import small_files

from lvae_jax.data import mnist

# A digit's number of images. The small ones are 7 i modulo 10, i = 0..29 and 0..19.
COUNTS = {
    "small": ([3] * 10, [2] * 10),
    "real": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
}
DATA = os.environ.get("LVAE_JAX_TEST_DATA")


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    return small_files.write_mnist(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def small_tfds_dir(tmp_path_factory):
    """So that the small files are prepared once."""
    return tmp_path_factory.mktemp("small")


@pytest.fixture(params=["small", "real"] if DATA else ["small"])
def files(request, small_folder, small_tfds_dir, real_tfds_dir, monkeypatch):
    """Which files, the folder that holds them and the folder where they are prepared."""
    if request.param == "real":
        return "real", Path(DATA) / "mnist", real_tfds_dir(mnist)
    monkeypatch.setattr(mnist, "SOURCE", small_files.small_source(small_folder))
    return "small", small_folder, small_tfds_dir


@pytest.fixture
def small_dir(tmp_path):
    return small_files.write_mnist(tmp_path / "original")


def values(path, header):
    """The values after an IDX header of known length."""
    return np.frombuffer(gzip.decompress(path.read_bytes())[header:], np.uint8)


def test_mnist_is_the_original_files_in_their_order(files):
    _, folder, tfds_dir = files
    dataset = mnist.load(folder, tfds_dir)
    for prefix, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("t10k", dataset.test_images, dataset.test_labels),
    ):
        grey = values(folder / f"{prefix}-images-idx3-ubyte.gz", 16)
        digit = values(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)
        np.testing.assert_array_equal(images, grey.reshape(-1, 28, 28), strict=True)
        np.testing.assert_array_equal(labels, digit.astype(np.int32), strict=True)


def test_mnist_has_all_images_of_every_digit(files):
    kind, folder, tfds_dir = files
    dataset = mnist.load(folder, tfds_dir)
    train, test = COUNTS[kind]
    assert np.bincount(dataset.train_labels).tolist() == train
    assert np.bincount(dataset.test_labels).tolist() == test
    assert dataset.train_images.shape == (sum(train), 28, 28)
    assert dataset.test_images.shape == (sum(test), 28, 28)


def test_mnist_is_binary_and_binarised_dynamically(files):
    _, folder, tfds_dir = files
    dataset = mnist.load(folder, tfds_dir)
    assert dataset.name == "mnist"
    assert dataset.data_dim == 784
    assert (dataset.observation, dataset.binarisation) == ("bernoulli", "dynamic")
