"""Rounded products, against NumPy's sums of values rounded by ml_dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks import precision


@pytest.fixture
def bf16_products(monkeypatch):
    monkeypatch.setattr(jax.lax, "dot_general", jax.lax.dot_general)  # put back afterwards
    precision.round_products(precision.MANTISSA_BITS["bf16"])


def bf16(a):
    return np.asarray(a, ml_dtypes.bfloat16).astype(np.float64)


def test_inputs_are_rounded_forward_and_backward_and_sums_are_not(bf16_products):
    rng = np.random.default_rng(0)
    x, w, g = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (3, 5), (4, 5)))

    def product(x, w):
        return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())))

    y, pullback = jax.vjp(product, jnp.asarray(x), jnp.asarray(w))
    d_x, d_w = pullback(jnp.asarray(g))
    np.testing.assert_allclose(y, bf16(x) @ bf16(w), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, bf16(g) @ bf16(w).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_w, bf16(x).T @ bf16(g), rtol=1e-5, atol=1e-6)
    assert np.abs(y - np.float64(x) @ np.float64(w)).max() > 1e-3
