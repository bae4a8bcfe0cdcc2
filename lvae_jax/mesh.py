"""The layout of arrays on a mesh of devices: the library's own mesh, or one that a caller set."""

import math
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

MESH_AXES = ("replica", "data")
"""The axes of a mesh of devices: replicas are split over the first, examples over the second."""


def auto_axes(*names: str) -> dict[str, int]:
    """The axes over which the compiler may split arrays, with their sizes.

    Empty without `jax.set_mesh`, if the mesh has none of the axes, and within `jax.shard_map` and
    `jax.pmap`, whose axes are Manual. Explicit axes belong to the caller.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return {name: mesh.shape[name] for name in names if types.get(name) == AxisType.Auto}


def split_examples(x: Array, axes: tuple[str, ...] = ("data",)) -> Array:
    """Asks XLA to split the first axis of an array over devices, if a mesh allows it.

    Results do not change; each device computes its part of the examples.

    Args:
      x: [batch, ...].
      axes: one or more of `MESH_AXES`. Axes that the mesh lacks, or that are not Auto, are ignored;
        if the size of the others does not divide the batch, nothing is split.

    Returns:
      x.
    """
    found = auto_axes(*axes)
    if not found or x.shape[0] % math.prod(found.values()):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(tuple(found)))


def split_explicitly(x: Array) -> bool:
    """Whether a caller has split an array over Explicit axes."""
    return any(jax.typeof(x).sharding.spec)


def whole(x: Array) -> Array:
    """Puts an array that a caller has split over Explicit axes whole on every device.

    Other arrays are returned unchanged. Batches are gathered by rows; with Explicit axes, the code
    would have to say where each row goes.
    """
    if split_explicitly(x):
        return jax.sharding.reshard(x, PartitionSpec())
    return x


def vary_alike(tree: Any, *others: Any) -> Any:
    """Within `jax.shard_map`, marks all arrays as varying over every axis that any varies over.

    The carry of a loop and the branches of a condition must vary over the same axes before and
    after. `others` are the arrays they are computed with. Elsewhere, returns the tree unchanged.
    """
    varying = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves((tree, others))))

    def mark(leaf: Any) -> Any:
        missing = varying - _varying_axes(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(mark, tree)


def _varying_axes(leaf: Any) -> frozenset[str]:
    kind = jax.typeof(leaf)
    # JAX 0.10 and later have the second of these names, some versions both.
    manual = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying
