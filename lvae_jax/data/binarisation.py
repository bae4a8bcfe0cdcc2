"""From images to `x`, which the model observes: grey values, or zeros and ones drawn from them.

The paper's MNIST and OMNIGLOT are binary: a pixel is 1 with the probability of its grey value.
Training images are drawn anew every epoch (`binarise`); test images are drawn once
(`binarise_once`), so that every run, whatever its seed, is tested on the same images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key, UInt8

TEST_BINARISATION_SEED = 20160207
"""Seed of the fixed binarisation of test images; changing it changes every reported number."""

UnitImages = Float32[Array, "batch *image_shape"]
Images = (
    UInt8[Array | np.ndarray, "batch *image_shape"]
    | Float32[Array | np.ndarray, "batch *image_shape"]
)


def to_unit(images: Images) -> UnitImages:
    """Grey values in [0, 1].

    Args:
      images: uint8 values 0..255, or float32.

    Returns:
      uint8 images divided by 255; float32 images unchanged.

    Raises:
      TypeError: The images are integers of another dtype, see `refuse_other_integers`.

    Example:
      >>> to_unit(np.array([[0, 255]], np.uint8)).tolist()
      [[0.0, 1.0]]
    """
    refuse_other_integers(images)
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        # A product, because backends round a quotient differently; 255 times this is exactly 1.
        return images.astype(jnp.float32) * np.float32(1 / 255)
    return images.astype(jnp.float32)


def refuse_other_integers(images: Images) -> None:
    """Raises a TypeError if images are integers but not uint8: grey values or zeros and ones?"""
    if np.issubdtype(images.dtype, np.integer) and images.dtype != np.uint8:
        raise TypeError(
            f"images are {images.dtype}; give uint8 grey values 0..255, or float32 in [0, 1]"
        )


def flatten(images: Images) -> Float32[Array, "batch data_dim"]:
    """The images as rows of `x`, in [0, 1] if they are uint8.

    For data that is not binarised, or binary already (`Dataset.binarisation == "fixed"`).

    Args:
      images: uint8 values 0..255, or float32.

    Returns:
      `to_unit(images)`, one row per image.
    """
    return to_unit(images).reshape(images.shape[0], -1)


def as_stored(_: Key[Array, ""], images: Images) -> Float32[Array, "batch data_dim"]:
    """`flatten` with the signature of `binarise`; the key is not used."""
    return flatten(images)


def binarise(key: Key[Array, ""], images: Images) -> Float32[Array, "batch data_dim"]:
    """Draws zeros and ones; each pixel is 1 with the probability of its grey value.

    A black pixel (0) is never 1 and a full one (255 in uint8, 1.0 in float32) always is. In between
    the probability is exact to 2^-23, the resolution of a float32 uniform.

    Args:
      key: A JAX random key.
      images: Grey images, uint8 values 0..255 or float32 in [0, 1].

    Returns:
      Zeros and ones, one row per image.

    Example:
      >>> binarise(jax.random.key(0), np.array([[0, 255], [255, 0]], np.uint8)).tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    grey: Float[Array, "batch data_dim"] = flatten(images)
    # In [0, 1): below 1, never below 0. A TPU counts along a second axis in kernels of their own.
    uniform = jax.random.uniform(key, (grey.size,), jnp.float32).reshape(grey.shape)
    return (uniform < grey).astype(jnp.float32)


def binarise_once(images: np.ndarray) -> np.ndarray:
    """The fixed binarisation of test images, always the same for the same images.

    Drawn with NumPy's legacy generator, whose stream is frozen: JAX's depends on its settings and
    may change between versions. The draws run over images in order, so the first n images do not
    depend on those that follow.

    Args:
      images: Grey test images [n, *image_shape], uint8 values 0..255 or float32 in [0, 1].

    Returns:
      uint8 zeros and ones [n, data_dim]. They are values of `x`, not grey values: cast them to
      float32; do not pass them through `to_unit` or `flatten`, which would read a 1 as 1/255.
    """
    refuse_other_integers(images)
    images = np.asarray(images)
    grey = images.reshape(images.shape[0], -1)
    scale = 255.0 if grey.dtype == np.uint8 else 1.0
    generator = np.random.RandomState(TEST_BINARISATION_SEED)
    return (scale * generator.random_sample(grey.shape) < grey).astype(np.uint8)
