import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tolerances import assert_close, assert_plausible, float32_error

from lvae_jax.data import dequantise, dequantise_once


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)


def noise(x, images, width):
    """What was added, in widths of a level."""
    grey = images.reshape(len(images), -1).astype(np.float64)
    return np.asarray(x, np.float64) / width - (grey if images.dtype == np.uint8 else grey / width)


def assert_uniform(u, width):
    """Within [0, 1) up to the rounding of grey values up to 1, and not told from uniform draws."""
    rounding = float32_error(2, 1 + width) / width
    assert u.min() > -rounding
    assert u.max() < 1 + rounding
    assert_plausible(stats.kstest(u.reshape(-1), "uniform").pvalue)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_is_uniform_and_as_wide_as_a_level(dtype):
    images = np.repeat(LEVELS, 40, 0)
    if dtype == np.float32:
        images = images.astype(np.float32) / 256
    for x in (dequantise(jax.random.key(0), images), dequantise_once(images)):
        assert x.shape == (40, 256)
        assert x.dtype == np.float32
        assert x.min() >= 0
        assert x.max() <= 1
        assert_uniform(noise(x, images, 1 / 256), 1 / 256)


def test_the_scale_costs_a_logarithm_per_pixel():
    # Density of (grey + u)/256 and of (grey + u)/255 differ by the ratio of their widths.
    finer, coarser = dequantise_once(LEVELS), dequantise_once(LEVELS, 1 / 255)
    assert_close(coarser / finer, np.full((1, 256), 256 / 255), roundings=4)
    assert round(1024 * np.log(256 / 255), 1) == 4.0  # as the documentation says of 1,024 pixels


def test_the_width_is_that_of_the_levels():
    images = np.broadcast_to(np.arange(17, dtype=np.float32) / 16, (500, 17)).copy()
    for x in (dequantise(jax.random.key(1), images, 1 / 16), dequantise_once(images, 1 / 16)):
        assert_uniform(noise(x, images, 1 / 16), 1 / 16)


def test_dequantise_depends_on_the_key_alone():
    first = dequantise(jax.random.key(0), LEVELS)
    np.testing.assert_array_equal(first, dequantise(jax.random.key(0), LEVELS))
    assert not np.array_equal(first, dequantise(jax.random.key(1), LEVELS))


def test_dequantise_agrees_under_jit_and_vmap():
    keys = jax.random.split(jax.random.key(3), 4)
    expected = jnp.stack([dequantise(key, LEVELS) for key in keys])
    over_keys = jax.vmap(dequantise, in_axes=(0, None))(keys, LEVELS)
    assert_close(over_keys, expected, roundings=2, size=1)
    assert_close(jax.jit(dequantise)(keys[0], LEVELS), expected[0], roundings=2, size=1)


def test_dequantise_once_is_always_the_same():
    images = np.repeat(LEVELS, 5, 0)
    np.random.seed(0)  # noqa: NPY002  (the global generator must not matter)
    first = dequantise_once(images)
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(dequantise_once(images), first)
    np.testing.assert_array_equal(dequantise_once(images[:2]), first[:2])


def test_dequantise_once_has_the_stream_it_was_published_with():
    # Written down when the seed was chosen: if it fails, earlier test numbers no longer compare.
    black = np.zeros((1, 4), np.uint8)
    assert (dequantise_once(black, 1.0)[0] * 1000).astype(int).tolist() == [698, 791, 992, 963]
