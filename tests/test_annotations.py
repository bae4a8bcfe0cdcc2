"""tests/conftest.py has the shapes in the library's signatures enforced, in all tests."""

import jax.numpy as jnp
import jaxtyping
import pytest

from lvae_jax import normalization


def test_a_wrong_shape_is_found():
    moments = normalization.Moments(jnp.zeros(3), jnp.ones(3))
    try:
        normalization.normalize(jnp.zeros((4, 3)), moments, jnp.ones(1), jnp.zeros(1))
    except jaxtyping.TypeCheckError:
        return
    pytest.fail("a scale of one unit was taken for three units")
