import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close, threshold

from lvae_jax.data import (
    binarise,
    binarise_once,
    dequantise,
    dequantise_once,
    flatten,
    to_unit,
)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.uint16])
@pytest.mark.parametrize(
    "function",
    [
        to_unit,
        flatten,
        binarise_once,
        lambda images: binarise(jax.random.key(0), images),
        lambda images: dequantise(jax.random.key(0), images),
        dequantise_once,
    ],
)
def test_integers_that_may_be_grey_values_or_bits_are_refused(function, dtype):
    with pytest.raises(TypeError, match=f"images are {np.dtype(dtype)}; give uint8 grey values"):
        function(np.full((2, 3), 100, dtype))


def grey_levels(dtype, copies):
    """`copies` images, each holding every one of the 256 grey levels once."""
    levels = np.arange(256, dtype=np.uint8)
    if dtype == np.float32:
        levels = levels.astype(np.float32) / np.float32(255)
    return np.broadcast_to(levels.reshape(16, 16), (copies, 16, 16)).copy()


def assert_binomial(ones, trials):
    """Each grey level k was 1 about k/255 of the time, and black and full pixels exactly."""
    probability = np.arange(256) / 255
    deviation = np.sqrt(trials * probability * (1 - probability))
    assert ones[0] == 0
    assert ones[255] == trials
    limit = threshold(comparisons=256)
    assert np.all(np.abs(ones - trials * probability) <= limit * deviation)


def test_to_unit_divides_uint8_by_255():
    grey = to_unit(np.array([[0, 51, 102, 255]], np.uint8))
    assert grey.dtype == jnp.float32
    assert_close(grey, [[0.0, 0.2, 0.4, 1.0]], roundings=1)
    assert float(grey[0, 3]) == 1.0


def test_to_unit_leaves_float32_alone():
    values = np.array([[-3.0, 0.25, 7.0]], np.float32)
    np.testing.assert_array_equal(to_unit(values), values)


def test_flatten_keeps_images_as_rows():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    x = flatten(images)
    assert x.shape == (2, 12)
    assert_close(x[1], np.arange(12, 24) / 255, roundings=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_binarise_draws_each_pixel_with_the_probability_of_its_grey_value(dtype):
    trials = 4000
    x = binarise(jax.random.key(0), grey_levels(dtype, trials))
    assert x.shape == (trials, 256)
    assert x.dtype == jnp.float32
    assert set(np.unique(x)) == {0.0, 1.0}
    assert_binomial(np.asarray(x).sum(0), trials)


def test_a_black_pixel_stays_black_where_the_uniform_draw_is_exactly_zero():
    # Uniform draws are multiples of 2^-23: every other key of these has a zero among its draws.
    black = np.zeros((64, 2**16), np.uint8)
    key = next(
        key
        for key in jax.random.split(jax.random.key(4), 100)
        if jnp.any(jax.random.uniform(key, (black.size,), jnp.float32) == 0)
    )
    assert not np.any(binarise(key, black))


def test_binarise_draws_pixels_and_images_independently():
    grey = np.full((2000, 2), 0.5, np.float32)
    x = np.asarray(binarise(jax.random.key(1), grey))
    # Products of +-1 have mean 0 and variance 1 when the factors are independent.
    signs = 2 * x - 1
    for product in (signs[:, 0] * signs[:, 1], signs[1:, 0] * signs[:-1, 0]):
        assert abs(product.sum()) < threshold(comparisons=2) * np.sqrt(product.size)


def test_binarise_depends_on_the_key_alone():
    images = grey_levels(np.uint8, 3)
    first = binarise(jax.random.key(0), images)
    np.testing.assert_array_equal(first, binarise(jax.random.key(0), images))
    assert not np.array_equal(first, binarise(jax.random.key(1), images))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_binarise_is_the_same_under_jit(dtype):
    key, images = jax.random.key(2), grey_levels(dtype, 3)
    np.testing.assert_array_equal(jax.jit(binarise)(key, images), binarise(key, images))


def test_binarise_is_the_same_under_vmap():
    keys, images = jax.random.split(jax.random.key(3), 4), grey_levels(np.uint8, 3)
    over_keys = jax.vmap(binarise, in_axes=(0, None))(keys, images)
    assert over_keys.shape == (4, 3, 256)
    np.testing.assert_array_equal(over_keys[2], binarise(keys[2], images))
    batches = jnp.stack([images] * 4)
    np.testing.assert_array_equal(jax.vmap(binarise)(keys, batches), over_keys)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_binarise_once_draws_each_pixel_with_the_probability_of_its_grey_value(dtype):
    trials = 4000
    pixels = binarise_once(grey_levels(dtype, trials))
    assert pixels.shape == (trials, 256)
    assert pixels.dtype == np.uint8
    assert set(np.unique(pixels)) == {0, 1}
    assert_binomial(pixels.sum(0), trials)


def test_binarise_once_is_always_the_same():
    images = grey_levels(np.uint8, 5)
    np.random.seed(0)  # noqa: NPY002  (the global generator must not matter)
    first = binarise_once(images)
    np.random.seed(1)  # noqa: NPY002
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(binarise_once(images), first)
    np.testing.assert_array_equal(binarise_once(images[:2]), first[:2])


def test_binarise_once_has_the_stream_it_was_published_with():
    # Written down when the seed was chosen: if it fails, earlier test numbers no longer compare.
    half = np.full((2, 16), 0.5, np.float32)
    assert ["".join(map(str, row)) for row in binarise_once(half)] == [
        "0000110001011111",
        "0010000001000101",
    ]
