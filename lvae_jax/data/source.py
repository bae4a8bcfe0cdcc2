"""The declaration of a data set: its original files, and how they become arrays."""

import contextlib
import dataclasses
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lvae_jax._files import expanded
from lvae_jax.data.dataset import DataError

Splits = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images [n, *image_shape] and integer labels [n], `UNKNOWN` or not, for "train" and "test"."""

UNKNOWN = -1
"""The label of an image whose label is not known."""


class File(NamedTuple):
    """One original file.

    Attributes:
      name: Its name at the source's address.
      checksum: "sha256:..." or "md5:..." of its content, unpacked if it is packed with gzip.
      of_packed: True if `checksum` is that of the packed file, because no other is known.
    """

    name: str
    checksum: str
    of_packed: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set comes from and what is in it.

    Attributes:
      name: Its name in tensorflow-datasets.
      homepage: A page about it.
      url: The address of the folder that holds the files, ending in "/".
      files: The original files.
      read: Reads the files, given the path of each by its name in `files`. The files are verified
        before, so it need not check their content.
      image_shape: Shape of one image.
      num_classes: Number of different labels.
      image_dtype: uint8 or float32.
      version: Its version in tensorflow-datasets. Increase it when `read` returns other arrays.
    """

    name: str
    homepage: str
    url: str
    files: tuple[File, ...]
    read: Callable[[Mapping[str, Path]], Splits]
    image_shape: tuple[int, ...]
    num_classes: int
    image_dtype: type = np.uint8
    version: str = "1.0.0"

    def find(self, folder: Path) -> dict[str, Path]:
        """The path of each file that is in the folder, under any of its spellings."""
        found = {}
        for file in self.files:
            paths = [folder / name for name in spellings(file.name) if (folder / name).is_file()]
            if paths:
                found[file.name] = paths[0]
        return found

    def verify(self, file: File, path: Path) -> None:
        """Checks that `path` has the content of `file`.

        Raises:
          DataError: The content differs, or the file cannot be read.
        """
        algorithm, _, expected = file.checksum.partition(":")
        try:
            with path.open("rb") if file.of_packed else open_content(path) as content:
                found = hashlib.file_digest(content, algorithm).hexdigest()
        except OSError as error:
            raise DataError(
                f"{self.name}: {path} cannot be read ({error.strerror}); give one that can be read"
            ) from error
        if found != expected:
            packed = " of the packed file" if file.of_packed else ""
            raise DataError(
                f"{self.name}: {path} is not the original file: its {algorithm} is {found}, "
                f"expected {expected}{packed}; download {file.name} again from {self.url}"
            )


def spellings(name: str) -> list[str]:
    """The names under which a file is found: packed or not, and both spellings of idx files.

    Example:
      >>> spellings("images-idx3-ubyte.gz")[:3]
      ['images-idx3-ubyte.gz', 'images-idx3-ubyte', 'images.idx3-ubyte.gz']
      >>> spellings("chardata.mat")
      ['chardata.mat', 'chardata.mat.gz']
    """
    plain = name.removesuffix(".gz")
    dotted = re.sub(r"-(idx\d-ubyte)$", r".\1", plain)
    return list(dict.fromkeys([name, plain, f"{plain}.gz", f"{dotted}.gz", dotted]))


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced by the home directory.

    Raises:
      DataError: The user, or the one named after the ~, has no home directory.
    """
    return expanded(path, DataError)


@contextlib.contextmanager
def open_content(path: Path) -> Iterator[BufferedIOBase]:
    """Opens a file for reading; a gzip file is unpacked, whatever its name.

    Raises:
      DataError: The file is missing, truncated or damaged. This can also be found while the body
        of the `with` statement reads.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_packed else path.open("rb") as content:
            yield content
    except (OSError, EOFError, zlib.error) as error:
        refused = isinstance(error, OSError) and error.errno is not None  # by the system
        advice = "give one that can be read" if refused else "download it again"
        raise DataError(f"{path} cannot be read ({error}); {advice}") from error
