"""The floor: the float32 matrix products of a model alone, at their own shapes.

As a section of the command: each product forward and both backward, by XLA beside PyTorch's
library (MKL on x86), where PyTorch is installed.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import optional
from benchmarks.sizes import Shape, Sizes
from benchmarks.timing import in_turn, markdown, ratio, shown, spread


def _normal(generator: np.random.Generator, shape: Shape) -> jax.Array:
    return jnp.asarray(generator.standard_normal(shape, np.float32))


def training_step(sizes: Sizes, batch_size: int) -> Callable[[], Any]:
    """A step's products: forward, and backward by weights and, above the images, by inputs.

    Args:
      sizes: of the model.
      batch_size: images a step.

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
      sizes: of the model.
      rows: importance samples times images that are computed at a time.

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
    """Calls a function so often, one call after the other as steps follow each other."""

    def run() -> None:
        for _ in range(times):
            jax.block_until_ready(function())

    return run


class Plan(NamedTuple):
    """What is measured, and how long."""

    shapes: tuple[tuple[int, int, int], ...] = (
        (256, 784, 512),
        (256, 512, 512),
        (256, 512, 128),
        (256, 256, 256),
        (256, 64, 64),
        (4096, 512, 128),
        (4096, 512, 512),
        (256, 2048, 2048),
    )
    """(rows, inputs, outputs) of linear layers of the MNIST ladder, and of larger ones."""
    rounds: int = 9
    flops: float = 2e9
    """Operations of a round, as many products as that takes."""


FULL = Plan()
QUICK = Plan(shapes=((256, 64, 64), (256, 256, 256)), rounds=3, flops=1e8)


def measure(plan: Plan) -> dict[str, Any]:
    """Times y = x W, dW = x^T g and dx = g W^T of each shape, XLA and PyTorch in turn."""
    pytorch: Any = optional.pytorch()
    rows = []
    for n, inputs, outputs in plan.shapes:
        generator = np.random.default_rng(0)
        x, w, g = (
            generator.standard_normal(shape, np.float32)
            for shape in ((n, inputs), (inputs, outputs), (n, outputs))
        )
        operands = {"y = x W": (x, w), "dW = x^T g": (x.T, g), "dx = g W^T": (g, w.T)}
        repeats = max(1, int(plan.flops // (2 * n * inputs * outputs)))
        for name, (a, b) in operands.items():
            contenders = {"xla": repeated(_by_xla(a, b), repeats)}
            if pytorch is not None:
                contenders["pytorch"] = repeated(_by_pytorch(pytorch.torch, a, b), repeats)
            times = in_turn(contenders, plan.rounds)
            rates = {
                library: [2e-9 * n * inputs * outputs * repeats / value for value in values]
                for library, values in times.items()
            }
            row = {
                "shape": [n, inputs, outputs],
                "product": name,
                "gflop_per_second": {k: spread(values) for k, values in rates.items()},
            }
            if pytorch is not None:
                row["xla_over_pytorch"] = ratio(rates["xla"], rates["pytorch"])
            rows.append(row)
    threads = {"cores": os.cpu_count()}
    if pytorch is not None:
        threads["pytorch"] = pytorch.torch.get_num_threads()
    notes = [] if pytorch is not None else [optional.NO_PYTORCH]
    return {"rounds": plan.rounds, "threads": threads, "rows": rows, "notes": notes}


def _by_xla(a: np.ndarray, b: np.ndarray) -> Callable[[], Any]:
    """The product with its operands stored as the model stores them: transposed where they are."""
    if a.flags.c_contiguous and b.flags.c_contiguous:
        function, operands = jax.jit(lambda a, b: a @ b), (a, b)
    elif a.flags.c_contiguous:
        function, operands = jax.jit(lambda a, b: a @ b.T), (a, b.T)
    else:
        function, operands = jax.jit(lambda a, b: a.T @ b), (a.T, b)
    on_device = jax.device_put(operands)
    return lambda: function(*on_device)


def _by_pytorch(torch: Any, a: np.ndarray, b: np.ndarray) -> Callable[[], Any]:
    """The product, by a library that reads strided operands as they are."""
    tensors = torch.from_numpy(a), torch.from_numpy(b)
    # What `repeated` waits for is an array of JAX, so nothing of PyTorch's is handed to it.
    return lambda: torch.mm(*tensors) is None


def table(result: dict[str, Any]) -> str:
    """The result for a person, in Markdown."""
    threads = ", ".join(f"{count} {name}" for name, count in result["threads"].items())
    rows = []
    for row in result["rows"]:
        rates = row["gflop_per_second"]
        rows.append(
            [
                "x".join(str(size) for size in row["shape"]),
                row["product"],
                *(shown(rates[k], 0) if k in rates else "" for k in ("xla", "pytorch")),
                shown(row["xla_over_pytorch"]) if "xla_over_pytorch" in row else "",
            ]
        )
    header = ["rows x inputs x outputs", "product", "XLA", "PyTorch", "XLA / PyTorch"]
    lines = [
        f"Float32 products in GFLOP/s, {result['rounds']} rounds in turn; median (min to max). "
        f"Threads: {threads}.",
        "",
        markdown(header, rows),
    ]
    return "\n".join([*lines, "", *(f"Note: {note}." for note in result["notes"])]).rstrip()
