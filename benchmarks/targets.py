"""Compiles every program of a run for accelerators that need not be available.

XLA can compile for an absent device. The result shows exactly, without noise, how many kernels, how
much memory and which collectives a training step needs there. It shows no times. A target needs its
compiler: `pip install "lvae-jax[gpu-target]"` for the H100, `"lvae-jax[tpu-target]"` for the TPU.
"""

import argparse
import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks import hlo
from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import Row
from lvae_jax import LadderVAE, evaluation, training
from lvae_jax.data import as_stored, binarise

GPU_CONFIG = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""An H100 SXM from its public specifications, in the text form of XLA's `GpuTargetConfigProto`."""


class Target(NamedTuple):
    """One or several devices to compile for."""

    platform: str
    """"cuda", "tpu", or "cpu" for this machine."""

    compiler: str
    """The Python package that holds the compiler."""

    extra: str
    """The extra that installs it: `pip install "lvae-jax[extra]"`."""

    topology: str
    """XLA's name of a topology; only `devices` of its devices are used."""

    devices: int
    memory: int
    """Bytes per device."""


TARGETS = {
    "h100": Target("cuda", "jax_cuda12_plugin", "gpu-target", "1x1x1", 1, 84_929_347_584),
    "v5e": Target("tpu", "libtpu", "tpu-target", "v5e:2x2", 1, 2**34),
    "v5e:2x2": Target("tpu", "libtpu", "tpu-target", "v5e:2x2", 4, 2**34),
    "v5e:4x4": Target("tpu", "libtpu", "tpu-target", "v5e:4x4", 16, 2**34),
}

COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # Autotuning times kernels on a device. Without it, Triton's products are guesses.
    "cuda": {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False},
    "tpu": {},
    "cpu": {},
}


class Plan(NamedTuple):
    """The programs to compile."""

    sizes: Sizes = PAPER
    targets: tuple[str, ...] = ("h100", "v5e", "v5e:2x2")
    depths: tuple[int, ...] = (5, 1)
    replicas: tuple[int, ...] = (1, 8)
    batch_size: int = 256
    images: int = 60_000
    evaluated: int = 250
    """Images whose log-likelihood is estimated at a time."""
    num_samples: int = 5000


FULL = Plan()
QUICK = Plan(sizes=PAPER.lowest(1), depths=(1,), replicas=(1,))


def measure(plan: Plan) -> dict[str, Any]:
    """Compiles every program for each target whose compiler is installed.

    Raises:
      RuntimeError: a program does not compile, or does not fit the device.
    """
    rows: list[dict[str, Any]] = []
    notes = []
    for name in plan.targets:
        if missing := missing_compiler(TARGETS[name]):
            notes.append(f"{name} is left out, since {missing}")
        else:
            rows += _in_a_process(name, plan)
    caption = (
        f"Kernels of one pass through a program's loop; batch {plan.batch_size}, products in "
        "float32. Bytes are per device."
    )
    return {"tables": {caption: [_cells(row) for row in rows]}, "notes": notes}


def missing_compiler(target: Target) -> str | None:
    """Says that a target's compiler is not installed, and what to install; None if it is."""
    if importlib.util.find_spec(target.compiler) is not None:
        return None
    return f'its compiler is not installed (pip install "lvae-jax[{target.extra}]")'


def _in_a_process(name: str, plan: Plan) -> list[dict[str, Any]]:
    """The rows of one target, compiled in a process that uses no accelerator of this machine."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.targets", name, json.dumps(plan)],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{name}: {''.join(last) or f'status {result.returncode}'}")
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def topology_devices(target: Target) -> list[jax.Device]:
    """The devices of a target, which need not be available."""
    if target.platform == "cpu":
        return jax.devices()[: target.devices]
    options = {"target_config": GPU_CONFIG} if target.platform == "cuda" else {}
    if target.platform == "tpu":
        options["topology_name"] = target.topology
    else:
        options["topology"] = target.topology
    found = topologies.get_topology_desc(platform=target.platform, **options)
    return list(found.devices[: target.devices])


def compile_all(name: str, target: Target, plan: Plan) -> list[dict[str, Any]]:
    """Compiles the programs of a run for a target, and counts the work of each.

    Args:
      name: the target's name in the rows.
      target: the target.
      plan: the programs.

    Raises:
      RuntimeError: a program does not fit the target's memory.
    """
    devices = topology_devices(target)
    rows = []
    for program in programs(plan, target):
        by_replica = math.gcd(program.replicas, len(devices))
        mesh = Mesh(
            np.array(devices).reshape(by_replica, -1),
            training.MESH_AXES,
            axis_types=(AxisType.Auto,) * 2,
        )
        start = time.perf_counter()
        with jax.set_mesh(mesh), jax.default_matmul_precision("float32"):
            lowered = program.lower(mesh)
            compiled = lowered.compile(compiler_options=COMPILER_OPTIONS[target.platform])
        row = _row(program, compiled, target)
        rows.append({"target": name, **row, "compile_seconds": time.perf_counter() - start})
        needed = row["argument_bytes"] + row["temporary_bytes"]
        if needed > target.memory:
            raise RuntimeError(
                f"{program.name} needs {needed / 2**30:.1f} GiB, but a device of {name} has "
                f"{target.memory / 2**30:.1f} GiB"
            )
    return rows


def _row(program: "Program", compiled: Any, target: Target) -> dict[str, Any]:
    found = hlo.loop(compiled.as_text(), fusions_alone=target.platform == "tpu")
    memory = compiled.memory_analysis()
    return {
        "program": program.name,
        **found._asdict(),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "device_bytes": target.memory,
    }


class Program(NamedTuple):
    """One of the programs of a run."""

    name: str
    replicas: int
    lower: Callable[[Mesh], Any]
    """Lowers it for the devices of a mesh, within `jax.set_mesh`."""


def programs(plan: Plan, target: Target) -> list[Program]:
    """Training steps within their epochs, and the programs that evaluate the deepest model."""
    steps = [
        Program(
            f"step, depth {depth}, {replicas} replica{'s' * (replicas > 1)}",
            replicas,
            functools.partial(_lower_step, plan, depth, replicas),
        )
        for depth in plan.depths
        for replicas in plan.replicas
    ]
    model = LadderVAE(*plan.sizes.lowest(max(plan.depths)))
    # The images per batch of a run: a multiple of the devices.
    images = -(-plan.evaluated // target.devices) * target.devices
    chunk_size = evaluation.default_chunk_size(
        model, images // target.devices, target.platform, target.memory
    )
    likelihood = f"log-likelihood, per {chunk_size} samples of {images} images"
    return [
        *steps,
        Program("re-estimation, per batch", 1, functools.partial(_lower_reestimation, plan, model)),
        Program(f"ELBO, per {images} images", 1, functools.partial(_lower_elbo, model, images)),
        Program(
            likelihood, 1, functools.partial(_lower_likelihood, plan, model, images, chunk_size)
        ),
    ]


def _on(mesh: Mesh, like: Any, *axes: str | tuple[str, ...]) -> Any:
    """Shapes of arrays on a mesh, with their first axes split over `axes`."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like)


