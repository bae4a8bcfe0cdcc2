"""Checks whether a run fits into memory, before anything is allocated and before it trains.

The first check is of the arrays that a run keeps, by their shapes. The second is of the memory that
the compiled training program needs in addition, as the compiler reports it.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.errors import SettingsError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def size(tree: Any) -> int:
    """Bytes of a tree's arrays on one device; of sharded arrays, their shards."""

    def of_leaf(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(of_leaf, jax.tree.leaves(tree)))


def check_arrays(
    parameters: Any, moments: Any, data_bytes: int, there: int | None, replicas: int = 1
) -> None:
    """Refuses a run whose arrays do not fit.

    Args:
      parameters: arrays or `jax.ShapeDtypeStruct`; their gradients need the same memory again.
      moments: the optimiser's state, likewise.
      data_bytes: bytes of the images that stay on a device.
      there: available bytes, see `available`; None to skip the check.
      replicas: the number of replicas, for the message.

    Raises:
      SettingsError: the arrays do not fit.
    """
    trained = 2 * size(parameters) + size(moments)
    needed = trained + data_bytes
    if there is None or needed <= there:
        return
    if trained <= data_bytes:
        advice = "give fewer images, or images of fewer values"
    elif replicas > 1:
        advice = "give fewer --replicas, or smaller --hidden_sizes"
    else:
        advice = "give smaller --hidden_sizes, or images of fewer values"
    raise SettingsError(
        f"the run needs about {in_words(needed)} of memory (parameters, their gradients and "
        f"moments {in_words(trained)}, data {in_words(data_bytes)}) and {in_words(there)} are "
        f"available; {advice}"
    )


def size_of_program(program: jax.stages.Compiled) -> int:
    """Bytes that a compiled program needs on a device in addition to its arguments."""
    sizes = program.memory_analysis()
    if sizes is None:  # a backend may report nothing
        return 0
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes


def check_program(needed: int, there: int | None) -> None:
    """Refuses a training program that does not fit.

    Args:
      needed: bytes, see `size_of_program`; its arguments are in memory already.
      there: available bytes, see `available`; None to skip the check.

    Raises:
      SettingsError: the program does not fit.
    """
    if there is not None and needed > there:
        raise SettingsError(
            f"a training step needs about {in_words(needed)} of memory besides parameters and "
            f"data, and {in_words(there)} are available; give a smaller --batch_size, "
            "--mc_samples, --iw_samples or --replicas"
        )


def available(device: jax.Device) -> int | None:
    """Available bytes on a device (of a CPU, its share of the host's); None if unknown."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    limits = [*_available_on_the_host(), *_left_in_cgroups()]
    return min(limits) // jax.local_device_count("cpu") if limits else None


def _available_on_the_host() -> Iterator[int]:
    """Yields the host's available bytes, if they are known."""
    for line in _lines(MEMINFO):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
            return
    try:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no Unix
        return


def _left_in_cgroups() -> Iterator[int]:
    """Yields the bytes left under each cgroup memory limit of this process (cgroups v1 and v2)."""
    for line in _lines(CGROUP):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        limit, usage, reclaimable = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        # A limit applies to all groups below it. In a container the path may be the host's.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            most = _lines(group / limit)
            if most and most[0].isdecimal():
                used = int(_lines(group / usage)[0])
                cached = [
                    int(row.split()[1])
                    for row in _lines(group / "memory.stat")
                    if row.split()[0] == reclaimable
                ]
                yield max(0, int(most[0]) - used + sum(cached))
            if group == root:
                break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def in_words(size: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # three digits are shown
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB" if size < 1e6 else f"{size:.1e} TB"
