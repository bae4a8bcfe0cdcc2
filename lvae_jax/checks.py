"""Checks of public functions' arguments: examples, keys, sizes, and batch statistics."""

import functools
import inspect
import math
import operator
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeCollectionNotFound
from jaxtyping import Array, Float, Key

from lvae_jax.keys import image_keys, threefry
from lvae_jax.mesh import whole

INITIAL_STATISTICS = (
    "the batch statistics are still the zeros and ones of init, so the model does not compute what "
    "it was trained to; give the variables of evaluation.reestimate_batch_stats"
)


NOT_PROBABILITIES = (
    "x has values from {low:g} to {high:g}, and a Bernoulli observation takes values from 0 to 1; "
    "give grey values divided by 255"
)

NO_VARIABLES = (
    "variables lack parameters or batch statistics; give {'params': ..., 'batch_stats': ...}, as "
    "evaluation.reestimate_batch_stats and load return them"
)

_ROUNDED = 1e-3
"""So far beyond [0, 1] are values that were rescaled and rounded."""


def warns_of_values(compiled: Any) -> Any:
    """Makes a compiled function of a model and variables warn of values that give wrong results.

    These are batch statistics that are still `init`'s, and x of a Bernoulli outside [0, 1]. It
    cannot check within `jit`, where values are not known, nor arrays on other hosts. Variables
    without a part that the model reads are a ValueError.
    """
    names = inspect.signature(compiled).parameters
    all_of_x_count = "x" in names and "observed" not in names

    @functools.wraps(compiled)
    def checked(model: Any, variables: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(variables, Mapping):
            raise ValueError(NO_VARIABLES)
        if _are_initial(variables):
            warnings.warn(INITIAL_STATISTICS, stacklevel=2)
        if all_of_x_count and getattr(model, "is_bernoulli", False):
            low, high = _range(kwargs.get("x", args[0] if args else None))
            if low < -_ROUNDED or high > 1 + _ROUNDED:
                warnings.warn(NOT_PROBABILITIES.format(low=low, high=high), stacklevel=2)
        try:
            return compiled(model, variables, *args, **kwargs)
        except ScopeCollectionNotFound as error:
            raise ValueError(NO_VARIABLES) from error

    vars(checked)["lower"] = compiled.lower
    return checked


def _are_initial(variables: Any) -> bool:
    """Whether the first batch norm's moments are those of `init`: all are, or none."""
    statistics = jax.tree.leaves(variables.get("batch_stats", {}))[:2]
    return len(statistics) == 2 and all(
        _is_known(leaf) and bool(np.all(np.asarray(leaf) == initial))
        for leaf, initial in zip(statistics, (0.0, 1.0), strict=True)  # mean, variance
    )


def _range(x: Any) -> tuple[float, float]:
    """The least and the greatest of known floating-point numbers, else 0 and 1."""
    numbers = jnp.issubdtype(getattr(x, "dtype", np.bool_), np.floating)
    if not numbers or not x.size or not _is_known(x):
        return 0.0, 1.0
    module: Any = np if isinstance(x, np.ndarray) else jnp
    return float(module.min(x)), float(module.max(x))


def _is_known(array: Any) -> bool:
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)


def check_whole(**numbers: Any) -> None:
    """Refuses numbers, by the names of their arguments, that are not positive whole ones.

    Raises:
      ValueError: one is less than 1, or a float.
    """
    for name, number in numbers.items():
        if not isinstance(number, Integral) or number < 1:
            raise ValueError(f"{name}={number!r}; give a whole number of at least 1")


def check_images(images: Any, condition: Any, batch_size: int) -> None:
    """Refuses no images, a batch size below 1, and a condition without all rows.

    Raises:
      ValueError: one of these was given.
    """
    if images.shape[0] < 1:
        raise ValueError(f"{images.shape[0]} images; give at least 1")
    check_whole(batch_size=batch_size)
    check_rows(condition, images)


def check_rows(condition: Any, images: Any) -> None:
    """Refuses a condition without a row for every image, because JAX would repeat its last row.

    Raises:
      ValueError: it has another number of rows.
    """
    if condition is not None and condition.shape[:1] != images.shape[:1]:
        raise ValueError(
            f"the condition has shape {list(condition.shape)} and there are {images.shape[0]} "
            "images; give one row of features per image"
        )


def per_image(
    x: Any, key: Any, condition: Any, data_dim: int
) -> tuple[Float[Array, "images data_dim"], Key[Array, " images"] | None, Any]:
    """x, a key and the condition of every image, each whole on every device.

    Args:
      x: see `as_examples`.
      key: one key, from which image i takes `fold_in(key, i)`; a key for every image; or None.
      condition: [images, features], or None.
      data_dim: D.

    Returns:
      x as float32, threefry keys, and the condition; None remains None.

    Raises:
      ValueError: x has another shape, or integers that may be grey values; or the number of keys or
        of rows of the condition is not the number of images.
    """
    x = as_examples(x, data_dim)
    check_rows(condition, x)
    images = x.shape[0]
    keys = None if key is None else threefry(key)
    if keys is not None and not keys.ndim:
        keys = image_keys(keys, jnp.arange(images))
    if keys is not None and keys.shape != (images,):
        raise ValueError(
            f"key has shape {list(keys.shape)} and there are {images} images; give one key, or one "
            "key per image"
        )
    x, keys, condition = jax.tree.map(whole, (x, keys, condition))
    return x, keys, condition


def as_examples(x: Any, data_dim: int) -> Float[Array, "batch data_dim"]:
    """x as float32 [batch, data_dim].

    Args:
      x: zeros and ones of any dtype, or floating-point numbers. Integers that are not known to be
        zeros and ones are refused: they may be grey values, which a Bernoulli observation needs
        divided by 255. Within `jit` values are not known, so only booleans are converted.
      data_dim: D.

    Returns:
      x.

    Raises:
      ValueError: x has another shape, or integers that may be grey values.
    """
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[1] != data_dim:
        what_to_do = ""
        if x.ndim == 1 and x.shape[0] == data_dim:
            what_to_do = "; give x[None] for one example"
        elif x.ndim > 2 and math.prod(x.shape[1:]) == data_dim:
            what_to_do = "; flatten the images: x.reshape(len(x), -1)"
        raise ValueError(
            f"x has shape {list(x.shape)} and the model has data_dim={data_dim}: "
            f"give [batch, {data_dim}]{what_to_do}"
        )
    if jnp.issubdtype(x.dtype, jnp.integer):
        known = not isinstance(x, jax.core.Tracer)
        if not known or not bool(jnp.all((x == 0) | (x == 1))):
            raise ValueError(
                f"x has dtype {x.dtype}: give grey values as x / 255, and zeros and ones or other "
                "numbers as x.astype(jnp.float32)"
            )
    elif not (jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == jnp.bool_):
        raise ValueError(f"x has dtype {x.dtype}; give x.astype(jnp.float32)")
    return x.astype(jnp.float32)


def as_int(size: Any) -> Any:
    """A NumPy integer as a Python int; anything else is returned unchanged."""
    return operator.index(size) if hasattr(size, "__index__") else size


def as_tuples(name: str, sizes: Any) -> tuple[Any, ...]:
    """Sizes given as lists, or as NumPy integers, as tuples of integers."""

    def converted(size: Any) -> Any:
        if isinstance(size, list | tuple):
            return tuple(converted(entry) for entry in size)
        return as_int(size)

    if not isinstance(sizes, list | tuple):
        raise ValueError(f"{name}={sizes!r}; give a tuple with an entry per layer")
    return converted(sizes)
