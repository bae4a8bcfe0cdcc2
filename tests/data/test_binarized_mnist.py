"""The real files are tested too where LVAE_JAX_TEST_DATA names a folder with binarized_mnist/."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from small_files import small_source, write_binarized_mnist

from lvae_jax.data import DataError, binarized_mnist
from lvae_jax.data.binarized_mnist import read_amat

DATA = os.environ.get("LVAE_JAX_TEST_DATA")
SIZES = {"small": (20, 10, 20), "real": (50_000, 10_000, 10_000)}


@pytest.fixture
def data_dir(tmp_path):
    return write_binarized_mnist(tmp_path / "original")


@pytest.fixture(scope="module")
def small_tfds_dir(tmp_path_factory):
    """So that the small files are prepared once."""
    return tmp_path_factory.mktemp("small")


@pytest.fixture(params=["small", "real"] if DATA else ["small"])
def files(request, data_dir, small_tfds_dir, real_tfds_dir, monkeypatch):
    """Which files, the folder that holds them and the data set."""
    if request.param == "real":
        folder, tfds_dir = Path(DATA) / "binarized_mnist", real_tfds_dir(binarized_mnist)
    else:
        folder, tfds_dir = data_dir, small_tfds_dir
        monkeypatch.setattr(binarized_mnist, "SOURCE", small_source(folder, binarized_mnist.SOURCE))
    return request.param, folder, binarized_mnist.load(folder, tfds_dir)


def first_and_last_rows(folder, split):
    """Read as a person would: line by line."""
    path = binarized_mnist.SOURCE.find(folder)[f"binarized_mnist_{split}.amat"]
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()
    return [[int(pixel) for pixel in line.split()] for line in (lines[0], lines[-1])]


def test_images_are_in_the_order_of_the_files_with_the_validation_file_last(files):
    kind, folder, dataset = files
    train, valid, test = SIZES[kind]
    assert dataset.train_images.shape == (train + valid, 28, 28)
    assert dataset.test_images.shape == (test, 28, 28)
    assert dataset.train_images.dtype == np.uint8
    for split, images in (
        ("train", dataset.train_images[:train]),
        ("valid", dataset.train_images[train:]),
        ("test", dataset.test_images),
    ):
        first, last = first_and_last_rows(folder, split)
        np.testing.assert_array_equal(images[0].reshape(-1) / 255, first)
        np.testing.assert_array_equal(images[-1].reshape(-1) / 255, last)


def test_it_came_binarised_and_its_labels_are_unknown(files):
    _, _, dataset = files
    assert dataset.name == "binarized_mnist"
    assert (dataset.observation, dataset.binarisation) == ("bernoulli", "fixed")
    assert np.unique(dataset.train_images).tolist() == [0, 255]
    assert np.unique(dataset.train_labels).tolist() == [-1]
    assert np.unique(dataset.test_labels).tolist() == [-1]
    np.testing.assert_array_equal(dataset.test_x(), dataset.test_images.reshape(-1, 784) == 255)


def test_packed_files_serve_as_well(data_dir, tmp_path, monkeypatch):
    source = small_source(data_dir, binarized_mnist.SOURCE)
    monkeypatch.setattr(binarized_mnist, "SOURCE", source)
    plain = binarized_mnist.load(data_dir, tmp_path / "plain")
    for file in source.files[:2]:  # and one as it was
        path = data_dir / file.name
        path.with_name(f"{file.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = binarized_mnist.load(data_dir, tmp_path / "packed")
    np.testing.assert_array_equal(packed.train_images, plain.train_images)
    np.testing.assert_array_equal(packed.test_images, plain.test_images)


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_a_packed_file_is_checked_too(data_dir, tmp_path, monkeypatch, damage):
    source = small_source(data_dir, binarized_mnist.SOURCE)
    monkeypatch.setattr(binarized_mnist, "SOURCE", source)
    path = data_dir / source.files[0].name
    packed = path.with_name(f"{path.name}.gz")
    content = path.read_bytes()
    if damage == "other":
        packed.write_bytes(gzip.compress(bytes([content[0] ^ 1]) + content[1:]))
    else:
        packed.write_bytes(gzip.compress(content)[:-100])
    path.unlink()
    with pytest.raises(DataError) as caught:
        binarized_mnist.load(data_dir, tmp_path / "tfds")
    messages = {
        "other": f"lvae_binarized_mnist: {packed} is not the original file: its sha256 is ",
        "cut": f"{packed} cannot be read (Compressed file ended before the end-of-stream marker "
        "was reached); download it again",
    }
    assert str(caught.value).startswith(messages[damage])
    assert not (tmp_path / "tfds" / source.name / source.version).exists()


ROW = " ".join("01" * 392) + "\n"


def test_zeros_and_ones_become_black_and_full_pixels(tmp_path):
    path = tmp_path / "images.amat"
    path.write_text(ROW + ROW.replace("0", "1"))
    images = read_amat(path)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[0], np.tile([0, 255], 392).reshape(28, 28))
    np.testing.assert_array_equal(images[1], np.full((28, 28), 255))
