"""`python -m benchmarks.run`: a training step against plain JAX and its own matrix products.

All are timed in one process, in turn, so that a machine whose speed drifts slows them alike; what
is reported is medians with their range, and ratios pair by pair.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import plain_jax
from lvae_jax import LadderVAE, training
from lvae_jax.data import binarise

LATENT_SIZES = (64, 32, 16, 8, 4)
HIDDEN_SIZES = (512, 256, 128, 64, 32)
DATA_DIM = 784


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, its results waited for, and the results."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def linear_shapes() -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear layer of the model, the first one first."""
    shapes = []
    for i, (units, hidden) in enumerate(zip(LATENT_SIZES, HIDDEN_SIZES, strict=True)):
        inputs = HIDDEN_SIZES[i - 1] if i else DATA_DIM  # upward, to d_i and its likelihood
        shapes += [(inputs, hidden), (hidden, hidden), (hidden, 2 * units)]
        outputs = 2 * LATENT_SIZES[i - 1] if i else DATA_DIM  # downward, from z_i
        shapes += [(units, hidden), (hidden, hidden), (hidden, outputs)]
    return shapes


def make_floor(batch_size: int) -> Callable[[], Any]:
    """The step's matrix products alone: forward, and backward by weights and by inputs."""

    def products(matrices: list[tuple[jax.Array, ...]]) -> list[jax.Array]:
        results = []
        for i, (x, w, g) in enumerate(matrices):
            results += [x @ w, x.T @ g]
            if i > 0:  # no gradient is needed with respect to the images
                results.append(g @ w.T)
        return results

    generator = np.random.default_rng(0)
    matrices = [
        tuple(
            jnp.asarray(generator.standard_normal(shape), jnp.float32)
            for shape in ((batch_size, n), (n, m), (batch_size, m))
        )
        for n, m in linear_shapes()
    ]
    compiled = jax.jit(products)
    return lambda: compiled(matrices)


def make_lvae_jax(images: jax.Array, batch_size: int) -> tuple[float, float, Callable[[], Any]]:
    """Seconds to initialise and to compile an epoch of lvae_jax, and a function that runs one."""
    model = LadderVAE(DATA_DIM, LATENT_SIZES, HIDDEN_SIZES)
    optimizer = training.make_optimizer()
    key, beta, rate = jax.random.key(0), jnp.float32(1.0), jnp.float32(1e-3)
    init_seconds, state = seconds(lambda: training.init_state(model, optimizer, key))
    compile_seconds, compiled = seconds(
        lambda: training.train_epoch.lower(
            model, optimizer, binarise, state, images, key, beta, rate, batch_size=batch_size
        ).compile()
    )

    def epoch() -> Any:
        nonlocal state
        state, metrics = compiled(state, images, key, beta, rate)
        return metrics

    return init_seconds, compile_seconds, epoch


def make_plain_jax(images: jax.Array, batch_size: int) -> tuple[float, float, Callable[[], Any]]:
    """The same for the plain-JAX reference."""
    optimizer = optax.adam(1e-3)
    key, beta = jax.random.key(0), jnp.float32(1.0)
    init_seconds, params = seconds(lambda: jax.jit(plain_jax.init)(key))
    opt_state = optimizer.init(params)
    epoch_function: Any = plain_jax.make_epoch(optimizer, batch_size)
    compile_seconds, compiled = seconds(
        lambda: epoch_function.lower(params, opt_state, images, key, beta).compile()
    )

    def epoch() -> Any:
        nonlocal params, opt_state
        params, opt_state, metrics = compiled(params, opt_state, images, key, beta)
        return metrics

    return init_seconds, compile_seconds, epoch


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def training_step(batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Times a step within a scanned epoch.

    Args:
      batch_size: images a step.
      steps: steps an epoch.
      rounds: epochs of each that are timed, in turn.

    Returns:
      Seconds and ratios.
    """
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.integers(0, 256, (steps * batch_size, DATA_DIM), np.uint8))
    init, compilation, epochs = {}, {}, {}
    for name, make in (("lvae_jax", make_lvae_jax), ("plain_jax", make_plain_jax)):
        init[name], compilation[name], epochs[name] = make(images, batch_size)
    floor = make_floor(batch_size)
    for function in (*epochs.values(), floor):
        seconds(function)  # the first call is not like the others

    steps_of: dict[str, list[float]] = {"lvae_jax": [], "plain_jax": [], "products": []}
    for _ in range(rounds):
        for name, epoch in epochs.items():
            steps_of[name].append(seconds(epoch)[0] / steps)
        steps_of["products"].append(seconds(lambda: [floor() for _ in range(steps)])[0] / steps)

    def ratio(a: str, b: str) -> dict[str, float]:
        return spread([x / y for x, y in zip(steps_of[a], steps_of[b], strict=True)])

    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "batch_size": batch_size,
        "steps": steps,
        "rounds": rounds,
        "init_seconds": init,
        "compile_seconds": compilation,
        "step_seconds": {name: spread(values) for name, values in steps_of.items()},
        "step_over_plain_jax": ratio("lvae_jax", "plain_jax"),
        "step_over_products": ratio("lvae_jax", "products"),
        "plain_jax_over_products": ratio("plain_jax", "products"),
    }


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [
        f"five-layer MNIST ladder, batch {result['batch_size']}, {result['device']}, "
        f"jax {result['jax']}: {result['rounds']} epochs of {result['steps']} steps each, in turn",
        "",
        f"{'':24}{'lvae_jax':>12}{'plain JAX':>12}{'products':>12}",
    ]
    step = result["step_seconds"]
    for statistic in ("median", "min", "max"):
        values = [step[name][statistic] * 1e3 for name in ("lvae_jax", "plain_jax", "products")]
        lines.append(f"{f'step, {statistic}, ms':24}" + "".join(f"{v:12.1f}" for v in values))
    for name in ("init", "compile"):
        values = [result[f"{name}_seconds"][which] for which in ("lvae_jax", "plain_jax")]
        lines.append(f"{f'{name}, s':24}" + "".join(f"{v:12.1f}" for v in values))
    lines.append("")
    for name in ("step_over_plain_jax", "step_over_products", "plain_jax_over_products"):
        r = result[name]
        label = name.replace("_", " ").replace("plain jax", "plain JAX")
        lines.append(f"{label:26}{r['median']:.2f}  ({r['min']:.2f} to {r['max']:.2f})")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark and prints a table, and JSON to a file where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60, help="steps an epoch")
    parser.add_argument("--rounds", type=int, default=9, help="epochs of each, in turn")
    parser.add_argument("--json", help="file to write the figures to")
    arguments = parser.parse_args()
    result = training_step(arguments.batch_size, arguments.steps, arguments.rounds)
    print(table(result))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
