"""The devices of a run: processes that work together, a mesh, and arrays on it.

One code path for one device and for many: arrays lie on a mesh of the axes `training.MESH_AXES`,
whatever its size. In a run of several processes every process does the same with the same arrays;
process 0 alone writes.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.errors import SettingsError
from experiments.settings import Settings
from lvae_jax.training import MESH_AXES

T = TypeVar("T")


def start_processes(settings: Settings) -> None:
    """Connects the processes that run this command together, if there are several.

    By the flags where they are given, else as SLURM, Open MPI or a TPU pod says. To be called
    before anything asks for the devices.

    Raises:
      SettingsError: the coordinator cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    if settings.coordinator_address:
        try:
            jax.distributed.initialize(
                settings.coordinator_address, settings.num_processes, settings.process_id
            )
        except (RuntimeError, ValueError) as error:
            raise SettingsError(
                f"--coordinator_address={settings.coordinator_address}: {error}; start all "
                f"{settings.num_processes} processes, with HOST:PORT of process 0"
            ) from error
    elif _found_by_the_environment():
        jax.distributed.initialize()


def _found_by_the_environment() -> bool:
    """Whether a scheduler has started several processes, in a way that JAX can read."""
    counts = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    # SLURM_NTASKS is set for a script that sbatch starts by itself, too; SLURM_PROCID by srun.
    by_srun = "SLURM_PROCID" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ
    several_workers = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return (by_srun and any(count != "1" for count in counts)) or several_workers


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


def describe() -> str:
    """The devices in words: how many of which kind."""
    devices = jax.devices()
    cores = f" ({os.cpu_count()} cores)" if devices[0].platform == "cpu" else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind}{cores}{processes}"
