"""From grey levels to continuous values: uniform noise as wide as a level.

The likelihood of discrete grey levels under a Gaussian is unbounded, because Gaussians around the
levels can become arbitrarily narrow. Noise spreads each level over its own interval (Uria, Murray
and Larochelle, 2013). Training images get noise anew every epoch (`dequantise`); test images get it
once (`dequantise_once`), so that every run, whatever its seed, is tested on the same values.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Key

from lvae_jax.data.binarisation import Images, refuse_other_integers

TEST_DEQUANTISATION_SEED = 20160207
"""Seed of the fixed noise of test images; changing it changes every reported number."""


def dequantise(
    key: Key[Array, ""], images: Images, width: float = 1 / 256
) -> Float32[Array, "batch data_dim"]:
    """Adds noise u, uniform on [0, 1) in units of a grey level.

    Args:
      key: A JAX random key.
      images: uint8 grey levels 0..255, or float32 multiples of `width`.
      width: The distance between two grey levels in x.

    Returns:
      x, one row per image: width · (grey + u) for uint8 images, in [0, 1] by default, and
      grey + width · u for float32 images.

    Example:
      >>> x = dequantise(jax.random.key(0), np.array([[0, 255]], np.uint8))
      >>> jnp.floor(256 * x).tolist()
      [[0.0, 255.0]]
    """
    refuse_other_integers(images)
    scale = width if images.dtype == jnp.uint8 else 1.0
    grey = jnp.asarray(images).astype(jnp.float32).reshape(images.shape[0], -1)
    # Drawn along one axis, as in `binarise`.
    uniform = jax.random.uniform(key, (grey.size,), jnp.float32).reshape(grey.shape)
    return np.float32(scale) * grey + np.float32(width) * uniform


def dequantise_once(images: np.ndarray, width: float = 1 / 256) -> np.ndarray:
    """The fixed dequantisation of test images, always the same for the same images.

    Drawn, like `binarise_once`, with NumPy's legacy generator over the images in order.

    Args:
      images: Test images [n, *image_shape], uint8 grey levels 0..255 or float32 multiples of
        `width`.
      width: The distance between two grey levels in x.

    Returns:
      float32 values of `x` as in `dequantise`, [n, data_dim].
    """
    refuse_other_integers(images)
    images = np.asarray(images)
    grey = images.reshape(images.shape[0], -1)
    scale = width if grey.dtype == np.uint8 else 1.0
    generator = np.random.RandomState(TEST_DEQUANTISATION_SEED)
    return (scale * grey + width * generator.random_sample(grey.shape)).astype(np.float32)
