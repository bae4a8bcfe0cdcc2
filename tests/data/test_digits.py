import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tolerances import float32_error, threshold

from lvae_jax.data import DataError, digits


def rows(images, labels):
    """Each image with its label, as bytes that can be counted and sorted."""
    grey = np.rint(images.reshape(len(images), -1) * 16).astype(np.uint8)
    return [(image.tobytes(), int(label)) for image, label in zip(grey, labels, strict=True)]


def test_digits_are_1500_training_and_297_test_images():
    dataset = digits.load()
    assert dataset.name == "digits"
    assert dataset.train_images.shape == (1500, 8, 8)
    assert dataset.test_images.shape == (297, 8, 8)
    assert dataset.data_dim == 64
    assert (dataset.observation, dataset.binarisation) == ("bernoulli", "dynamic")


def test_digits_are_sixteenths_in_float32():
    dataset = digits.load()
    for images in (dataset.train_images, dataset.test_images):
        assert images.dtype == np.float32
        assert np.array_equal(images * 16, np.rint(images * 16))
        assert images.min() == 0
        assert images.max() == 1


def test_the_two_parts_are_all_of_scikit_learns_digits_once():
    dataset, original = digits.load(), load_digits()
    parts = rows(dataset.train_images, dataset.train_labels)
    parts += rows(dataset.test_images, dataset.test_labels)
    assert sorted(parts) == sorted(rows(original.images / 16, original.target))


def test_every_class_is_in_both_parts_in_proportion():
    dataset = digits.load()
    train = np.bincount(dataset.train_labels, minlength=10) / 1500
    test = np.bincount(dataset.test_labels, minlength=10) / 297
    # Ten proportions of about 0.1, in a split at random.
    error = np.sqrt(0.1 * 0.9 * (1 / 297 + 1 / 1500))
    assert np.all(np.abs(train - test) < threshold(comparisons=10) * error)


def test_the_split_is_the_one_it_was_published_with():
    # Written down when the seed was chosen: if it fails, earlier numbers no longer compare.
    dataset = digits.load()
    assert dataset.train_labels[:10].tolist() == [5, 0, 0, 0, 1, 3, 6, 5, 6, 6]
    assert dataset.test_labels[:10].tolist() == [2, 0, 3, 6, 3, 9, 9, 2, 7, 6]


def test_continuous_digits_are_the_same_images_dequantised():
    dataset, continuous = digits.load(), digits.load(continuous=True)
    assert continuous.name == "digits-continuous"
    assert (continuous.observation, continuous.binarisation) == ("gaussian", "none")
    assert continuous.dequantisation == 1 / 16
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(continuous, field), getattr(dataset, field))
    levels = np.floor(continuous.test_x() * 16 + float32_error(1, 16))  # k of (k + u) / 16
    np.testing.assert_array_equal(levels.reshape(-1, 8, 8) / 16, dataset.test_images)


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError) as caught:
        digits.load()
    message = str(caught.value)
    assert message.startswith("digits needs scikit-learn (")
    assert message.endswith('); pip install "lvae-jax[experiments]"')
