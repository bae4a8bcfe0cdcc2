"""The lower limit of a time: only the float32 matrix products of a model, at their own shapes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sizes import Shape, Sizes


def _normal(generator: np.random.Generator, shape: Shape) -> jax.Array:
    return jnp.asarray(generator.standard_normal(shape, np.float32))


def training_step(sizes: Sizes, batch_size: int) -> Callable[[], Any]:
    """The products of a training step: forward, and the gradients by weights and by inputs.

    The gradient by the images is left out.

    Args:
      sizes: the model's sizes.
      batch_size: images per step.

    Returns:
      A compiled function that computes them all once.
    """

    def products(matrices: Sequence[tuple[jax.Array, ...]]) -> list[jax.Array]:
        results = []
        for i, (x, w, g) in enumerate(matrices):
            results += [x @ w, x.T @ g]
            if i > 0:
                results.append(g @ w.T)
        return results

    generator = np.random.default_rng(0)
    matrices = [
        tuple(_normal(generator, shape) for shape in ((batch_size, n), (n, m), (batch_size, m)))
        for n, m in sizes.upward() + sizes.downward()
    ]
    compiled = jax.jit(products)
    return lambda: compiled(matrices)


def likelihood_chunk(sizes: Sizes, rows: int) -> Callable[[], Any]:
    """The products of the top-down pass and the decoder.

    Args:
      sizes: the model's sizes.
      rows: importance samples times images per chunk.

    Returns:
      A compiled function that computes them all once.
    """

    def products(matrices: Sequence[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
        return [z @ w for z, w in matrices]

    generator = np.random.default_rng(0)
    matrices = [
        (_normal(generator, (rows, n)), _normal(generator, (n, m))) for n, m in sizes.downward()
    ]
    compiled = jax.jit(products)
    return lambda: compiled(matrices)


def repeated(function: Callable[[], Any], times: int) -> Callable[[], Any]:
    """Calls a function several times, each time after the call before has finished."""

    def run() -> None:
        for _ in range(times):
            jax.block_until_ready(function())

    return run
