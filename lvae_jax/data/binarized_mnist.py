"""Binarised MNIST: 60,000 training and 10,000 test images whose pixels are 0 or 1, 28×28.

Larochelle's fixed binarisation of MNIST (Larochelle and Murray, 2011), for comparison with results
on it. The files are text, one row of 784 zeros and ones per image, and have no labels.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lvae_jax.data.dataset import Dataset
from lvae_jax.data.prepared import load_arrays
from lvae_jax.data.source import UNKNOWN, File, Source, Splits, open_content


def read_amat(path: Path) -> np.ndarray:
    """Reads an `.amat` file, packed with gzip or not, as uint8 images [n, 28, 28] of 0 and 255.

    Each row has 784 zeros and ones with a space between them and a line feed at the end.

    Raises:
      DataError: The file is missing, truncated or damaged.
    """
    with open_content(path) as file:
        characters = np.frombuffer(file.read(), np.uint8).reshape(-1, 28, 28, 2)
    return (characters[..., 0] == ord("1")) * np.uint8(255)


def _read(paths: Mapping[str, Path]) -> Splits:
    train, valid, test = (read_amat(paths[file.name]) for file in SOURCE.files)
    images = {"train": np.concatenate([train, valid]), "test": test}
    return {split: (array, np.full(len(array), UNKNOWN)) for split, array in images.items()}


SOURCE = Source(
    name="lvae_binarized_mnist",
    homepage="http://www.dmi.usherb.ca/~larocheh/mlpython/_modules/datasets/binarized_mnist.html",
    url="http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
    files=(
        File(
            "binarized_mnist_train.amat",
            "sha256:ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        ),
        File(
            "binarized_mnist_valid.amat",
            "sha256:1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        ),
        File(
            "binarized_mnist_test.amat",
            "sha256:e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
        ),
    ),
    read=_read,
    image_shape=(28, 28),
    num_classes=10,
)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads binarised MNIST; the first time, it is downloaded (110 MB) and prepared.

    Args:
      data_dir: A folder with the three original files, packed with gzip or not, used instead of
        the network. Ignored once the data set is prepared.
      tfds_dir: The folder of prepared data sets; None is tensorflow-datasets' default,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      The data set, in the order of the original files. The training images are the 50,000 of the
      training file, then the 10,000 of the validation file; the paper trains on both. All
      labels are -1, unknown.

    Raises:
      DataError: A file is neither given nor can be downloaded, a file is not the original, or
        `tfds_dir` cannot be written to.
    """
    return Dataset(
        name="binarized_mnist",
        **load_arrays(SOURCE, data_dir, tfds_dir),
        observation="bernoulli",
        binarisation="fixed",
    )
