import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvae_jax.data import (
    DataError,
    Dataset,
    as_stored,
    binarise,
    binarise_once,
    dequantise,
    dequantise_once,
    flatten,
)
from lvae_jax.data.dataset import shown_reason


def make(**changes):
    fields = {
        "name": "toy",
        "train_images": np.zeros((5, 2, 3), np.uint8),
        "train_labels": np.zeros(5, np.int32),
        "test_images": np.zeros((4, 2, 3), np.uint8),
        "test_labels": np.zeros(4, np.int32),
        "observation": "bernoulli",
        "binarisation": "dynamic",
    }
    return Dataset(**(fields | changes))


def make_float(values, **changes):
    images = np.broadcast_to(np.asarray(values, np.float32), (4, 3)).copy()
    labels = np.zeros(4, np.int32)
    arrays = {"train_images": images, "train_labels": labels}
    return make(**(arrays | {"test_images": images, "test_labels": labels} | changes))


def test_image_shape_and_data_dim_are_those_of_one_image():
    dataset = make()
    assert dataset.image_shape == (2, 3)
    assert dataset.data_dim == 6


def test_a_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().name = "other"


def test_gaussian_images_may_have_any_finite_value():
    dataset = make_float([-3.0, 0.5, 7.0], observation="gaussian", binarisation="none")
    assert dataset.data_dim == 3


def test_fixed_binarisation_is_zero_and_full():
    make_float([0.0, 1.0, 0.0], binarisation="fixed")
    images = np.full((5, 2, 3), 255, np.uint8)
    make(train_images=images, binarisation="fixed")


GREY = np.random.default_rng(0).integers(0, 256, (4, 2, 3), np.uint8)
CONTINUOUS = {"observation": "gaussian", "binarisation": "none", "dequantisation": 1 / 256}


