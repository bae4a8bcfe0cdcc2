"""Reading IDX, the format of the original files of MNIST and Fashion-MNIST.

Big-endian: two zero bytes, a byte for the type (8 is uint8), a byte for the number of dimensions,
an int32 for each dimension, then the values in row-major order.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lvae_jax.data.dataset import DataError
from lvae_jax.data.gzip_file import open_gzip

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
"""The four files that MNIST comes in, and Fashion-MNIST under the same names."""


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
    with open_gzip(path, "IDX") as file:
        content = file.read()

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


def read_splits(paths: Mapping[str, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the four files of MNIST or of a data set like it.

    Args:
      paths: Where each of `FILES` is.

    Returns:
      Images [n, height, width] and labels [n], uint8, for "train" and "test".

    Raises:
      DataError: A file is not whole, or images and labels differ in number.
    """
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        image_path = paths[f"{prefix}-images-idx3-ubyte.gz"]
        label_path = paths[f"{prefix}-labels-idx1-ubyte.gz"]
        images, labels = read_idx(image_path, ndim=3), read_idx(label_path, ndim=1)
        if len(images) != len(labels):
            raise DataError(
                f"{image_path} holds {len(images)} images but {label_path} {len(labels)} labels; "
                "download both again"
            )
        splits[split] = images, labels
    return splits
