"""scikit-learn's handwritten digits: 1,797 grey images of 8×8, which come with the package.

Small enough to train on in seconds, with no file to fetch.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from lvae_jax.data.dataset import DataError, Dataset
from lvae_jax.data.prepared import Source

TRAIN_SIZE = 1500
SPLIT_SEED = 1797
"""Seed of the order in which the images are split; changing it changes every reported number."""


def load(continuous: bool = False) -> Dataset:
    """Loads the digits: 1,500 images to train on and the other 297 to test on.

    The images are put into a fixed random order, which mixes their 43 writers, and split there.

    Args:
      continuous: Whether the grey values are observed as they are and not as zeros and ones.

    Returns:
      The data set; grey values k/16, k = 0..16, as float32. "digits" is to be binarised
      dynamically; "digits-continuous" has a Gaussian observation of (k + u)/16, u in [0, 1).

    Raises:
      DataError: scikit-learn is not installed.
    """
    (train_images, train_labels), (test_images, test_labels) = _splits().values()
    return Dataset(
        name="digits-continuous" if continuous else "digits",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        observation="gaussian" if continuous else "bernoulli",
        binarisation="none" if continuous else "dynamic",
        dequantisation=1 / 16 if continuous else 0.0,
    )


def _splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels for "train" and "test"."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError('digits needs scikit-learn; pip install "lvae-jax[experiments]"')
    # What `sklearn.datasets.load_digits` reads; importing that takes longer than all else here.
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    except OSError as error:
        raise DataError(f"cannot read scikit-learn's digits ({error}); install it anew") from error
    images = table[:, :-1].reshape(-1, 8, 8) / 16
    labels = table[:, -1].astype(np.int32)
    # NumPy's legacy generator, because its stream is frozen.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))
    parts = {"train": order[:TRAIN_SIZE], "test": order[TRAIN_SIZE:]}
    return {split: (images[part], labels[part]) for split, part in parts.items()}


def _builder_class() -> Any:
    from lvae_jax.data.builders import LvaeDigits

    return LvaeDigits


SOURCE = Source(  # for users of tfds; `load` needs no preparing
    name="lvae_digits",
    version="1.0.0",
    url="",
    files=(),
    read=lambda paths: _splits(),
    builder_class=_builder_class,
)
