"""What holds of the pure functions for any values: hypothesis looks for those for which it fails.

Variances lie between 1e-10 and 1e10 here, and means within 1e6 and at least 1e-15 from 0, or at it:
far beyond what trains, and within what float32 can hold of the squares and quotients of the
formulas.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats
from tolerances import EPSILON, TINY, assert_close, assert_within, float32_error

from lvae_jax import bounds, distributions, normalization, schedules
from lvae_jax.data import binarise, dequantise
from lvae_jax.distributions import Bernoulli, Gaussian

UNITS = 6
SMALLEST = 1e-15  # below about 1e-38 a processor may take a float32 for 0


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    low, high = float(np.float32(low)), float(np.float32(high))
    any_of_them = st.floats(low, high, width=32, allow_subnormal=False)
    return any_of_them.map(lambda value: value if abs(value) >= SMALLEST else 0.0)


def arrays(elements, shape=(UNITS,)) -> st.SearchStrategy[np.ndarray]:
    # One shape throughout: another one would be another program.
    return hnp.arrays(np.float32, shape, elements=elements, fill=st.nothing())


MEANS = floats(-1e6, 1e6)
VARIANCES = st.floats(-10, 10).map(lambda exponent: float(np.float32(10.0**exponent)))


@st.composite
def gaussians(draw) -> Gaussian:
    return Gaussian(draw(arrays(MEANS)), draw(arrays(VARIANCES)))


def in_float64(p: Gaussian) -> Gaussian:
    return Gaussian(np.float64(p.mean), np.float64(p.variance))


# Distributions


@given(gaussians(), gaussians())
def test_kl_is_never_negative_and_that_of_float64(q, p):
    kl = np.asarray(jax.jit(distributions.kl)(q, p))
    q, p = in_float64(q), in_float64(p)
    ratio = q.variance / p.variance
    distance = (q.mean - p.mean) ** 2 / p.variance
    expected = 0.5 * (distance + ratio - 1 - np.log(ratio))
    assert np.all(kl >= 0)
    # r - 1 - log r cancels where r is close to 1, and is exact there to the rounding of r.
    size = distance + np.abs(ratio - 1) + np.minimum(np.abs(np.log(ratio)), 1 + np.abs(ratio - 1))
    assert_within(kl, expected, float32_error(8, size) + 4 * EPSILON)


@given(gaussians())
def test_kl_of_a_gaussian_to_itself_is_zero(p):
    assert np.all(jax.jit(distributions.kl)(p, p) == 0)


@given(gaussians(), gaussians())
def test_the_gradients_of_kl_are_finite(q, p):
    for gradient in jax.tree.leaves(jax.jit(gradients_of_kl)(q, p)):
        assert np.all(np.isfinite(gradient))


def gradients_of_kl(q, p):
    return jax.grad(lambda *both: jnp.sum(distributions.kl(*both)), (0, 1))(q, p)


@given(gaussians(), gaussians())
def test_precision_weighted_is_the_product_of_float64_in_either_order(one, other):
    product = jax.jit(distributions.precision_weighted)(one, other)
    swapped = jax.jit(distributions.precision_weighted)(other, one)
    a, b = in_float64(one), in_float64(other)
    precision = 1 / a.variance + 1 / b.variance
    mean = (a.mean / a.variance + b.mean / b.variance) / precision
    for found in (product, swapped):
        assert_close(found.variance, 1 / precision, roundings=4)
        # Of two large means of opposite sign, the sum keeps the accuracy of the larger.
        scale = np.maximum(np.abs(a.mean) / a.variance, np.abs(b.mean) / b.variance) / precision
        assert_close(found.mean, mean, roundings=8, size=scale)


@given(gaussians(), gaussians())
def test_precision_weighted_is_surer_than_either_and_between_them(one, other):
    product = jax.jit(distributions.precision_weighted)(one, other)
    assert np.all(product.variance > 0)
    assert np.all(product.variance <= np.minimum(one.variance, other.variance) * (1 + 4 * EPSILON))
    low, high = np.minimum(one.mean, other.mean), np.maximum(one.mean, other.mean)
    slack = 4 * EPSILON * np.maximum(np.abs(low), np.abs(high))
    assert np.all((product.mean >= low - slack) & (product.mean <= high + slack))


@given(gaussians(), arrays(MEANS))
def test_a_likelihood_that_knows_nothing_leaves_the_prior(prior, mean):
    ignorant = Gaussian(mean, np.full(UNITS, 1e20, np.float32))  # 1e10 times any prior's
    product = jax.jit(distributions.precision_weighted)(ignorant, prior)
    assert_close(product.variance, prior.variance, roundings=4)
    # Of a mean of up to 1e6 the likelihood's part is at most 1e-10.
    assert_within(product.mean, prior.mean, float32_error(4, prior.mean) + 1e-10 * np.abs(mean))


# Once, not in every example: JAX keeps what it has traced by function.
log_prob_and_gradients = jax.jit(jax.vmap(jax.value_and_grad(distributions.log_prob, (0, 1))))


@given(gaussians(), arrays(MEANS))
def test_a_gaussian_log_prob_is_that_of_scipy_and_its_gradients_finite(p, x):
    log_prob, gradients = log_prob_and_gradients(p, x)
    wide = in_float64(p)
    expected = stats.norm.logpdf(np.float64(x), wide.mean, np.sqrt(wide.variance))
    quadratic = (np.float64(x) - wide.mean) ** 2 / wide.variance
    size = np.abs(np.log(2 * np.pi * wide.variance)) + quadratic + 1
    assert_close(log_prob, expected, roundings=8, size=size)
    for gradient in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(gradient))


@given(arrays(floats(-1e30, 1e30)), arrays(st.sampled_from([0.0, 1.0])))
def test_a_bernoulli_log_prob_is_that_of_float64_and_its_gradient_finite(logits, x):
    log_prob, (gradient, _) = log_prob_and_gradients(Bernoulli(logits), x)
    wide = np.where(x == 1, np.float64(logits), -np.float64(logits))
    # Its smallest values are exp(-|l|), with the rounding of an l of up to 88.
    assert_close(log_prob, -np.logaddexp(0, -wide), roundings=96)
    assert np.all(log_prob <= 0)
    probability = special.expit(np.float64(logits))
    assert_close(gradient.logits, x - probability, roundings=8, size=1)


@given(gaussians(), arrays(floats(-6, 6)))
def test_a_sample_is_its_noise_times_the_deviation_from_the_mean(p, noise):
    z = jax.jit(distributions.reparameterize)(p, noise)
    wide = in_float64(p)
    expected = wide.mean + np.sqrt(wide.variance) * np.float64(noise)
    scale = np.abs(wide.mean) + np.abs(np.sqrt(wide.variance) * noise)
    assert_close(z, expected, roundings=4, size=scale)


# Bounds

K = 7
LOG_WEIGHTS = arrays(floats(-1e4, 1e4), (K, UNITS))


def near(log_w: np.ndarray) -> np.ndarray:
    """The rounding that a number of nats as large as these weights has."""
    return 8 * EPSILON * (1 + np.abs(log_w).max())


@given(LOG_WEIGHTS)
def test_a_log_mean_lies_between_the_least_and_the_largest_weight_and_above_their_mean(log_w):
    mean = np.asarray(jax.jit(bounds.log_mean_exp)(log_w))
    expected = special.logsumexp(np.float64(log_w), axis=0) - np.log(K)
    assert_within(mean, expected, near(log_w))
    assert np.all(mean >= log_w.min(0) - near(log_w))
    assert np.all(mean <= log_w.max(0) + near(log_w))
    assert np.all(mean >= np.float64(log_w).mean(0) - near(log_w))  # Jensen: L_K >= L_1


@given(LOG_WEIGHTS)
def test_of_the_same_weights_more_samples_give_a_larger_bound_on_average(log_w):
    # Burda's theorem holds exactly for the average over all choices of K - 1 of K weights.
    all_of_them = jax.jit(bounds.log_mean_exp)(log_w)
    fewer = np.stack([jax.jit(bounds.log_mean_exp)(np.delete(log_w, k, 0)) for k in range(K)])
    assert np.all(np.float64(fewer).mean(0) <= all_of_them + near(log_w))


@given(LOG_WEIGHTS, floats(-1e4, 1e4), st.permutations(range(K)))
def test_a_shift_of_all_weights_shifts_the_bound_and_their_order_is_nothing(log_w, shift, order):
    mean = jax.jit(bounds.log_mean_exp)(log_w)
    shifted = jax.jit(bounds.log_mean_exp)(np.float32(log_w + np.float32(shift))[list(order)])
    slack = near(log_w) + near(np.float32([shift]))  # a shift rounds the weights themselves
    assert_within(shifted, np.float64(mean) + np.float32(shift), slack)


@given(LOG_WEIGHTS)
def test_an_effective_sample_size_lies_between_one_and_all_and_is_that_of_float64(log_w):
    size = jax.jit(bounds.effective_sample_size)(log_w)
    w = special.softmax(np.float64(log_w), axis=0)
    assert np.all(size >= 1 - 8 * EPSILON)
    assert np.all(size <= K * (1 + 8 * EPSILON))
    # exp makes of the rounding of its argument a relative one: of weights that count, which lie
    # within some 20 nats of the largest, 20 times as large.
    assert_close(size, 1 / (w**2).sum(0), roundings=8 + 4 * 20)
    error = np.asarray(bounds.importance_standard_error(size, K))
    assert np.all((error >= 0) & (error <= 1))


@given(arrays(st.integers(-4096, 4096).map(float), (K, UNITS)), st.integers(-4096, 4096))
def test_an_effective_sample_size_does_not_change_by_a_factor_of_all_weights(log_w, shift):
    # Whole numbers, so that the sums are exact.
    size = jax.jit(bounds.effective_sample_size)
    assert_close(size(log_w), size(log_w + np.float32(shift)), roundings=8)


@given(st.lists(gaussians(), min_size=4, max_size=4), arrays(MEANS), floats(0, 1))
def test_the_bound_of_one_sample_is_its_log_weight_and_every_kl_adds_to_the_elbo(found, z, beta):
    q, p = (jax.tree.map(lambda a: a[None, None], g) for g in found[:2])
    x = distributions.log_prob(*found[2:3], z)
    z = jnp.asarray(z)[None, None]
    terms = bounds.Terms(jnp.sum(x)[None, None], (z,), (q,), (p,), (True,))
    one = bounds.importance_weighted(terms, beta)
    np.testing.assert_array_equal(one, bounds.log_weights(terms, beta)[0])
    assert np.all(bounds.elbo(terms, beta) <= terms.log_px[0])
    assert np.all(bounds.elbo(terms, beta) >= bounds.elbo(terms, 1.0))


# Schedules

EPOCHS = st.integers(0, 10**6)


@given(EPOCHS, EPOCHS)
def test_warm_up_rises_from_nothing_to_one_and_stays(epoch, warmup_epochs):
    beta = schedules.warm_up(epoch, warmup_epochs)
    assert 0 <= beta <= schedules.warm_up(epoch + 1, warmup_epochs) <= 1
    assert (beta == 1) == (epoch >= warmup_epochs)
    assert (beta == 0) == (epoch == 0 < warmup_epochs)


@given(
    st.sampled_from(["constant", "staircase", "cosine"]),
    st.floats(1e-10, 1e3),
    EPOCHS,
    st.integers(1, 10**6),
)
def test_a_learning_rate_starts_as_given_never_rises_and_stays_positive(
    schedule, initial, epoch, epochs
):
    rate = schedules.learning_rate(schedule, initial, epoch % epochs, epochs)
    assert schedules.learning_rate(schedule, initial, 0, epochs) == initial
    assert 0 < rate <= initial
    later = schedules.learning_rate(schedule, initial, epoch % epochs + 1, epochs)
    assert later <= rate


# Normalisation

BATCH = 5
ROWS = arrays(floats(-1e15, 1e15), (BATCH, UNITS))
SCALES = arrays(floats(-10, 10))


@jax.jit
def normalized_and_gradients(y, scale, shift):
    z, pull_back = jax.vjp(normalization.batch_normalize, y, scale, shift)
    return z, pull_back(jnp.ones_like(z))


@given(ROWS, SCALES, SCALES)
def test_batch_normalisation_is_finite_and_bounded_for_any_data(y, scale, shift):
    z, gradients = normalized_and_gradients(y, scale, shift)
    # No value of n is further from their mean than sqrt(n - 1) deviations, nor from any number than
    # sqrt(n) times the root mean square of the distances from it. The mean found is off by a few
    # roundings, which are deviations where the values nearly agree.
    exact = np.float64(y)
    off = float32_error(np.sqrt(BATCH), np.abs(exact).max(axis=0))
    deviations = np.maximum(exact.std(axis=0), TINY)
    largest = np.minimum(np.sqrt(BATCH - 1) + off / deviations, np.sqrt(BATCH))
    bound = np.abs(scale) * largest + np.abs(shift)
    assert np.all(np.abs(z) <= bound + float32_error(8, bound))
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))


@given(ROWS)
def test_moments_are_those_of_float64(y):
    found = jax.jit(normalization.moments)(y)
    wide = np.float64(y)
    size = np.abs(wide).max(0)
    assert_close(found.mean, wide.mean(0), roundings=4, size=size)
    variance = wide.var(0)
    # Of values that nearly agree, what is left is the rounding of their mean.
    slack = float32_error(8, variance) + float32_error(4, size) ** 2
    assert_within(found.variance, variance, slack + SMALLEST**2)


@jax.jit
def pooled_moments(batches):
    return normalization.pool(jax.vmap(normalization.moments)(batches))


@given(arrays(floats(-1e6, 1e6), (3, BATCH, UNITS)))
def test_pooled_moments_are_those_of_all_rows(batches):
    pooled = pooled_moments(batches)
    wide = np.float64(batches).reshape(-1, UNITS)
    size = np.abs(wide).max(0)
    assert_close(pooled.mean, wide.mean(0), roundings=8, size=size)
    # A deviation of means has the rounding of both: it enters with its product with the deviation.
    slack = float32_error(16, wide.var(0)) + float32_error(8, size) * (
        float32_error(8, size) + 2 * wide.std(0)
    )
    assert_within(pooled.variance, wide.var(0), slack + SMALLEST**2)


# Data

GREY = arrays(floats(0, 1), (4, UNITS))
KEYS = st.integers(0, 2**31 - 1)


@given(KEYS, GREY, GREY)
def test_binarised_images_are_zeros_and_ones_and_a_brighter_one_has_no_fewer_ones(seed, grey, more):
    key = jax.random.key(seed)
    x = np.asarray(binarise(key, grey))
    assert set(np.unique(x)) <= {0.0, 1.0}
    assert np.all(x[grey == 0] == 0)
    assert np.all(x[grey == 1] == 1)
    np.testing.assert_array_equal(binarise(key, x), x)  # what is binary stays as it is
    assert np.all(np.asarray(binarise(key, np.maximum(grey, more))) >= x)


@pytest.mark.parametrize("levels", [2, 17, 256])
@given(seed=KEYS, data=st.data())
def test_dequantised_values_stay_within_their_grey_level(levels, seed, data):
    width = 1 / (levels - 1)
    level = data.draw(hnp.arrays(np.int32, (4, UNITS), elements=st.integers(0, levels - 1)))
    x = np.float64(dequantise(jax.random.key(seed), np.float32(level * width), width))
    rounding = float32_error(8, 1)  # of values up to 1 + width
    assert np.all(x >= level * width - rounding)
    assert np.all(x <= (level + 1) * width + rounding)