def _keys(*shape: int) -> Any:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape))


def _images(plan: Plan) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((plan.images, plan.sizes.data_dim), jnp.uint8)


def _lower_step(plan: Plan, depth: int, replicas: int, mesh: Mesh) -> Any:
    model, optimizer = LadderVAE(*plan.sizes.lowest(depth)), training.make_optimizer()
    keys = _keys(replicas)
    state = jax.eval_shape(lambda keys: training.init_state(model, optimizer, keys), keys)
    number = jax.ShapeDtypeStruct((replicas,), jnp.float32)
    return training.train_replicas.lower(
        model,
        optimizer,
        binarise,
        _on(mesh, state, "replica"),
        _on(mesh, _images(plan)),
        *_on(mesh, (keys, number, number), "replica"),
        batch_size=plan.batch_size,
    )


def _variables(model: LadderVAE, mesh: Mesh) -> Any:
    def init() -> Any:  # only traced: the mesh's devices may be absent
        key = jax.random.key(0)
        return model.init({"params": key, "sample": key}, jnp.zeros((1, model.data_dim)))

    return _on(mesh, jax.eval_shape(init))


def _lower_reestimation(plan: Plan, model: LadderVAE, mesh: Mesh) -> Any:
    params = _variables(model, mesh)["params"]
    images, key = _on(mesh, (_images(plan), _keys()))
    return evaluation.reestimate_batch_stats.lower(
        model, params, binarise, images, key, batch_size=plan.batch_size
    )


def _lower_elbo(model: LadderVAE, images: int, mesh: Mesh) -> Any:
    x = jax.ShapeDtypeStruct((10_000, model.data_dim), jnp.float32)
    x, key = _on(mesh, (x, _keys()))
    variables = _variables(model, mesh)
    return evaluation.elbo.lower(model, variables, as_stored, x, key, batch_size=images)


def _lower_likelihood(
    plan: Plan, model: LadderVAE, images: int, chunk_size: int, mesh: Mesh
) -> Any:
    x = jax.ShapeDtypeStruct((images, model.data_dim), jnp.float32)
    x, keys = _on(mesh, (x, _keys(images)), training.MESH_AXES)
    variables = _variables(model, mesh)
    program: Any = evaluation.log_likelihood
    return program.lower(model, variables, x, keys, plan.num_samples, chunk_size)


def _cells(row: dict[str, Any]) -> Row:
    """A row of the table, by its headings; bytes are per device."""
    kernels = row["kernels"]
    needed = row["argument_bytes"] + row["temporary_bytes"]
    return {
        "target": row["target"],
        "program": row["program"],
        "kernels": sum(kernels.values()),
        "products": kernels["products"],
        "reductions": kernels["reductions"],
        "other fusions": kernels["fusions"],
        "calls and others": kernels["calls"] + kernels["others"],
        "MB moved": row["bytes_moved"] / 1e6,
        "collectives": ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items()),
        "their kB": row["collective_bytes"] / 1e3,
        "arguments, MiB": row["argument_bytes"] / 2**20,
        "temporary, MiB": row["temporary_bytes"] / 2**20,
        "of the device": f"{needed / row['device_bytes']:.1%}",
        "compile, s": row["compile_seconds"],
    }


def plan_of(text: str) -> Plan:
    """A plan from its JSON, which has no field names, and lists instead of tuples."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    sizes, *rest = tuples(json.loads(text))
    return Plan(Sizes(*sizes), *rest)


def use_no_accelerator() -> None:
    """Sets this process up to compile for absent devices, and to leave this machine's alone."""
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {
        # Another process, such as `benchmarks.run`, may hold libtpu's lock.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # Otherwise libtpu asks its cloud what it runs on.
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }


def main() -> None:
    """Prints the rows of one target as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=main.__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("plan", type=plan_of, nargs="?", default=FULL)
    given = parser.parse_args()
    if missing := missing_compiler(TARGETS[given.target]):
        parser.error(f"{given.target}: {missing}")
    use_no_accelerator()
    print(json.dumps(compile_all(given.target, TARGETS[given.target], given.plan)))


if __name__ == "__main__":
    main()
