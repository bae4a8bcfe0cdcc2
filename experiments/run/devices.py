"""The devices of a run: its processes, a mesh of devices, and arrays on the mesh.

One device and many share one code path: arrays lie on a mesh with the axes `training.MESH_AXES`,
whatever its size. In a run of several processes all of them execute the same code on the same
arrays; only process 0 writes.
"""

import contextlib
import functools
import math
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments import processes
from experiments.errors import SettingsError
from experiments.run import memory
from experiments.settings import Settings
from lvae_jax.training import MESH_AXES

CONNECT_SECONDS = 55.0
"""How long a run's processes wait for each other when they start."""


def start_processes(settings: Settings) -> None:
    """Connects to the run's other processes, if there are any, and finds the devices.

    The flags tell which processes there are, else srun, Open MPI or a TPU pod does. Call this
    before anything uses a device.

    Raises:
      SettingsError: JAX finds no devices, or the coordinator cannot be reached.
    """
    if settings.coordinator_address:
        given: tuple[Any, ...] = (
            settings.coordinator_address,
            settings.num_processes,
            settings.process_id,
        )
        where = f"--coordinator_address={settings.coordinator_address}"
        what_to_do = f"start all {settings.num_processes} processes, with HOST:PORT of process 0"
    else:
        given, where = (), "the processes that the scheduler started"
        what_to_do = "start all of them, or this one alone without srun or mpirun"
    together = bool(given) or _started_by_a_scheduler()
    with _not_waiting_forever(f"{where}: not all processes connected; {what_to_do}", together):
        if together and not jax.distributed.is_initialized():
            try:
                jax.distributed.initialize(*given)
            except (RuntimeError, ValueError) as error:
                raise SettingsError(f"{where}: {error}; {what_to_do}") from error
        find_devices()


def find_devices() -> None:
    """Makes JAX find its devices.

    Raises:
      SettingsError: JAX cannot use them.
    """
    try:
        jax.devices()
    except Exception as error:  # JAX raises many types, even an empty AssertionError
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise SettingsError(
            f"{f'JAX_PLATFORMS={platforms}: ' if platforms else ''}JAX cannot use these devices "
            f"({str(error) or 'it finds none'}); install JAX for them, or give others, such "
            "as JAX_PLATFORMS=cpu"
        ) from error


def _started_by_a_scheduler() -> bool:
    """Whether a scheduler that JAX supports has started this process as one of several.

    A script under sbatch sees the job's SLURM variables but is a single process; only srun sets
    those of a job step.
    """
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    several_workers = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return any(os.environ.get(name, "1") != "1" for name in counts) or several_workers


@contextlib.contextmanager
def _not_waiting_forever(message: str, together: bool) -> Iterator[None]:
    """Ends the process with one line after `CONNECT_SECONDS`; JAX would wait longer and abort."""

    def end() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(SettingsError.status)

    waiting = threading.Timer(CONNECT_SECONDS, end)
    waiting.daemon = True
    if together:
        waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


def make_mesh(replicas: int, batch_size: int) -> Mesh:
    """A mesh of all devices, or of as many as replicas and batches can be split over evenly.

    Replicas are split first, because they do not communicate.

    Args:
      replicas: number of models trained at once.
      batch_size: examples per step.

    Raises:
      SettingsError: a run of several processes would leave some devices unused.
    """
    devices = jax.device_count()
    by_replica = math.gcd(replicas, devices)
    by_data = math.gcd(batch_size, devices // by_replica)
    used = by_replica * by_data
    if used < devices and jax.process_count() > 1:
        raise SettingsError(
            f"--batch_size={batch_size} --replicas={replicas}: cannot be split over {devices} "
            f"devices of {jax.process_count()} processes; their product must be a multiple of "
            f"{devices}"
        )
    return jax.make_mesh(
        (by_replica, by_data),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:used],
    )


def put(tree: Any, mesh: Mesh, *axes: str | tuple[str, ...]) -> Any:
    """Copies host arrays, the same on every process, to the mesh.

    Args:
      tree: a pytree of arrays.
      mesh: the mesh, see `make_mesh`.
      *axes: the mesh axes over which the first, second, ... axis of each array is split; without
        any, every device holds the whole array.

    Returns:
      The tree on the mesh.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def put_array(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            data = put_array(jax.random.key_data(array))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put_array, tree)


@functools.partial(jax.jit, static_argnames="mesh")
def _everywhere(tree: Any, mesh: Mesh) -> Any:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def fetch(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays from the mesh to NumPy, on every process."""
    if jax.process_count() > 1:  # others hold parts
        tree = _everywhere(tree, mesh)
    return jax.tree.map(np.asarray, tree)


@functools.partial(jax.jit, static_argnames="mesh")
def replica_of(tree: Any, index: int | jax.Array, mesh: Mesh) -> Any:
    """One replica of a tree with leaves [replicas, ...], on every device of the mesh."""
    one = jax.tree.map(lambda leaf: leaf[index], tree)
    return jax.lax.with_sharding_constraint(one, NamedSharding(mesh, PartitionSpec()))


def available_memory(mesh: Mesh) -> int | None:
    """Available bytes on the device that has least; None if no device tells."""
    there = [memory.available(device) for device in mesh.local_devices]
    least = min((float(most) for most in there if most is not None), default=math.inf)
    (most,) = processes.agree(-least)
    return None if math.isinf(most) else -int(most)


def describe() -> str:
    """Number and kind of the devices, for a person."""
    devices = jax.devices()
    of_cores = f" ({cores()} cores)" if devices[0].platform == "cpu" else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind}{of_cores}{processes}"


def cores() -> int:
    """The number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
