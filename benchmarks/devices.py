"""Training on 1, 2, 4, 8 devices: virtual ones of a CPU, or as many of an accelerator as there are.

A number of devices is a process of its own. Virtual devices share the cores, so that more of them
compute nothing sooner; what they show is what splitting the work and its collectives cost.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import in_turn, markdown, shown, spread
from benchmarks.training_step import compile_training, random_images
from lvae_jax import LadderVAE, training
from lvae_jax.data import binarise


class Plan(NamedTuple):
    """What is measured, and how long."""

    sizes: Sizes = PAPER
    counts: tuple[int, ...] = (1, 2, 4, 8)
    batch_size: int = 256
    """Of all devices together, where it is fixed; of each, where that is (weak scaling)."""
    steps: int = 20
    rounds: int = 3


FULL = Plan()
QUICK = Plan(sizes=PAPER.lowest(2), counts=(1, 2), steps=5, rounds=2)


def measure(plan: Plan) -> dict[str, Any]:
    """Times a step on every number of devices, with a fixed global batch and with a fixed share."""
    rows = []
    for count in plan.counts:
        if jax.default_backend() != "cpu" and count > jax.device_count():
            break
        batch_sizes = sorted({plan.batch_size, plan.batch_size * count})
        rows += [_in_a_process(plan, count, batch_size) for batch_size in batch_sizes]
    first = rows[0]["step_seconds"]["median"]
    for row in rows:
        # Work a second against that of one device; on virtual devices 1 is the best there is.
        images = row["batch_size"] / plan.batch_size
        row["throughput_over_one"] = images * first / row["step_seconds"]["median"]
    return {"steps": plan.steps, "rounds": plan.rounds, "rows": rows}


def _in_a_process(plan: Plan, count: int, batch_size: int) -> dict[str, Any]:
    environment = dict(os.environ)
    if jax.default_backend() == "cpu":
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
    command = [
        sys.executable,
        "-m",
        "benchmarks.devices",
        f"--depth={len(plan.sizes.latent)}",
        f"--devices={count}",
        f"--batch_size={batch_size}",
        f"--steps={plan.steps}",
        f"--rounds={plan.rounds}",
    ]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def step_time(sizes: Sizes, count: int, batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Times a step on a mesh of `count` devices, and its collectives by themselves, in turn."""
    mesh = jax.make_mesh(
        (1, count),
        training.MESH_AXES,
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:count],
    )
    model, optimizer = LadderVAE(*sizes), training.make_optimizer(learning_rate=1.0)
    everywhere = NamedSharding(mesh, PartitionSpec())
    images = jax.device_put(random_images(steps * batch_size, sizes.data_dim), everywhere)
    with jax.set_mesh(mesh):
        key = jax.device_put(jax.random.key(0), everywhere)
        beta, rate = (jax.device_put(np.float32(v), everywhere) for v in (1.0, 1e-3))
        initial: Any = jax.jit(
            lambda key: training.init_state(model, optimizer, key), out_shardings=everywhere
        )
        state = initial(key)
        program = compile_training(
            training.train_epoch,
            *(model, optimizer, binarise, state, images, key, beta, rate),
            batch_size=batch_size,
        )

        def epoch() -> Any:
            nonlocal state
            state, metrics = program(state, images, key, beta, rate)
            return metrics

        sizes_reduced = all_reduce_sizes(program.as_text() or "")
        contenders = {"step": epoch}
        if sizes_reduced:
            contenders["collectives"] = make_all_reduces(mesh, sizes_reduced, steps)
        times = {
            n: [v / steps for v in values] for n, values in in_turn(contenders, rounds).items()
        }
    collectives = times.get("collectives", [0.0] * rounds)
    return {
        "devices": count,
        "batch_size": batch_size,
        "step_seconds": spread(times["step"]),
        "collectives_seconds": spread(collectives),
        "collectives_share": spread(
            [c / s for c, s in zip(collectives, times["step"], strict=True)]
        ),
        "all_reduces": len(sizes_reduced),
        "all_reduced_bytes": 4 * sum(sizes_reduced),
    }


ALL_REDUCE = re.compile(r"= (.*?) all-reduce(?:-start)?\(")
ARRAY = re.compile(r"[a-z]+\d+\[([\d,]*)\]")


def all_reduce_sizes(program: str) -> list[int]:
    """Numbers in each all-reduce of a compiled program, once each: it runs them once a step.

    Args:
      program: HLO as text, in which the epoch's loop has one body.

    Example:
      >>> all_reduce_sizes("%a = (f32[2,3]{1,0}, f32[4]{0}) all-reduce(%b, %c), to_apply=%sum")
      [10]
    """
    return [
        sum(
            math.prod(int(n) for n in dimensions.split(",") if n)
            for dimensions in ARRAY.findall(shapes)
        )
        for shapes in ALL_REDUCE.findall(program)
    ]


def make_all_reduces(mesh: jax.sharding.Mesh, sizes: list[int], steps: int) -> Callable[[], Any]:
    """The collectives of an epoch by themselves: one sum over the devices after the other.

    Equal ones run in a loop. Each needs the one before it, as a step's layers do.

    Args:
      mesh: of the devices.
      sizes: numbers in each.
      steps: of an epoch.
    """
    arrays = [jnp.zeros(size, jnp.float32) for size in sorted(set(sizes))]
    counts = [Counter(sizes)[size] for size in sorted(set(sizes))]

    def sums(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        def step(_: Any, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            results: list[jax.Array] = []
            token = jnp.zeros((), jnp.float32)
            for array, count in zip(arrays, counts, strict=True):
                array = jax.lax.fori_loop(
                    0, count, lambda _, a: 0.5 * jax.lax.psum(a, "data"), array + token
                )
                token = array[0]
                results.append(array)
            return tuple(results)

        return jax.lax.fori_loop(0, steps, step, arrays)

    replicated = PartitionSpec()
    # Each device's own values, as far as the compiler knows: a sum of equal ones it would not send.
    compiled = jax.jit(
        jax.shard_map(
            sums,
            mesh=mesh,
            in_specs=(replicated,) * len(arrays),
            out_specs=(replicated,) * len(arrays),
            check_vma=False,
        )
    )
    given = jax.device_put(arrays, NamedSharding(mesh, replicated))
    return lambda: compiled(*given)


def table(result: dict[str, Any]) -> str:
    """The result for a person, in Markdown."""
    header = [
        "devices",
        "batch of all",
        "of each",
        "step, ms",
        "images a second over one device's",
        "collectives alone, ms",
        "their share",
        "all-reduces a step",
        "MB reduced",
    ]
    rows = [
        [
            str(row["devices"]),
            str(row["batch_size"]),
            str(row["batch_size"] // row["devices"]),
            shown(row["step_seconds"], 1, 1e3),
            f"{row['throughput_over_one']:.2f}",
            shown(row["collectives_seconds"], 1, 1e3),
            shown(row["collectives_share"]),
            str(row["all_reduces"]),
            f"{row['all_reduced_bytes'] / 1e6:.1f}",
        ]
        for row in result["rows"]
    ]
    lines = [
        f"Step within an epoch of {result['steps']} steps, {result['rounds']} rounds, median "
        "(min to max), a process for each row.",
        "",
        markdown(header, rows),
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints the figures of one number of devices as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("depth", "devices", "batch_size", "steps", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    sizes = PAPER.lowest(given.depth)
    figures = step_time(sizes, given.devices, given.batch_size, given.steps, given.rounds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
