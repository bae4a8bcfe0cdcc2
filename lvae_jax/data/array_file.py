"""Arrays in one file, so that a prepared data set loads in a fraction of a second.

The file is a cache of the data set's records: if it is missing or cannot be read, it is written
again from them.
"""

import uuid
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lvae_jax._files import sync


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray] | None:
    """Reads the arrays called `names`, or returns None if the file cannot give all of them.

    The zip format's checksums are verified, so a damaged file counts as unreadable; pickled objects
    are never loaded.
    """
    try:
        with path.open("rb") as file:
            return {name: read_member(file, name) for name in names}
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def read_member(file: BinaryIO, name: str) -> np.ndarray:
    """Reads an array of an open .npz file to the end of its member, where its checksum is verified.

    `np.load` stops where the array's header says, so it does not see a damaged header.

    Raises:
      ValueError: The member is longer than its header says, or holds Python objects.
      Exception: What zipfile, zlib and NumPy raise for damaged files.
    """
    with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"{name} is longer than its header says")
    return array


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays atomically: `path` holds all of them or is unchanged.

    Raises:
      OSError: The folder cannot be written to.
    """
    incomplete = path.with_name(f"incomplete.{uuid.uuid4().hex}.{path.name}")
    try:
        with incomplete.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        sync(incomplete)
        incomplete.replace(path)
    finally:
        incomplete.unlink(missing_ok=True)
