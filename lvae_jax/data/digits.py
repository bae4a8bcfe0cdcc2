"""scikit-learn's handwritten digits: 1,797 grey images of 8×8, which come with the package.

They are small enough to train on in seconds, and need no download.
"""

import numpy as np

from lvae_jax.data.dataset import DataError, Dataset
from lvae_jax.data.prepared import as_arrays
from lvae_jax.data.source import Splits

TRAIN_SIZE = 1500
SPLIT_SEED = 1797
"""Seed of the order in which the images are split; changing it changes every reported number."""


def load(continuous: bool = False) -> Dataset:
    """Loads the digits: 1,500 images to train on and the other 297 to test on.

    The images are split after a fixed random permutation, which mixes their 43 writers.

    Args:
      continuous: Observe the grey values as they are instead of as zeros and ones.

    Returns:
      The data set; grey values k/16, k = 0..16, as float32. "digits" is to be binarised
      dynamically; "digits-continuous" has a Gaussian observation of (k + u)/16, u in [0, 1).

    Raises:
      DataError: scikit-learn is not installed.
    """
    return Dataset(
        name="digits-continuous" if continuous else "digits",
        **as_arrays(_splits()),
        observation="gaussian" if continuous else "bernoulli",
        binarisation="none" if continuous else "dynamic",
        dequantisation=1 / 16 if continuous else 0.0,
    )


def _splits() -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f'digits needs scikit-learn ({error}); pip install "lvae-jax[experiments]"'
        ) from error
    grey, labels = load_digits(return_X_y=True)
    images = grey.reshape(-1, 8, 8).astype(np.float32) / 16
    # NumPy's legacy generator, because its stream is frozen.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))
    parts = {"train": order[:TRAIN_SIZE], "test": order[TRAIN_SIZE:]}
    return {split: (images[part], labels[part]) for split, part in parts.items()}
