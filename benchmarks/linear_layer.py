"""Times the three products of a linear layer within a program: XLA, and PyTorch's library."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import optional
from benchmarks.timing import Row, in_turn, spread

Layer = tuple[int, int, int]
"""Rows, inputs and outputs."""


class Plan(NamedTuple):
    """What is measured, and how long."""

    layers: tuple[Layer, ...] = (
        (256, 784, 512),
        (256, 512, 512),
        (256, 512, 128),
        (256, 256, 256),
        (256, 64, 64),
        (4096, 512, 128),
        (4096, 512, 512),
        (256, 2048, 2048),
    )
    """Layers of the MNIST ladder, and larger ones."""
    rounds: int = 9
    flops: float = 3e9
    """Operations per round; they determine how often a product is repeated."""


FULL = Plan()
QUICK = Plan(layers=((256, 64, 64), (256, 512, 128)), rounds=3, flops=3e8)


def measure(plan: Plan) -> dict[str, Any]:
    """GFLOP/s of y = x W, dW = x^T g and dx = g W^T on the CPU, by layer.

    The libraries do not take turns: after a product PyTorch's threads spin for a while on cores
    that XLA would need.
    """
    rows: list[Row] = []
    for layer in plan.layers:
        n, inputs, outputs = layer
        flops = 2 * n * inputs * outputs
        times = max(1, int(plan.flops // flops))
        for name, (a, b) in operands(layer).items():
            row: Row = {"rows x inputs x outputs": f"{n}x{inputs}x{outputs}", "product": name}
            with jax.default_device(jax.devices("cpu")[0]):
                contenders = {"XLA": by_xla(a, b, times)}
            if optional.pytorch() is not None:
                contenders["PyTorch"] = by_pytorch(a, b, times)
            for library, function in contenders.items():
                (seconds,) = in_turn({library: function}, plan.rounds).values()
                row[library] = spread([1e-9 * flops * times / value for value in seconds])
            rows.append(row)
    notes = [] if optional.pytorch() is not None else [optional.NO_PYTORCH]
    return {"tables": {"Products of a linear layer on the CPU, GFLOP/s.": rows}, "notes": notes}


def operands(layer: Layer) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both factors of each product, as the model stores them: a transposed one is a view."""
    n, inputs, outputs = layer
    generator = np.random.default_rng(0)
    x, w, g = (
        generator.standard_normal(shape, np.float32)
        for shape in ((n, inputs), (inputs, outputs), (n, outputs))
    )
    return {"y = x W": (x, w), "dW = x^T g": (x.T, g), "dx = g W^T": (g, w.T)}


def by_xla(a: np.ndarray, b: np.ndarray, times: int) -> Callable[[], Any]:
    """A compiled loop over the product; the next one waits for the one before."""
    left, right = (1 if array.flags.c_contiguous else 0 for array in (a, b))
    contracted = ((left,), (1 - right,)), ((), ())

    @jax.jit
    def program(a: jax.Array, b: jax.Array) -> jax.Array:
        def multiply(_: Any, a: jax.Array) -> jax.Array:
            product = jax.lax.optimization_barrier(jax.lax.dot_general(a, b, contracted))
            return a.at[0, 0].add(1e-30 * product[0, 0])

        return jax.lax.fori_loop(0, times, multiply, a)

    stored = [jnp.asarray(array if array.flags.c_contiguous else array.T) for array in (a, b)]
    return lambda: program(*stored)


def by_pytorch(a: np.ndarray, b: np.ndarray, times: int) -> Callable[[], Any]:
    """A loop over the product, into the same array."""
    import torch

    left, right = torch.from_numpy(a), torch.from_numpy(b)
    product = torch.empty(a.shape[0], b.shape[1])

    def run() -> None:
        for _ in range(times):
            torch.mm(left, right, out=product)

    return run
