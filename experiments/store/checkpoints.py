"""A run's checkpoints: saved by orbax, each listed in a manifest, and verified before it is used.

A checkpoint of step s is the folder `s`: what orbax wrote, in `default`, where orbax's own
CheckpointManager finds it, and `manifest.json` with the size and SHA-256 of each file. It is made
as `s.new` and gets its name when it is complete and on the disk, so that a process can be killed
at any moment. Nothing in it is a pickle: tensorstore reads the arrays, and all else is JSON.

orbax's CheckpointManager (0.12.8) is not enough: it restores a file with a flipped bit without a
word; it silently does not save a step before its newest one, as a run does that fell back to an
earlier checkpoint; and a full disk is a traceback from each of its threads.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from experiments.errors import CheckpointError, WorkdirError
from experiments.store.files import NO_ROOM, remove, sync
from experiments.store.manifests import read_manifest, verify, write_manifest

_ITEM = "default"  # orbax's own name for a state that is saved without one
_NEW, _OLD = ".new", ".old"
_FAILED = -1
_DISK_ERRORS = (*NO_ROOM, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
_METADATA_SIZE = 500_000  # bytes of what orbax writes about a few hundred arrays


def by_first_process(work: Callable[[], int]) -> int:
    """What `work` returns on the first process, on all of them; none of them waits if it fails.

    Args:
      work: returns a number from 0 on.

    Returns:
      That number.

    Raises:
      OSError: of the first process's work, or that the first process's work failed.
      WorkdirError: likewise.
    """
    if jax.process_count() == 1:
        return work()
    result, error = _FAILED, None
    if jax.process_index() == 0:
        try:
            result = work()
        except (OSError, WorkdirError) as failure:
            error = failure
    result = int(multihost_utils.broadcast_one_to_all(np.int32(result)))
    if error is not None:
        raise error
    if result == _FAILED:
        raise WorkdirError("the first process cannot use the workdir; its own line says why")
    return result


class Checkpoints:
    """A run's checkpoints in a folder: the newest `keep` and the best, verified before use.

    Where a run has several processes, all of them call each method; the first one writes what
    orbax does not, verifies, and decides for all which checkpoint is used. Only the process (or
    the processes) of one run may save; any other may read.
    """

    def __init__(self, path: Path, keep: int = 3):
        """Looks at nothing yet.

        Args:
          path: the folder; made by the first save.
          keep: so many are kept, the newest, besides the one with the best score.
        """
        self.path, self.keep = path.absolute(), keep
        self._damaged: set[int] = set()
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())

    def steps(self) -> list[int]:
        """The steps of all checkpoints, damaged ones included, ascending."""
        if not self.path.is_dir():
            return []
        return sorted(int(p.name) for p in self.path.iterdir() if _is_step(p.name) and p.is_dir())

    def best(self) -> int | None:
        """The step with the highest score, the newest of several; None if none has a score."""
        scores = [(_score(self._folder(step)), step) for step in self.steps()]
        return max(((s, step) for s, step in scores if s is not None), default=(0, None))[1]

    def save(self, state: Any, step: int, score: float | None = None) -> None:
        """Saves a state; it is on the disk when this returns.

        A checkpoint of the same step is replaced, and later ones are removed: they were made by a
        start that got further, but could not be used. Removed are also those found damaged, those
        that are more than are to be kept, and what killed saves left.

        Args:
          state: a pytree of arrays, sharded or not.
          step: the training step, not negative.
          score: how good the state is, the higher the better; None if it was not measured.

        Raises:
          CheckpointError: the disk is full, or cannot be written. Earlier checkpoints are intact.
        """
        new = self.path / f"{step}{_NEW}"

        def prepare() -> int:
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            new.mkdir()
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            _make_sure_of_room(new / "reserved", size)
            return 0

        def commit() -> int:
            write_manifest(new, step, score)
            self._remove(step)
            new.rename(self._folder(step))
            sync(self.path)
            self._damaged.discard(step)
            self._remove_superseded(step)
            return 0

        try:
            by_first_process(prepare)
            self._orbax.save(new / _ITEM, args=ocp.args.PyTreeSave(state))
            by_first_process(commit)
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            if jax.process_index() == 0:
                self._try_to_remove_leftovers()
            intact = [s for s in self.steps() if s not in self._damaged]
            last = f"the one of step {intact[-1]} is intact" if intact else "there is no other"
            raise CheckpointError(
                f"cannot save the checkpoint of step {step} in {self.path}: {reason}; {last}. "
                "Free space and give the same command again"
            ) from error

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """The newest intact checkpoint; a warning names each newer one that is not.

        Args:
          like: the state's structure, of arrays or `jax.ShapeDtypeStruct`; what is restored gets
            their shapes, dtypes and shardings, whatever devices it was saved from.

        Returns:
          The state and its step; None if there is no checkpoint at all.

        Raises:
          CheckpointError: there are some, but none is intact, or it is not like `like`.
        """
        step = self._newest_intact()
        if step is None:
            return None
        self._refuse_another_state(step, like)
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        arguments = ocp.args.PyTreeRestore(like, restore_args=restore_args)
        return self._orbax.restore(self._folder(step) / _ITEM, args=arguments), step

    def read(self, name: str) -> tuple[Any, int] | None:
        """One entry of the newest intact state, such as "params", as NumPy arrays.

        Args:
          name: of the entry.

        Returns:
          The entry, and the step; None if there is no checkpoint at all.

        Raises:
          CheckpointError: there are some, but none is intact, or it has no such entry.
        """
        step = self._newest_intact()
        if step is None:
            return None
        state = self._metadata(step)
        if name not in state:
            raise CheckpointError(f"{self._folder(step)} holds no {name!r}; give another run's")
        item = {name: jax.tree.map(lambda _: 0, state[name])}
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        arguments = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        return self._orbax.restore(self._folder(step) / _ITEM, args=arguments)[name], step

    def close(self) -> None:
        """Ends the threads that read and write."""
        self._orbax.close()

    def _folder(self, step: int) -> Path:
        return self.path / str(step)

    def _newest_intact(self) -> int | None:
        def find() -> int:
            problems: list[tuple[int, str]] = []
            steps = self.steps()
            for step in reversed(steps):
                problem = verify(self._folder(step), step)
                if problem is None:
                    break
                problems.append((step, problem))
            else:
                if steps:
                    raise CheckpointError(
                        f"{self.path} holds no checkpoint that is intact "
                        f"({'; '.join(f'step {s}: {p}' for s, p in problems)}). "
                        "Restore them from a copy, or start again with --overwrite"
                    )
                return 0
            for damaged, problem in problems:
                self._damaged.add(damaged)
                print(
                    f"warning: {self._folder(damaged)} is damaged ({problem}); "
                    f"the checkpoint of step {step} is used instead",
                    file=sys.stderr,
                )
            return 1 + step

        found = by_first_process(find)
        return found - 1 if found else None

    def _metadata(self, step: int) -> dict[str, Any]:
        """The structure of a state, with the shape of each array."""
        return self._orbax.metadata(self._folder(step) / _ITEM).item_metadata.tree

    def _refuse_another_state(self, step: int, like: Any) -> None:
        there, here = _shapes(self._metadata(step)), _shapes(like)
        differences = [
            f"{name} is {there.get(name, 'not there')}, and {here.get(name, 'nothing')} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if differences:
            more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
            raise CheckpointError(
                f"{self._folder(step)} holds another state than this run's "
                f"({differences[0]}{more}); give another --workdir"
            )

    def _remove_superseded(self, step: int) -> None:
        """Removes what is later, damaged, or more than are to be kept."""
        for other in self.steps():
            if other > step or other in self._damaged:
                self._remove(other)
        self._damaged.clear()
        best = self.best()
        for other in self.steps()[: -self.keep]:
            if other != best:
                self._remove(other)

    def _remove(self, step: int) -> None:
        """Removes a checkpoint; one that is half removed has no step's name any more."""
        folder, old = self._folder(step), self.path / f"{step}{_OLD}"
        if folder.exists():
            remove(old)
            folder.rename(old)
            remove(old)

    def _remove_leftovers(self) -> None:
        for left in self.path.iterdir():
            if left.suffix in (_NEW, _OLD) and _is_step(left.stem):
                remove(left)

    def _try_to_remove_leftovers(self) -> None:
        with contextlib.suppress(OSError):  # the next save tries again
            self._remove_leftovers()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _make_sure_of_room(path: Path, size: int) -> None:
    """Takes the disk space of a checkpoint and gives it back.

    A full disk, a quota and a limit are so met in one place, and before orbax's threads, which
    each print what went wrong, and on one process, while none waits for another.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + size // 50 + _METADATA_SIZE)
    except OSError as error:
        if error.errno in NO_ROOM:  # else a file system that cannot reserve
            raise
    finally:
        path.unlink(missing_ok=True)


def _score(folder: Path) -> float | None:
    manifest = read_manifest(folder)
    return None if manifest is None else manifest["score"]


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _reason(error: Exception) -> str | None:
    """Why a disk refused to be written, in lower case; None if the error is another one.

    Tensorstore tells the system's reason in its message alone.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).lower()
    return next((r for r in (os.strerror(n).lower() for n in _DISK_ERRORS) if r in text), None)
