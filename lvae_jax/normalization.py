"""Batch normalisation as pure functions, with its gradient written out.

Statistics run over every axis but the last: over samples and batch together where there are both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5
"""Added to the variance of a batch, so that a unit that is constant over it normalises to zero."""

ROUNDING = 16 * float(jnp.finfo(jnp.float32).eps)
"""A unit that deviates from its mean by no more than this part of it is constant."""


class Moments(NamedTuple):
    """Mean and (biased) variance of every unit."""

    mean: Float[Array, " units"]
    variance: Float[Array, " units"]


def moments(y: Float[Array, "*batch units"]) -> Moments:
    """Mean and variance over all axes but the last, in two passes: E[y^2] - E[y]^2 would cancel."""
    rows = y.reshape(-1, y.shape[-1])
    mean = jnp.mean(rows, axis=0)
    return Moments(mean, jnp.mean((rows - mean[None]) ** 2, axis=0))


def pool(batches: Moments) -> Moments:
    """Moments of the union of equally large batches, by the law of total variance.

    Args:
      batches: moments of each batch; fields are [batches, units].

    Returns:
      Mean of the means; mean of the variances plus variance of the means.
    """
    mean = jnp.mean(batches.mean, axis=0)
    between = jnp.mean((batches.mean - mean[None]) ** 2, axis=0)
    return Moments(mean, jnp.mean(batches.variance, axis=0) + between)


def without_constant_units(statistics: Moments) -> Moments:
    """The moments with an infinite variance for a unit that is constant: it normalises to shift.

    Such a unit's deviations from its mean are rounding, and are others in another program. Times
    1 / sqrt(EPSILON) = 316 in each of a dozen layers they would end as any number at all.
    """
    constant = statistics.variance <= (ROUNDING * statistics.mean) ** 2
    return Moments(statistics.mean, jnp.where(constant, jnp.inf, statistics.variance))


def normalize(
    y: Float[Array, "*batch units"],
    statistics: Moments,
    scale: Float[Array, " units"],
    shift: Float[Array, " units"],
) -> Float[Array, "*batch units"]:
    """scale (y - mean) / sqrt(variance + EPSILON) + shift with statistics given, not of y."""
    factor = scale * jax.lax.rsqrt(statistics.variance + EPSILON)
    last = (1,) * (y.ndim - 1) + (-1,)
    return (y - statistics.mean.reshape(last)) * factor.reshape(last) + shift.reshape(last)


@jax.custom_vjp
def batch_normalize(
    y: Float[Array, "*batch units"], scale: Float[Array, " units"], shift: Float[Array, " units"]
) -> Float[Array, "*batch units"]:
    """Batch normalisation by y's own moments: scale y_hat + shift.

    y_hat = (y - mean) / sqrt(variance + EPSILON). The gradient is written out, since the derivative
    through mean and variance collapses to two sums over the batch, where automatic differentiation
    passes over memory more often. With g = dL/d(output):

        dL/dy = scale / sqrt(variance + EPSILON) (g - mean(g) - y_hat mean(g y_hat))

    Args:
      y: pre-activations.
      scale: of each unit.
      shift: of each unit.

    Returns:
      Of y's shape.
    """
    return normalize(y, moments(y), scale, shift)


def _forward(y: Array, scale: Array, shift: Array) -> tuple[Array, tuple[Array, Moments, Array]]:
    statistics = moments(y)
    return normalize(y, statistics, scale, shift), (y, statistics, scale)


def _backward(residuals: tuple[Array, Moments, Array], g: Array) -> tuple[Array, Array, Array]:
    y, statistics, scale = residuals
    inverse_std = jax.lax.rsqrt(statistics.variance + EPSILON)
    rows, g_rows = (a.reshape(-1, a.shape[-1]) for a in (y, g))
    y_hat = (rows - statistics.mean[None]) * inverse_std[None]
    d_shift = jnp.sum(g_rows, axis=0)
    d_scale = jnp.sum(g_rows * y_hat, axis=0)
    count = jnp.float32(rows.shape[0])
    d_y = (scale * inverse_std)[None] * (
        g_rows - (d_shift / count)[None] - y_hat * (d_scale / count)[None]
    )
    return d_y.reshape(y.shape), d_scale, d_shift


batch_normalize.defvjp(_forward, _backward)
