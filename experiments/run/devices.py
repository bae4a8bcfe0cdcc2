"""The devices of a run: processes that work together, a mesh, and arrays on it.

One code path for one device and for many: arrays lie on a mesh of the axes `training.MESH_AXES`,
whatever its size. In a run of several processes every process does the same with the same arrays;
process 0 alone writes.
"""

import contextlib
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.errors import SettingsError
from experiments.run import memory
from experiments.settings import Settings
from lvae_jax.training import MESH_AXES

T = TypeVar("T")


CONNECT_SECONDS = 55.0
"""How long the processes of a run wait for each other at its start."""


def start_processes(settings: Settings) -> None:
    """Finds the devices, those of other processes too if several run this command together.

    By the flags where they are given, else as srun, Open MPI or a TPU pod says. To be called
    before anything asks for the devices.

    Raises:
      SettingsError: there are no such devices, or the coordinator cannot be reached.
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
    with _not_waiting_forever(f"{where}: not all processes came; {what_to_do}", together):
        if together and not jax.distributed.is_initialized():
            try:
                jax.distributed.initialize(*given)
            except (RuntimeError, ValueError) as error:
                raise SettingsError(f"{where}: {error}; {what_to_do}") from error
        find_devices()


def find_devices() -> None:
    """Asks JAX for the devices, once.

    Raises:
      SettingsError: there are no such devices.
    """
    try:
        jax.devices()
    except Exception as error:  # JAX says it in many ways, an empty AssertionError among them
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise SettingsError(
            f"{f'JAX_PLATFORMS={platforms}: ' if platforms else ''}JAX cannot use these devices "
            f"({str(error) or 'it finds none'}); install JAX for them, or give others, such "
            "as JAX_PLATFORMS=cpu"
        ) from error


def _started_by_a_scheduler() -> bool:
    """Whether a scheduler has started this process as one of several, in a way that JAX reads.

    A script of sbatch's has SLURM's variables of the job too, but is one process; srun alone sets
    those of a step.
    """
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    several_workers = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return any(os.environ.get(name, "1") != "1" for name in counts) or several_workers


@contextlib.contextmanager
def _not_waiting_forever(message: str, together: bool) -> Iterator[None]:
    """Ends the process after `CONNECT_SECONDS` in one line; JAX would wait longer, then abort."""

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
    """All devices, or as many as the replicas and the examples of a batch can be split over.

    Devices are given to replicas first, which need not talk to each other.

    Args:
      replicas: trained at once.
      batch_size: examples a step.

    Raises:
      SettingsError: some devices would be left over in a run of several processes, each of which
        has to have its part.
    """
    devices = jax.device_count()
    by_replica = math.gcd(replicas, devices)
    by_data = math.gcd(batch_size, devices // by_replica)
    used = by_replica * by_data
    if used < devices and jax.process_count() > 1:
        raise SettingsError(
            f"--batch_size={batch_size} --replicas={replicas}: cannot be split over {devices} "
            f"devices of {jax.process_count()} processes; give a multiple of {devices}"
        )
    return jax.make_mesh(
        (by_replica, by_data),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:used],
    )


def put(tree: Any, mesh: Mesh, *axes: str | tuple[str, ...]) -> Any:
    """Arrays of the host, the same on every process, on the mesh.

    Args:
      tree: of arrays.
      mesh: of `make_mesh`.
      *axes: which axes of the mesh the first, second, ... axis of each array is split over; none:
        every device has all of it.

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
    """Arrays on the mesh as NumPy arrays, on every process, wherever their parts lie."""
    return jax.tree.map(np.asarray, _everywhere(tree, mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def replica_of(tree: Any, index: int | jax.Array, mesh: Mesh) -> Any:
    """One replica of a tree whose leaves have them in front, on every device of the mesh."""
    one = jax.tree.map(lambda leaf: leaf[index], tree)
    return jax.lax.with_sharding_constraint(one, NamedSharding(mesh, PartitionSpec()))


def first_alone(work: Callable[[], T]) -> T:
    """What `work` returns, on every process, after process 0 has done it before the others."""
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("first_alone")
        return work()
    result = work()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("first_alone")
    return result


def writes() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def agree(*numbers: float) -> tuple[float, ...]:
    """The largest of each of the processes' numbers, the same on all of them."""
    if jax.process_count() == 1:
        return numbers
    gathered = multihost_utils.process_allgather(np.array(numbers, np.float32))
    return tuple(np.max(gathered, axis=0).tolist())


def available_memory(mesh: Mesh) -> int | None:
    """Bytes that are left on a device, the least of all processes: they refuse a run together."""
    there = memory.available(mesh.local_devices[0])
    (most,) = agree(-math.inf if there is None else -float(there))
    return None if math.isinf(most) else -int(most)


def describe() -> str:
    """The devices in words: how many of which kind."""
    devices = jax.devices()
    cores = f" ({os.cpu_count()} cores)" if devices[0].platform == "cpu" else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind}{cores}{processes}"
