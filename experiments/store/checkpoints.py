"""A run's checkpoints: saved by orbax, listed in a manifest, and verified before use.

The checkpoint of step s is the folder `s`. It holds what orbax wrote, in `default`, where orbax's
CheckpointManager finds it, and `manifest.json` with the size and SHA-256 of each file. It is
written as `s.new` and renamed once it is complete and on disk, so a process can be killed at any
moment.
Nothing in it is a pickle: tensorstore reads the arrays, and everything else is JSON.

orbax's CheckpointManager (0.12.8) is not enough. It silently restores a file with a flipped bit. It
silently refuses to save a step before its newest one, which a run does after falling back to an
earlier checkpoint. On a full disk each of its threads prints a traceback.
"""

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import processes
from experiments.errors import NO_ROOM, WorkdirError
from experiments.store.files import remove
from experiments.store.manifests import read_manifest, verify, write_manifest
from lvae_jax._files import sync

_ITEM = "default"  # orbax's name for a state that is saved without one
_NEW, _OLD = ".new", ".old"
_DISK_ERRORS = (*NO_ROOM, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
_METADATA_SIZE = 500_000  # bytes; orbax's metadata for a few hundred arrays is smaller


class Checkpoints:
    """A run's checkpoints in a folder: the newest `keep` and the best, verified before use.

    All processes of a run call each method. The first one writes what orbax does not write,
    verifies, and decides which checkpoint is used. Only one run may save; any process may read.
    """

    def __init__(self, path: Path, keep: int = 3):
        """Does not access the folder yet.

        Args:
          path: the folder; the first save creates it.
          keep: how many of the newest checkpoints are kept, besides the one with the best score.
        """
        self.path, self.keep = path.absolute(), keep
        self._damaged: set[int] = set()
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())

    def steps(self) -> list[int]:
        """The steps of all checkpoints, including damaged ones, in ascending order."""
        if not self.path.is_dir():
            return []
        return sorted(int(p.name) for p in self.path.iterdir() if _is_step(p.name) and p.is_dir())

    def best(self) -> int | None:
        """The step with the highest score, the newest if several; None without scores."""
        scores = [(_score(self._folder(step)), step) for step in self.steps()]
        return max(((s, step) for s, step in scores if s is not None), default=(0, None))[1]

    def save(self, state: Any, step: int, score: float | None = None) -> None:
        """Saves a state; it is on disk when this returns.

        Replaces a checkpoint of the same step. Removes later ones (they could not be used when the
        run resumed), damaged ones, superseded ones, and the remains of killed saves.

        Args:
          state: a pytree of arrays, sharded or not.
          step: the training step, not negative.
          score: quality of the state, higher is better; None if it was not measured.

        Raises:
          WorkdirError: the disk is full, or cannot be written. Earlier checkpoints are intact.
        """
        new = self.path / f"{step}{_NEW}"

        def prepare() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            sync(self.path.parent)
            self._remove_leftovers()
            new.mkdir()
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            _make_sure_of_room(new / "reserved", size)

        def commit() -> None:
            write_manifest(new, step, score)
            self._remove(step)
            new.rename(self._folder(step))
            sync(self.path)
            self._damaged.discard(step)
            self._remove_superseded(step)

        try:
            processes.by_first(prepare)
            self._orbax.save(new / _ITEM, args=ocp.args.PyTreeSave(state))
            processes.by_first(commit)
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            if processes.is_first():
                with contextlib.suppress(OSError):  # the next save tries again
                    self._remove_leftovers()
            intact = [s for s in self.steps() if s not in self._damaged]
            last = f"the one of step {intact[-1]} is intact" if intact else "there is no other"
            full = reason in [os.strerror(number).lower() for number in NO_ROOM]
            advice = (
                "Free space and run the same command again"
                if full
                else "Repair the folder, or give another --workdir"
            )
            raise WorkdirError(
                f"cannot save the checkpoint of step {step} in {self.path}: {reason}; {last}. "
                f"{advice}"
            ) from error

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """Restores the newest intact checkpoint; warns about each newer one that is damaged.

        Args:
          like: the state's structure, of arrays or `jax.ShapeDtypeStruct`. The restored arrays have
            their dtypes and shardings, whatever devices they were saved from.

        Returns:
          The state and its step; None if there is no checkpoint.

        Raises:
          WorkdirError: all checkpoints are damaged, or the state's shapes differ from `like`.
        """
        step = self._newest_intact()
        if step is None:
            return None
        self._refuse_another_state(step, like)
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        arguments = ocp.args.PyTreeRestore(like, restore_args=restore_args)
        return self._orbax.restore(self._folder(step) / _ITEM, args=arguments), step

    def read(self, name: str) -> tuple[Any, int] | None:
        """Reads one entry of the newest intact state, such as "params", as NumPy arrays.

        Args:
          name: the entry's name.

        Returns:
          The entry and the step; None if there is no checkpoint.

        Raises:
          WorkdirError: all checkpoints are damaged, or the state has no such entry.
        """
        step = self._newest_intact()
        if step is None:
            return None
        try:
            return self._entry(step, name), step
        except Exception:
            if self._folder(step).is_dir():
                raise
            return self.read(name)  # a run in training has replaced it meanwhile

    def _entry(self, step: int, name: str) -> Any:
        state = self._metadata(step)
        if name not in state:
            raise WorkdirError(f"{self._folder(step)} holds no {name!r}; give another run's")
        item = {name: jax.tree.map(lambda _: 0, state[name])}
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        arguments = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        return self._orbax.restore(self._folder(step) / _ITEM, args=arguments)[name]

    def close(self) -> None:
        """Stops orbax's threads."""
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
                if not self._folder(step).is_dir():
                    return find()  # a run in training has replaced it meanwhile
                problems.append((step, problem))
            else:
                if steps:
                    raise WorkdirError(
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

        (found,) = processes.agree(processes.by_first(find) or 0)
        return int(found) - 1 if found else None

    def _metadata(self, step: int) -> dict[str, Any]:
        """The structure of a state, with the shape of each array."""
        return self._orbax.metadata(self._folder(step) / _ITEM).item_metadata.tree

    def _refuse_another_state(self, step: int, like: Any) -> None:
        there, here = _shapes(self._metadata(step)), _shapes(like)
        differences = [
            f"{name} is {there.get(name, 'missing')} there, and {here.get(name, 'missing')} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if differences:
            more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
            raise WorkdirError(
                f"{self._folder(step)} holds another state than this run's "
                f"({differences[0]}{more}); give another run's folder"
            )

    def _remove_superseded(self, step: int) -> None:
        """Removes checkpoints that are later, damaged, or more than `keep`."""
        for other in self.steps():
            if other > step or other in self._damaged:
                self._remove(other)
        self._damaged.clear()
        best = self.best()
        for other in self.steps()[: -self.keep]:
            if other != best:
                self._remove(other)

    def _remove(self, step: int) -> None:
        """Removes a checkpoint; renames it first, so that a half-removed one is never read."""
        folder, old = self._folder(step), self.path / f"{step}{_OLD}"
        if folder.exists():
            remove(old)
            folder.rename(old)
            remove(old)

    def _remove_leftovers(self) -> None:
        for left in self.path.iterdir():
            if left.suffix in (_NEW, _OLD) and _is_step(left.stem):
                remove(left)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _make_sure_of_room(path: Path, size: int) -> None:
    """Allocates the disk space of a checkpoint and frees it again.

    So a full disk, a quota or a limit is detected here, on one process, before orbax's threads
    meet it and each print a traceback.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + size // 50 + _METADATA_SIZE)
    except OSError as error:
        if error.errno in NO_ROOM:  # other errors: the file system cannot reserve
            raise
    finally:
        path.unlink(missing_ok=True)


def _score(folder: Path) -> float | None:
    manifest = read_manifest(folder)
    return None if manifest is None else manifest["score"]


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _reason(error: Exception) -> str | None:
    """Why the disk could not be written, in lower case; None for errors of another kind.

    Tensorstore gives the system's reason only in its message.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).lower()
    return next((r for r in (os.strerror(n).lower() for n in _DISK_ERRORS) if r in text), None)
