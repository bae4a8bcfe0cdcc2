"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28×28, uint8.

The paper trains on all 60,000. The files are the four original ones.
"""

import os
from typing import Any

from lvae_jax.data import idx
from lvae_jax.data.dataset import Dataset
from lvae_jax.data.prepared import Source, load_arrays


def _builder_class() -> Any:
    from lvae_jax.data.builders import LvaeMnist

    return LvaeMnist


SOURCE = Source(
    name="lvae_mnist",  # tfds has an `mnist` of its own, which needs TensorFlow
    version="1.0.0",
    url="https://storage.googleapis.com/cvdf-datasets/mnist/",
    files=idx.FILES,
    read=idx.read_splits,
    builder_class=_builder_class,
)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads MNIST; the first time, it is downloaded (11 MB) and prepared, which takes seconds.

    Args:
      data_dir: A folder with the four original files under their original names, used instead of
        the network. Not looked at once the data set is prepared.
      tfds_dir: The folder of prepared data sets; None is tensorflow-datasets' default,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      The data set, in the order of the original files, to be binarised dynamically.

    Raises:
      DataError: There is neither network nor file, a file is not the original, or `tfds_dir`
        cannot be written to; one line says which and what to do.
    """
    return Dataset(
        name="mnist",
        **load_arrays(SOURCE, data_dir, tfds_dir),
        observation="bernoulli",
        binarisation="dynamic",
    )
