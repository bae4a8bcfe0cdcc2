"""A training state as a few vectors, for fast updates on accelerators.

On an accelerator, launching a kernel costs more than updating one of a model's hundred small
arrays. On a CPU the arrays are updated one by one, because a vector would first have to be
assembled from them.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Bool


class Flattenable(optax.GradientTransformationExtraArgs):
    """An optimiser that gives the same updates for one vector of all parameters as for their tree.

    This holds if it treats all numbers alike, or depends on the norm of all of them, as Adam and
    clipping do. It does not hold if it uses shapes or names, as a mask or Adafactor does.

    Example:
      >>> optimizer = Flattenable(*optax.with_extra_args_support(optax.adam(1e-3)))
    """


@functools.cache
def flattened(optimizer: Flattenable) -> optax.GradientTransformation:
    """The optimiser with a state of vectors: the same object every time, as `jax.jit` needs."""
    return optax.flatten(optimizer)


def to_vectors(of_vectors: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """The flattened optimiser's state for a state of the optimiser itself."""

    def vector(like: jax.ShapeDtypeStruct, part: Any) -> Array:
        return part if getattr(part, "shape", None) == like.shape else ravel_pytree(part)[0]

    return jax.tree.map(vector, jax.eval_shape(of_vectors.init, params), opt_state)


def to_arrays(params: Any, opt_state: Any) -> Any:
    """The reverse of `to_vectors`."""
    vector, unravel = ravel_pytree(params)
    return jax.tree.map(
        lambda leaf: unravel(leaf) if leaf.shape == vector.shape else leaf, opt_state
    )


SMALL = 64
"""The largest size of an array that `join` joins to others."""

WORDS = (jnp.float32, jnp.int32, jnp.uint32)
"""The dtypes of arrays that `join` joins."""


def join(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The small arrays of a tree as one vector of their bits, which one kernel writes.

    Otherwise each count and sum of a training state would need a kernel of its own.

    Args:
      tree: a tree of arrays, at least one of them small.

    Returns:
      The vector with the tree's other arrays, and a function that turns them, or their values after
      a step, into a tree again.

    Example:
      >>> joined, tree_of = join({"step": jnp.int32(3), "loss": jnp.float32(0.5)})
      >>> joined
      (Array([1056964608,          3], dtype=uint32), [])
      >>> tree_of(joined)
      {'loss': Array(0.5, dtype=float32), 'step': Array(3, dtype=int32)}
    """
    leaves, structure = jax.tree.flatten(tree)
    is_small = [leaf.size <= SMALL and leaf.dtype in WORDS for leaf in leaves]
    small = [leaf for leaf, joins in zip(leaves, is_small, strict=True) if joins]
    large = [leaf for leaf, joins in zip(leaves, is_small, strict=True) if not joins]
    bits, unravel = ravel_pytree([jax.lax.bitcast_convert_type(a, jnp.uint32) for a in small])

    dtypes = [leaf.dtype for leaf in small]

    def tree_of(joined: Any) -> Any:
        bits, large = joined
        words = map(jax.lax.bitcast_convert_type, unravel(bits), dtypes)
        others = iter(large)
        parts = [next(words if joins else others) for joins in is_small]
        return jax.tree.unflatten(structure, parts)

    return (bits, large), tree_of


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no array of a tree holds a NaN or an infinity."""

    def of_arrays(leaves: list[ArrayLike]) -> Bool[Array, ""]:
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))

    def of_vector(leaves: list[ArrayLike]) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(ravel_pytree(leaves)[0]))

    leaves = jax.tree.leaves(tree)
    finite = jax.lax.platform_dependent(leaves, cpu=of_arrays, default=of_vector)
    return cast(Bool[Array, ""], finite)
