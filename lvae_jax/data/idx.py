"""Reading IDX, the format of the original files of MNIST and Fashion-MNIST.

Big-endian: two zero bytes, a byte for the type (8 is uint8), a byte for the number of dimensions,
an int32 for each dimension, then the values in row-major order.
"""

import itertools
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lvae_jax.data.source import File, Splits, open_content

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
"""The names of the files of images and labels, the same for both data sets."""


def files(*sha256: str) -> tuple[File, ...]:
    """The declarations of the four files of `FILES`, given the checksum of each, in that order."""
    names = itertools.chain(*FILES.values())
    return tuple(File(n, f"sha256:{c}") for n, c in zip(names, sha256, strict=True))


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of uint8 values, packed with gzip or not.

    Raises:
      DataError: The file is missing, truncated or damaged.
    """
    with open_content(path) as file:
        content = file.read()
    ndim = content[3]
    shape = struct.unpack_from(f">{ndim}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def read_splits(paths: Mapping[str, Path]) -> Splits:
    """Reads the four files of `FILES`: images [n, height, width] and labels [n], uint8."""
    return {
        split: (read_idx(paths[images]), read_idx(paths[labels]))
        for split, (images, labels) in FILES.items()
    }
