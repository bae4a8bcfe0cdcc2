"""scikit-learn's handwritten digits: 1,797 grey images of 8×8, which come with the package.

Small enough to train on in seconds, with no file to fetch.
"""

import numpy as np

from lvae_jax.data.dataset import DataError, Dataset

TRAIN_SIZE = 1500
SPLIT_SEED = 1797
"""Seed of the order in which the images are split; changing it changes every reported number."""


def load() -> Dataset:
    """Loads the digits: 1,500 images to train on and the other 297 to test on.

    The images are put into a fixed random order, which mixes their 43 writers, and split there.

    Returns:
      The data set; grey values k/16, k = 0..16, as float32, to be binarised dynamically.

    Raises:
      DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f'digits needs scikit-learn ({error}); pip install "lvae-jax[experiments]"'
        ) from error

    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    # NumPy's legacy generator, because its stream is frozen.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))
    train, test = order[:TRAIN_SIZE], order[TRAIN_SIZE:]
    return Dataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        observation="bernoulli",
        binarisation="dynamic",
    )
