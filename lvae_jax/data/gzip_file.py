"""Opening the gzipped files that data sets come in."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from lvae_jax.data.dataset import DataError


@contextlib.contextmanager
def open_gzip(path: Path, kind: str) -> Iterator[gzip.GzipFile]:
    """Opens a gzipped file for reading, in a `with` statement.

    Args:
      path: The `.gz` file.
      kind: What is expected in it, for the message.

    Yields:
      The unpacked content, to be read.

    Raises:
      DataError: The file is missing, cut short or not gzip, be it on opening or while reading
        within the `with` statement; one line names it.
    """
    try:
        with gzip.open(path) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be unpacked ({error}); expected a gzipped {kind} file: download it "
            "again"
        ) from error