def test_the_checksum_is_of_the_images_alone(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    expected = hashlib.sha256(bytes(range(24)) + bytes(24)).hexdigest()
    fields = {"train_images": grey, "train_labels": np.zeros(4, np.int32)}
    assert make(**fields).sha256() == expected
    assert make(**fields, name="other", test_labels=np.ones(4, np.int32)).sha256() == expected
    mapped = np.memmap(tmp_path / "a", np.uint8, "w+", shape=(4, 2, 3))
    mapped[:] = grey
    assert make(**fields | {"train_images": mapped}).sha256() == expected
    assert make(**fields | {"train_images": np.asfortranarray(grey)}).sha256() == expected


def test_dynamic_binarisation_is_binarise_and_binarise_once():
    dataset = make(test_images=GREY)
    assert dataset.preprocess is binarise
    expected = binarise_once(GREY).astype(np.float32)
    np.testing.assert_array_equal(dataset.test_x(), expected, strict=True)


def test_fixed_binarisation_is_as_stored():
    dataset = make(test_images=(GREY > 127) * np.uint8(255), binarisation="fixed")
    assert dataset.preprocess is as_stored
    expected = (GREY > 127).reshape(4, 6).astype(np.float32)
    np.testing.assert_array_equal(dataset.test_x(), expected, strict=True)


def test_grey_values_without_dequantisation_are_as_stored():
    dataset = make(test_images=GREY, observation="gaussian", binarisation="none")
    assert dataset.preprocess is as_stored
    expected = np.asarray(flatten(jnp.asarray(GREY)))
    np.testing.assert_array_equal(dataset.test_x(), expected, strict=True)


def test_dequantisation_is_dequantise_and_dequantise_once():
    dataset = make(test_images=GREY, **CONTINUOUS)
    key = jax.random.key(0)
    np.testing.assert_array_equal(dataset.preprocess(key, GREY), dequantise(key, GREY))
    np.testing.assert_array_equal(dataset.test_x(), dequantise_once(GREY), strict=True)


def test_the_width_of_dequantisation_is_used():
    dataset = make(test_images=GREY, **(CONTINUOUS | {"dequantisation": 1 / 16}))
    key = jax.random.key(0)
    expected = dequantise(key, GREY, width=1 / 16)
    np.testing.assert_array_equal(dataset.preprocess(key, GREY), expected)
    np.testing.assert_array_equal(dataset.test_x(), dequantise_once(GREY, 1 / 16))


def test_preprocess_is_one_object_so_that_nothing_is_compiled_twice():
    dataset = make(**CONTINUOUS)
    assert dataset.preprocess is dataset.preprocess
    assert dataset.preprocess is make(**CONTINUOUS).preprocess


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observation": "poisson"},
            "toy: observation is 'poisson'; it must be one of bernoulli, gaussian, "
            "discretized_logistic",
        ),
        (
            {"binarisation": "static"},
            "toy: binarisation is 'static'; it must be one of dynamic, fixed, none",
        ),
        (
            {"observation": "gaussian"},
            "toy: binarisation is 'dynamic' with a gaussian observation; zeros and ones need "
            "observation='bernoulli', other data binarisation='none'",
        ),
        (
            {"dequantisation": 1 / 16},
            "toy: dequantisation is 0.0625 with a bernoulli observation; continuous values need "
            "observation='gaussian'",
        ),
        (
            CONTINUOUS | {"dequantisation": -0.5},
            "toy: dequantisation is -0.5; it must be the distance between two grey levels, such "
            "as 1/256, or 0",
        ),
        (
            CONTINUOUS | {"dequantisation": np.inf},
            "toy: dequantisation is inf; it must be the distance between two grey levels, such as "
            "1/256, or 0",
        ),
        (
            {"train_images": np.zeros((5, 2, 3))},
            "toy: train_images are float64; give a NumPy array of uint8 or float32",
        ),
        (
            {"test_images": [[0.0]]},
            "toy: test_images are list; give a NumPy array of uint8 or float32",
        ),
        (
            {"test_images": np.zeros((0, 2, 3), np.uint8), "test_labels": np.zeros(0, np.int32)},
            "toy: test_images have the shape [0, 2, 3]; expected [n, *image_shape] with at least "
            "one image of at least one value",
        ),
        (
            {"train_images": np.zeros(5, np.uint8)},
            "toy: train_images have the shape [5]; expected [n, *image_shape] with at least one "
            "image of at least one value",
        ),
        (
            {"train_labels": np.zeros(5, np.int64)},
            "toy: train_labels are int64; give a NumPy array of int32",
        ),
        (
            {"train_labels": np.zeros((5, 1), np.int32)},
            "toy: train_labels have the shape [5, 1]; expected [5], one label per image",
        ),
        (
            {"test_images": np.zeros((4, 3, 2), np.uint8)},
            "toy: train_images are uint8 [2, 3] but test_images are uint8 [3, 2]; both must have "
            "the same dtype and image shape",
        ),
        (
            {"test_images": np.zeros((4, 2, 3), np.float32)},
            "toy: train_images are uint8 [2, 3] but test_images are float32 [2, 3]; both must "
            "have the same dtype and image shape",
        ),
        (
            {"train_images": np.ones((5, 2, 3), np.uint8), "binarisation": "fixed"},
            "toy: train_images hold values other than 0 and 255, the two of fixed binarisation in "
            "uint8; rescale them or use binarisation='dynamic'",
        ),
        (
            {"train_images": np.ma.masked_less(np.zeros((5, 2, 3), np.uint8), 1)},
            "toy: train_images are masked; fill the missing values or drop the images",
        ),
        (
            CONTINUOUS
            | {"train_images": np.full((5, 2, 3), 0.1, np.float32), "dequantisation": 1 / 16},
            "toy: train_images are not multiples of dequantisation=0.0625, which must be the "
            "distance between two grey levels",
        ),
        (
            {"train_images": np.ones((5, 2, 3), np.uint8)},
            "toy: images are zeros and ones in uint8, where 255 is full; give them as float32 with "
            "binarisation='fixed'",
        ),
    ],
)
def test_a_field_that_does_not_fit_is_named(changes, message):
    with pytest.raises(DataError) as caught:
        make(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("observation", ["bernoulli", "gaussian"])
def test_values_that_are_not_finite_are_refused(value, observation):
    with pytest.raises(DataError) as caught:
        make_float([0.0, value, 1.0], observation=observation, binarisation="none")
    assert str(caught.value) == (
        "toy: train_images hold values that are not finite, 4 of 12, the first at [0, 1]; "
        "remove or replace them"
    )


@pytest.mark.parametrize(("value", "shown"), [(-0.5, "-0.5 to 1"), (2.0, "0 to 2")])
def test_bernoulli_values_outside_the_unit_interval_are_refused(value, shown):
    with pytest.raises(DataError) as caught:
        make_float([0.0, value, 1.0])
    assert str(caught.value) == (
        f"toy: train_images run from {shown}; a bernoulli observation needs values in [0, 1], so "
        "rescale them or use observation='gaussian'"
    )


@pytest.mark.parametrize(
    ("error", "shown"), [(ValueError("one\n  two"), "one two"), (EOFError(), "EOFError")]
)
def test_an_error_of_another_package_is_shown_in_one_line(error, shown):
    assert shown_reason(error) == shown
