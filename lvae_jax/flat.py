"""A training state as a few vectors or matrices, for fast updates on accelerators.

On an accelerator, launching a kernel costs more than updating one of a model's hundred small
arrays. On a CPU the arrays are updated one by one, because a vector would first have to be
assembled from them.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Bool


class Flattenable(optax.GradientTransformationExtraArgs):
    """An optimiser that gives the same updates for parameters as a tree, a vector or matrices.

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


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrices"],
    meta_fields=["structure", "shapes"],
)
@dataclasses.dataclass(frozen=True)
class Stacked:
    """A tree of arrays as a matrix for each number of columns, in which they lie below each other.

    A TPU keeps matrices in tiles. Its products read rows of a matrix in place, while a weight that
    lies within a vector is first written to tiles of its own.

    Fields:
      matrices: by dtype and columns.
      structure: of the tree.
      shapes: of the tree's arrays.
    """

    matrices: dict[tuple[str, int], Any]
    structure: jax.tree_util.PyTreeDef
    shapes: tuple[jax.ShapeDtypeStruct, ...]


def stacked(tree: Any) -> Stacked:
    """The arrays of a tree as matrices; a vector is a row.

    Example:
      >>> tree = {"weights": jnp.ones((3, 2)), "bias": jnp.zeros(2), "scale": jnp.ones(4)}
      >>> [matrix.shape for matrix in stacked(tree).matrices.values()]
      [(4, 2), (1, 4)]
    """
    leaves, structure = jax.tree.flatten(tree)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    parts: dict[tuple[str, int], list[Array]] = {}
    for leaf, shape in zip(leaves, shapes, strict=True):
        name, rows = _place(shape)
        parts.setdefault(name, []).append(leaf.reshape(rows, name[1]))
    matrices = {name: jnp.concatenate(rows) for name, rows in parts.items()}
    return Stacked(matrices, structure, shapes)


def _place(array: jax.ShapeDtypeStruct) -> tuple[tuple[str, int], int]:
    """The name of an array's matrix, and how many of its rows the array takes."""
    *rows, columns = array.shape or (1,)
    return (array.dtype.name, columns), math.prod(rows)


def unstacked(tree: Any) -> Any:
    """A tree with its own arrays in the place of every `Stacked`."""

    def arrays(node: Any) -> Any:
        if not _is_stacked(node):
            return node
        leaves, start = [], Counter[tuple[str, int]]()
        for shape in node.shapes:
            name, rows = _place(shape)
            part = node.matrices[name][start[name] : start[name] + rows]
            leaves.append(part.reshape(shape.shape))
            start[name] += rows
        return jax.tree.unflatten(node.structure, leaves)

    return jax.tree.map(arrays, tree, is_leaf=_is_stacked)


def stacked_state(
    optimizer: optax.GradientTransformation, params: Any, opt_state: Any
) -> tuple[Stacked, Any]:
    """Parameters as matrices, and the optimiser's state for them; `unstacked` is the reverse."""
    of_matrices = jax.eval_shape(lambda params: optimizer.init(stacked(params)), params)
    opt_state = jax.tree.map(
        lambda like, part: stacked(part) if _is_stacked(like) else part,
        of_matrices,
        opt_state,
        is_leaf=_is_stacked,
    )
    return stacked(params), opt_state


def _is_stacked(node: Any) -> bool:
    return isinstance(node, Stacked)


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
