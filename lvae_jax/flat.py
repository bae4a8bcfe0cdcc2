"""All parameters as one vector, which is how accelerators update them.

Launching a kernel costs an accelerator more than updating one of a model's hundred small arrays. On
a CPU the arrays are updated one by one: a vector would have to be put together from them first.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool


class Flattenable(optax.GradientTransformationExtraArgs):
    """An optimiser for which one vector of all parameters is as good as a tree of their arrays.

    It treats all numbers alike, or depends on the norm of all of them, as Adam and clipping do. One
    that looks at shapes or names, such as a mask or Adafactor, is none.

    Example:
      >>> optimizer = Flattenable(*optax.with_extra_args_support(optax.adam(1e-3)))
    """


@functools.cache
def flattened(optimizer: Flattenable) -> optax.GradientTransformation:
    """The optimiser with a state of vectors: the same object every time, as `jax.jit` needs."""
    return optax.flatten(optimizer)


def to_vectors(of_vectors: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """The state of the flattened optimiser that equals a state of the optimiser itself."""

    def vector(like: jax.ShapeDtypeStruct, part: Any) -> Array:
        return part if getattr(part, "shape", None) == like.shape else ravel_pytree(part)[0]

    return jax.tree.map(vector, jax.eval_shape(of_vectors.init, params), opt_state)


def to_arrays(params: Any, opt_state: Any) -> Any:
    """The reverse of `to_vectors`."""
    vector, unravel = ravel_pytree(params)
    return jax.tree.map(
        lambda leaf: unravel(leaf) if leaf.shape == vector.shape else leaf, opt_state
    )


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no array of a tree holds a NaN or an infinity."""

    def of_arrays(leaves: list[Array]) -> Bool[Array, ""]:
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))

    def of_vector(leaves: list[Array]) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(ravel_pytree(leaves)[0]))

    leaves = jax.tree.leaves(tree)
    finite = jax.lax.platform_dependent(leaves, cpu=of_arrays, default=of_vector)
    return cast(Bool[Array, ""], finite)
