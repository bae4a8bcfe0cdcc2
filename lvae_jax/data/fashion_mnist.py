"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28×28, uint8.

Its four files have the format and the names of MNIST's; checksums tell them apart.
"""

import os
from typing import Literal, get_args

from lvae_jax.data.dataset import Dataset, check_choice
from lvae_jax.data.idx import files, read_splits
from lvae_jax.data.prepared import load_arrays
from lvae_jax.data.source import Source

Observed = Literal["bernoulli", "discretized_logistic"]
"""Observations of the images."""

SOURCE = Source(
    name="lvae_fashion_mnist",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=files(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    read=read_splits,
    image_shape=(28, 28),
    num_classes=10,
)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
    observation: Observed = "bernoulli",
) -> Dataset:
    """Loads Fashion-MNIST; the first time, it is downloaded (31 MB) and prepared.

    Args:
      data_dir: A folder with the four original files, used instead of the network: packed with
        gzip or not, named `train-images-idx3-ubyte` or `train-images.idx3-ubyte` and so on.
        Ignored once the data set is prepared.
      tfds_dir: The folder of prepared data sets; None is tensorflow-datasets' default,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      observation: "bernoulli" to binarise the images dynamically; "discretized_logistic" for
        their 256 grey values as they are.

    Returns:
      The data set, in the order of the original files.

    Raises:
      DataError: A file is neither given nor can be downloaded, a file is not the original,
        `tfds_dir` cannot be written to, or the observation is another.
    """
    check_choice("fashion_mnist", "observation", observation, get_args(Observed))
    return Dataset(
        name="fashion_mnist",
        **load_arrays(SOURCE, data_dir, tfds_dir),
        observation=observation,
        binarisation="dynamic" if observation == "bernoulli" else "none",
    )
