"""The processes of a run: which one writes, and how a failure of one ends them all.

Every process calls these functions, in the same order.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.errors import RunError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def agree(*numbers: float) -> tuple[float, ...]:
    """The maximum of each number over all processes; exact for whole numbers."""
    if jax.process_count() == 1:
        return numbers
    kind = np.int32 if all(isinstance(number, int) for number in numbers) else np.float32
    gathered = multihost_utils.process_allgather(np.array(numbers, kind))
    return tuple(np.max(gathered, axis=0).tolist())


def exchange(value: Any) -> list[Any]:
    """The value of each process, first to last, which JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    content = json.dumps(value).encode()
    (length,) = agree(len(content))
    own = np.frombuffer(content.ljust(int(length)), np.uint8)  # JSON ignores spaces at its end
    return [json.loads(each.tobytes()) for each in multihost_utils.process_allgather(own)]


def by_first(work: Callable[[], T]) -> T | None:
    """Calls `work` on process 0; returns its result there, and None on the others.

    Raises:
      Exception: what `work` raised, on process 0.
      RunError: `work` raised, on the other processes.
    """
    return _where(is_first(), work)


def first_alone(work: Callable[[], T]) -> T:
    """Calls `work` on process 0 and then on all others; returns its result on every process.

    Raises:
      Exception: what `work` raised on this process.
      RunError: `work` raised on another process.
    """
    agree(0)  # on a CPU the first exchange fails after 30 s, and `work` may take longer
    of_first, of_others = _where(is_first(), work), _where(not is_first(), work)
    return of_first if is_first() else of_others  # type: ignore[return-value]


def everywhere(work: Callable[[], T]) -> T:
    """Calls `work`, which must not call these functions itself, on every process at once.

    Raises:
      Exception: what `work` raised on this process.
      RunError: `work` raised on another process.
    """
    return _where(True, work)  # type: ignore[return-value]


def end_if_one_is_lost(error: Exception) -> None:
    """Ends this process with one line if an exchange with other processes failed.

    It ends at once: JAX would wait for the other one for minutes, and abort.
    """
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        reason = " ".join(str(error).partition("\n")[0].split())
        print(
            f"error: an exchange with the other processes of this run failed ({reason}); if one of "
            "them has ended, end the others too, and start all again: they resume from the last "
            "checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(RunError.status)


def _where(here: bool, work: Callable[[], T]) -> T | None:
    """Calls `work` where `here` is true; raises on every process if it raises on any."""
    result, failure = None, None
    if here:
        try:
            result = work()
        except Exception as error:
            failure = error
    (failed,) = agree(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise RunError("another process of this run failed; its own line says why")
    return result
