"""Reading IDX, the format of the original MNIST files.

Big-endian: two zero bytes, a byte for the type (8 is uint8), a byte for the number of dimensions,
an int32 for each dimension, then the values in row-major order.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from lvae_jax.data.dataset import DataError


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads a gzipped IDX file of uint8 values.

    Args:
      path: The `.gz` file.
      ndim: The number of dimensions it must have: 3 for images, 1 for labels.

    Returns:
      A uint8 array.

    Raises:
      DataError: The file is missing, cut short, not gzip, or not IDX of that kind; one line names
        it.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be unpacked ({error}); expected a gzipped IDX file: download it again"
        ) from error

    expected = struct.pack(">HBB", 0, 8, ndim)
    if content[:4] != expected:
        raise DataError(
            f"{path} starts with the bytes {content[:4].hex() or '(none)'}; expected "
            f"{expected.hex()}, IDX with {ndim} dimensions of uint8: download it again"
        )
    header_size = 4 + 4 * ndim
    if len(content) < header_size:
        raise DataError(f"{path} ends within its header; download it again")
    shape = struct.unpack(f">{ndim}I", content[4:header_size])
    size = math.prod(shape)
    if len(content) != header_size + size:
        raise DataError(
            f"{path} holds {len(content) - header_size} values; its header {list(shape)} says "
            f"{size}: download it again"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)
