"""Writes files completely or not at all, and turns errors about a run's files into one line."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.errors import WorkdirError, what_to_do
from lvae_jax._files import sync


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error in writing a file or a folder into one line.

    Raises:
      WorkdirError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkdirError(f"cannot write to {path} ({reason}); {what_to_do(error)}") from error


def check_writable(folder: Path) -> None:
    """Refuses a folder that takes no files, before anything is computed for it.

    Raises:
      WorkdirError: it cannot be written to.
    """
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise WorkdirError(
            f"{folder} cannot be written to, and the results belong there; give a copy of it"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which then replaces `path`, so that no part of a file is left there."""
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes a file completely or not at all; it is on disk when this returns."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes a file completely or not at all; it is on disk when this returns."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; None if it does not exist.

    Raises:
      WorkdirError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); restore it, or give another folder"
        ) from error


def remove(path: Path) -> None:
    """Removes a file, a link (not its target) or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
