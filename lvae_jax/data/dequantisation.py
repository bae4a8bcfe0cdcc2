"""From grey levels to continuous values: uniform noise as wide as a level.

A Gaussian density of whole grey levels can be made as large as one likes, by ever narrower
Gaussians on the levels. Noise spreads each over its own interval (Uria, Murray and Larochelle,
2013). Training images get noise anew every epoch (`dequantise`); test images get it once
(`dequantise_once`), so that every run, whatever its seed, is tested on the same values.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Key

from lvae_jax.data.binarisation import Images, flatten

TEST_DEQUANTISATION_SEED = 20160207
"""Seed of the fixed noise of test images; changing it changes every reported number."""


def dequantise(
    key: Key[Array, ""], images: Images, width: float = 1 / 255
) -> Float32[Array, "batch data_dim"]:
    """Adds noise that is uniform on [0, width) to the grey values.

    For uint8 images and the default width, x = (grey + u) / 255 with u uniform on [0, 1).

    Args:
      key: A JAX random key.
      images: Grey images, uint8 values 0..255 or float32 multiples of `width`.
      width: The distance between two grey levels, once in [0, 1].

    Returns:
      Values in [0, 1 + width), one row an image.
    """
    grey: Float32[Array, "batch data_dim"] = flatten(images)
    uniform = jax.random.uniform(key, grey.shape, jnp.float32)
    return grey + np.float32(width) * uniform


def dequantise_once(images: np.ndarray, width: float = 1 / 255) -> np.ndarray:
    """The fixed dequantisation of test images, always the same for the same images.

    Drawn, like `binarise_once`, with NumPy's legacy generator over the images in order.

    Args:
      images: Grey test images [n, *image_shape], uint8 values 0..255 or float32 multiples of
        `width`.
      width: The distance between two grey levels, once in [0, 1].

    Returns:
      float32 values of `x` in [0, 1 + width], [n, data_dim].
    """
    images = np.asarray(images)
    grey = images.reshape(images.shape[0], -1)
    scale = 1 / 255 if grey.dtype == np.uint8 else 1.0
    generator = np.random.RandomState(TEST_DEQUANTISATION_SEED)
    return (scale * grey + width * generator.random_sample(grey.shape)).astype(np.float32)
