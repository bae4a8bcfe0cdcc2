"""Strictness for every test: no silent broadcasting between ranks."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """No silent promotion between dtypes either (optax's Adam promotes, so not everywhere)."""
    with jax.numpy_dtype_promotion("strict"):
        yield
