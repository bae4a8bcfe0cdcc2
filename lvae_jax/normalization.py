"""Batch normalisation as pure functions, with its gradient written out.

Statistics run over every axis but the last, so over samples and batch together.
On an accelerator, sums over the batch take most of the kernels; on a mesh, most of the collectives.
The best way to compute them depends on the device; `moments` and `_both_sums` choose it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvae_jax.mesh import auto_axes, split_explicitly, vary_alike

EPSILON = 1e-5
"""Added to a batch's variance by default, so that a unit constant over it normalises to zero."""

ROUNDING = 16 * float(jnp.finfo(jnp.float32).eps)
"""A unit is constant if it deviates from its mean by no more than this fraction of the mean."""


Arrays = tuple[Array, ...]
MeanOfRows = Callable[[Float[Array, "rows units"]], Float[Array, " units"]]


class Moments(NamedTuple):
    """Mean and (biased) variance of every unit."""

    mean: Float[Array, " units"]
    variance: Float[Array, " units"]


def moments(y: Float[Array, "*batch units"]) -> Moments:
    """Mean and variance over all axes but the last, without the cancellation of E[y^2] - E[y]^2.

    Takes two passes over y, but one on a GPU. If the batch is split over devices, a GPU takes two
    passes as well, because the first row would have to be sent to all devices. Bfloat16 and float16
    are added up in float32.
    """
    rows = _at_least_float32(y).reshape(-1, y.shape[-1])
    two_passes = _in_two_passes(_mean, _mean)
    if _is_split(rows):
        on_gpu, on_tpu = two_passes, _in_two_passes(_sum_of_shares, _sum_of_shares)
    else:
        on_gpu, on_tpu = _in_one_pass, _in_two_passes(_sum_of_shares, _product_with_shares)
    found = jax.lax.platform_dependent(
        rows, tpu=on_tpu, cuda=on_gpu, rocm=on_gpu, default=two_passes
    )
    return Moments(*found)


def _at_least_float32(a: Array) -> Array:
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


def _in_two_passes(
    mean_of: MeanOfRows, mean_of_squares: MeanOfRows
) -> Callable[[Float[Array, "rows units"]], Moments]:
    def of_rows(rows: Float[Array, "rows units"]) -> Moments:
        mean = mean_of(rows)
        return Moments(mean, mean_of_squares((rows - mean[None]) ** 2))

    return of_rows


def _mean(rows: Float[Array, "rows units"]) -> Float[Array, " units"]:
    return jnp.mean(rows, axis=0)


def _sum_of_shares(rows: Float[Array, "rows units"]) -> Float[Array, " units"]:
    """The mean without a division after the sum, for which a TPU launches a separate kernel.

    A TPU adds up the rows' shares in the kernel that computes the rows.
    """
    return jnp.sum(rows * jnp.float32(1 / rows.shape[0]), axis=0)


def _product_with_shares(rows: Float[Array, "rows units"]) -> Float[Array, " units"]:
    """The mean as a matrix product, whose kernel on a TPU also computes what is made of the mean.

    A sum's kernel computes only what is added up. XLA would turn a product with one row into a sum;
    a TPU's registers have eight.
    """
    share = jnp.full((8, rows.shape[0]), 1 / rows.shape[0], rows.dtype)
    return jnp.matmul(share, rows, precision=jax.lax.Precision.HIGHEST)[0]


def _in_one_pass(rows: Float[Array, "rows units"]) -> Moments:
    """Mean and variance by the sums of d and d^2, d = y - y[0].

    No row is further than sqrt(rows - 1) deviations from the mean, whatever the mean is. The
    cancellation in E[d^2] - E[d]^2 therefore loses at most a factor of the number of rows, and a
    constant unit has a variance of exactly zero.
    """
    count = jnp.float32(rows.shape[0])
    d = rows - rows[:1]
    total, squares = _sums_of_pairs(d, d * d)
    mean = total / count
    return Moments(rows[0] + mean, jnp.maximum(squares / count - mean**2, 0.0))


def _is_split(rows: Float[Array, "rows units"]) -> bool:
    """Whether a mesh splits batches over devices: by our axis "data", or by Explicit axes."""
    return auto_axes("data").get("data", 1) > 1 or split_explicitly(rows)


def _separate_sums(a: Array, b: Array) -> tuple[Array, Array]:
    return jnp.sum(a, axis=0), jnp.sum(b, axis=0)


def _sums_of_pairs(a: Array, b: Array) -> tuple[Array, Array]:
    """Both sums as one sum of complex numbers: a GPU's only way to add pairs in one kernel.

    That kernel computes a and b as well. Two sums would be two kernels, and two arrays that are
    stacked or given to a variadic sum are written to memory first.
    """
    total = jnp.sum(jax.lax.complex(a, b), axis=0)
    return total.real, total.imag


