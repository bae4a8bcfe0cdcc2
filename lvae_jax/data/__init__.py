"""Data sets as host arrays, and what turns their images into what the model sees.

`mnist.load()` and `digits.load()` return a `Dataset`; `binarise` and its neighbours turn a batch of
its images into `x`, [batch, data_dim]. Importing this package imports neither tensorflow-datasets
nor scikit-learn: a data set asks for them when it is first prepared.
"""

from lvae_jax.data import digits, mnist
from lvae_jax.data.binarisation import (
    TEST_BINARISATION_SEED,
    as_stored,
    binarise,
    binarise_once,
    flatten,
    to_unit,
)
from lvae_jax.data.dataset import DataError, Dataset

__all__ = [
    "TEST_BINARISATION_SEED",
    "DataError",
    "Dataset",
    "as_stored",
    "binarise",
    "binarise_once",
    "digits",
    "flatten",
    "mnist",
    "to_unit",
]
