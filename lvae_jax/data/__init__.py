"""Data sets as host arrays, and the functions that turn their images into `x`.

Each data set is a module whose `load()` returns a `Dataset`; `arrays.load()` makes one of your own
files. `Dataset.preprocess`, for instance `binarise`, turns a batch of images into `x`
[batch, data_dim]. Importing this package imports neither tensorflow-datasets nor scikit-learn: a
data set imports them when they are first needed.
"""

from lvae_jax.data import (
    arrays,
    binarized_mnist,
    digits,
    fashion_mnist,
    mnist,
    omniglot,
    small_norb,
)
from lvae_jax.data.binarisation import (
    TEST_BINARISATION_SEED,
    as_stored,
    binarise,
    binarise_once,
    flatten,
    to_unit,
)
from lvae_jax.data.dataset import DataError, Dataset
from lvae_jax.data.dequantisation import TEST_DEQUANTISATION_SEED, dequantise, dequantise_once

__all__ = [
    "TEST_BINARISATION_SEED",
    "TEST_DEQUANTISATION_SEED",
    "DataError",
    "Dataset",
    "arrays",
    "as_stored",
    "binarise",
    "binarise_once",
    "binarized_mnist",
    "dequantise",
    "dequantise_once",
    "digits",
    "fashion_mnist",
    "flatten",
    "mnist",
    "omniglot",
    "small_norb",
    "to_unit",
]
