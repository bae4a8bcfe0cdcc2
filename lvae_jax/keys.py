"""Random keys: every draw has a key derived from a root key, a name and a step."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32


def typed_key(key: Any) -> Key[Array, "..."]:
    """Converts a key of `jax.random.PRNGKey` to a typed key, as `jax.random.key` makes it.

    Public functions call it on their keys, so that all other functions get typed keys.

    Args:
      key: one key or an array of keys, in either style.

    Returns:
      The same keys, typed.

    Raises:
      TypeError: it is not a key.

    Example:
      >>> bool(typed_key(jax.random.PRNGKey(3)) == jax.random.key(3))
      True
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype == jnp.uint32 and key.ndim:
        return jax.random.wrap_key_data(jnp.asarray(key))
    given = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
    raise TypeError(f"key is {given}; give a key such as jax.random.key(0)")


def threefry(key: Any) -> Key[Array, "..."]:
    """Keys of the threefry generator: their draws do not depend on other keys in the same call.

    Those of an rbg key do. Its first two words are used as the threefry key.

    Args:
      key: one key or an array of keys, in either style and of any generator.

    Returns:
      As many threefry keys; keys that are threefry's already are returned unchanged.

    Raises:
      TypeError: it is not a key.

    Example:
      >>> key = jax.random.key(3, impl="rbg")
      >>> bool(threefry(key) == jax.random.key(3, impl="threefry2x32"))
      True
    """
    words = jax.random.key_data(typed_key(key))[..., :2]
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def image_keys(
    key: Key[Array, ""], images: Int[Array, " images"] | Int[np.ndarray, " images"]
) -> Key[Array, " images"]:
    """`fold_in(key, i)` for the index i of each image, independent of the other images."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, images)


def named_key(
    key: Key[Array, ""] | UInt32[Array, " words"], name: str, step: int | Int[Array, ""] = 0
) -> Key[Array, ""]:
    """The key of a name at a step (or epoch): `fold_in` of the name's CRC-32, then of the step."""
    named = jax.random.fold_in(typed_key(key), zlib.crc32(name.encode()))
    return jax.random.fold_in(named, step)
