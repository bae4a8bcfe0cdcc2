"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28×28, uint8.

Its four files have the format and the names of MNIST's; checksums tell them apart.
"""

import os
from typing import Any

from lvae_jax.data import idx
from lvae_jax.data.dataset import Dataset
from lvae_jax.data.prepared import Source, load_arrays


def _builder_class() -> Any:
    from lvae_jax.data.builders import LvaeFashionMnist

    return LvaeFashionMnist


SOURCE = Source(
    name="lvae_fashion_mnist",
    version="1.0.0",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=idx.FILES,
    read=idx.read_splits,
    builder_class=_builder_class,
)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads Fashion-MNIST; the first time, it is downloaded (31 MB) and prepared.

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
        name="fashion_mnist",
        **load_arrays(SOURCE, data_dir, tfds_dir),
        observation="bernoulli",
        binarisation="dynamic",
    )
