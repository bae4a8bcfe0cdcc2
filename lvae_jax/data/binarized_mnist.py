"""Binarised MNIST: 60,000 training and 10,000 test images whose pixels are 0 or 1, 28×28.

Larochelle's fixed binarisation of MNIST (Larochelle and Murray, 2011), for comparison with results
on it. The files are text, a row of 784 zeros and ones an image, and have no labels.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lvae_jax.data.dataset import DataError, Dataset
from lvae_jax.data.gzip_file import open_gzip
from lvae_jax.data.prepared import Source, load_arrays

VALIDATION_SIZE = 10_000
"""The last so many training images are those of the original validation file."""

_SEPARATORS = np.frombuffer(b" " * 783 + b"\n", np.uint8)


def read_amat(path: Path) -> np.ndarray:
    """Reads a file of rows of 784 zeros and ones, with single spaces between them.

    Args:
      path: The `.amat` file, or the same packed with gzip as `.amat.gz`.

    Returns:
      uint8 images [n, 28, 28], each pixel 0 or 255.

    Raises:
      DataError: The file is missing, cut short or another; one line names it.
    """
    if path.suffix == ".gz":
        with open_gzip(path, ".amat") as file:
            content = file.read()
    else:
        content = path.read_bytes()

    row_size = 2 * len(_SEPARATORS)
    if not content or len(content) % row_size:
        raise DataError(
            f"{path} holds {len(content)} characters; expected a multiple of {row_size}, rows of "
            "784 zeros and ones with a space between them: download it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row_size)
    pixels, separators = rows[:, 0::2], rows[:, 1::2]
    ones = pixels == ord("1")
    right = np.all(ones | (pixels == ord("0")), 1) & np.all(separators == _SEPARATORS, 1)
    if not np.all(right):
        raise DataError(
            f"{path}: row {np.argmin(right) + 1} is not 784 zeros and ones with a space between "
            "them; download it again"
        )
    return (ones * np.uint8(255)).reshape(-1, 28, 28)


def _read(paths: Mapping[str, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    train, valid, test = (read_amat(paths[file]) for file in SOURCE.files)
    images = {"train": np.concatenate([train, valid]), "test": test}
    return {split: (array, np.full(len(array), -1)) for split, array in images.items()}


def _builder_class() -> Any:
    from lvae_jax.data.builders import LvaeBinarizedMnist

    return LvaeBinarizedMnist


SOURCE = Source(
    name="lvae_binarized_mnist",
    version="1.0.0",
    url="http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
    files=tuple(f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")),
    read=_read,
    builder_class=_builder_class,
    may_be_packed=True,
)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads binarised MNIST; the first time, it is downloaded (110 MB) and prepared.

    Args:
      data_dir: A folder with the three original files under their original names, as they are or
        packed with gzip (`.gz` added), used instead of the network. Not looked at once the data
        set is prepared.
      tfds_dir: The folder of prepared data sets; None is tensorflow-datasets' default,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      The data set, in the order of the original files. The training images are the 50,000 of the
      training file and then the 10,000 of the validation file, for the paper trains on both. All
      labels are -1, unknown.

    Raises:
      DataError: There is neither network nor file, a file is not the original, or `tfds_dir`
        cannot be written to; one line says which and what to do.
    """
    return Dataset(
        name="binarized_mnist",
        **load_arrays(SOURCE, data_dir, tfds_dir),
        observation="bernoulli",
        binarisation="fixed",
    )
