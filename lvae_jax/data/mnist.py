"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28×28, uint8.

The paper trains on all 60,000.
"""

import os

from lvae_jax.data.dataset import Dataset
from lvae_jax.data.idx import files, read_splits
from lvae_jax.data.prepared import load_arrays
from lvae_jax.data.source import Source

SOURCE = Source(
    name="lvae_mnist",  # tensorflow-datasets has an `mnist` of its own, which needs TensorFlow
    homepage="https://storage.googleapis.com/cvdf-datasets/mnist/",
    url="https://storage.googleapis.com/cvdf-datasets/mnist/",
    files=files(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    read=read_splits,
    image_shape=(28, 28),
    num_classes=10,
)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads MNIST; the first time, it is downloaded (11 MB) and prepared, which takes seconds.

    Args:
      data_dir: A folder with the four original files, used instead of the network: packed with
        gzip or not, named `train-images-idx3-ubyte` or `train-images.idx3-ubyte` and so on.
        Ignored once the data set is prepared.
      tfds_dir: The folder of prepared data sets; None is tensorflow-datasets' default,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      The data set, in the order of the original files, to be binarised dynamically.

    Raises:
      DataError: A file is neither given nor can be downloaded, a file is not the original, or
        `tfds_dir` cannot be written to.
    """
    return Dataset(
        name="mnist",
        **load_arrays(SOURCE, data_dir, tfds_dir),
        observation="bernoulli",
        binarisation="dynamic",
    )