def _both_sums(a: Array, b: Array) -> tuple[Array, Array]:
    """The sums over the rows of two arrays. CPU and TPU fuse separate sums by themselves."""
    first, second = jax.lax.platform_dependent(
        a, b, cuda=_sums_of_pairs, rocm=_sums_of_pairs, default=_separate_sums
    )
    return first, second


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
    """The moments with an infinite variance for constant units, which then normalise to the shift.

    The deviations of a constant unit from its mean are rounding errors, which differ between
    programs. Multiplied by 1 / sqrt(EPSILON) = 316 in each of a dozen layers, they could become
    any number.
    """
    constant = statistics.variance <= (ROUNDING * statistics.mean) ** 2
    return Moments(statistics.mean, jnp.where(constant, jnp.inf, statistics.variance))


def normalize(
    y: Float[Array, "*batch units"],
    statistics: Moments,
    scale: Float[Array, " units"],
    shift: Float[Array, " units"],
    epsilon: float = EPSILON,
) -> Float[Array, "*batch units"]:
    """scale (y - mean) / sqrt(variance + epsilon) + shift with given statistics."""
    factor = scale * _inverse_std(statistics.variance, epsilon)
    last = (1,) * (y.ndim - 1) + (-1,)
    return (y - statistics.mean.reshape(last)) * factor.reshape(last) + shift.reshape(last)


def _inverse_std(variance: Float[Array, " units"], epsilon: float) -> Float[Array, " units"]:
    """1 / sqrt(variance + epsilon), on a TPU as the one result of the variance's kernel.

    Without the barrier its results are the variance and the factor of `normalize`, and another
    kernel computes this.
    """

    def inverse_std(variance: Array) -> Array:
        return jax.lax.rsqrt(variance + epsilon)

    def one_result(variance: Array) -> Array:
        return jax.lax.optimization_barrier(inverse_std(variance))

    found: Array = jax.lax.platform_dependent(variance, tpu=one_result, default=inverse_std)
    return found


def batch_normalize(
    y: Float[Array, "*batch units"],
    scale: Float[Array, " units"],
    shift: Float[Array, " units"],
    epsilon: float = EPSILON,
) -> Float[Array, "*batch units"]:
    """Batch normalisation by y's own moments: scale y_hat + shift.

    y_hat = (y - mean) / sqrt(variance + epsilon). The gradient is written out: the derivative
    through mean and variance simplifies to two sums over the batch, while automatic differentiation
    takes more passes over memory. With g = dL/d(output):

        dL/dy = scale / sqrt(variance + epsilon) (g - mean(g) - y_hat mean(g y_hat))

    It is for reverse mode; `jax.jvp` and `jax.jacfwd` need `normalize(y, moments(y), ...)`.

    Args:
      y: pre-activations.
      scale: of each unit.
      shift: of each unit.
      epsilon: added to the variance.

    Returns:
      Of y's shape. Bfloat16 and float16 are computed in float32.
    """
    dtype = jnp.result_type(y, scale, shift)
    y, scale, shift = map(_at_least_float32, (y, scale, shift))
    # Within `jax.shard_map` the gradient of a scale that all devices share is a sum over devices:
    # JAX adds it where the scale is made to vary as y does, outside the function below.
    return _batch_normalize(*vary_alike((y, scale, shift)), epsilon).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_normalize(y: Array, scale: Array, shift: Array, epsilon: float) -> Array:
    return normalize(y, moments(y), scale, shift, epsilon)


Residuals = tuple[Array, Moments, Array]


def _forward(y: Array, scale: Array, shift: Array, epsilon: float) -> tuple[Array, Residuals]:
    statistics = moments(y)
    return normalize(y, statistics, scale, shift, epsilon), (y, statistics, scale)


def _backward(epsilon: float, residuals: Residuals, g: Array) -> tuple[Array, Array, Array]:
    y, statistics, scale = residuals
    inverse_std = _inverse_std(statistics.variance, epsilon)
    rows, g_rows = (a.reshape(-1, a.shape[-1]) for a in (y, g))
    y_hat = (rows - statistics.mean[None]) * inverse_std[None]
    g_y_hat = g_rows * y_hat
    d_shift, d_scale = _both_sums(g_rows, g_y_hat)
    mean_g, mean_g_y_hat = jax.lax.platform_dependent(
        (g_rows, g_y_hat), (d_shift, d_scale), tpu=_means_of_shares, default=_means_of_sums
    )
    d_y = (scale * inverse_std)[None] * (g_rows - mean_g[None] - y_hat * mean_g_y_hat[None])
    return d_y.reshape(y.shape), d_scale, d_shift


def _means_of_shares(arrays: Arrays, sums: Arrays) -> Arrays:
    """On a TPU these are computed together with the sums; quotients would need another kernel."""
    return tuple(map(_sum_of_shares, arrays))


def _means_of_sums(arrays: Arrays, sums: Arrays) -> Arrays:
    count = jnp.float32(arrays[0].shape[0])
    return tuple(total / count for total in sums)


_batch_normalize.defvjp(_forward, _backward)
