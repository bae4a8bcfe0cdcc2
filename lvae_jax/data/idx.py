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
from lvae_jax.data.source import Splits, open_content

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
"""The names of the files of images and labels, the same for both data sets."""


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads an IDX file of uint8 values.

    Args:
      path: The file, packed with gzip or not.
      ndim: The number of dimensions it must have: 3 for images, 1 for labels.

    Returns:
      A uint8 array.

    Raises:
      DataError: The file is missing, cut short, or not IDX of that kind.
    """
    with open_content(path) as file:
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


def read_splits(paths: Mapping[str, Path]) -> Splits:
    """Reads the four files of `FILES`: images [n, height, width] and labels [n], uint8.

    Raises:
      DataError: A file is not whole, or images and labels differ in number.
    """
    splits = {}
    for split, (image_file, label_file) in FILES.items():
        images, labels = read_idx(paths[image_file], ndim=3), read_idx(paths[label_file], ndim=1)
        if len(images) != len(labels):
            raise DataError(
                f"{paths[image_file]} holds {len(images)} images but {paths[label_file]} "
                f"{len(labels)} labels; download both again"
            )
        splits[split] = images, labels
    return splits
