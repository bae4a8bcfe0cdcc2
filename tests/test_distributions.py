"""Densities, divergences, products and samples, against scipy, quadrature and float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats
from tolerances import (
    EPSILON,
    assert_close,
    assert_mean,
    assert_plausible,
    assert_within,
    float32_error,
    threshold,
)

from lvae_jax import distributions
from lvae_jax.distributions import Bernoulli, Gaussian

VARIANCES = np.float32([1e-8, 1e-5, 1e-3, 0.5, 1.0, 30.0, 1e4, 1e8])
MEANS = np.float32([-3.0, 0.0, 40.0])
LOGITS = np.float32([-200.0, -80.0, -50.0, -3.0, -1e-3, 0.0, 0.4, 5.0, 50.0, 80.0, 200.0])


def gaussian(mean, variance):
    """A float32 Gaussian of array-likes."""
    return Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(variance, jnp.float32))


def every_pair_of_gaussians():
    """Two Gaussians whose elements run over every pair of extreme means and variances."""
    grid = itertools.product(MEANS, VARIANCES, MEANS, VARIANCES)
    mean_a, variance_a, mean_b, variance_b = np.array(list(grid), np.float32).T
    return gaussian(mean_a, variance_a), gaussian(mean_b, variance_b)


def as_float64(p):
    """The fields of a distribution as float64 NumPy arrays: the oracle sees the same numbers."""
    return tuple(np.asarray(field, np.float64) for field in p)


# --- Densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("mean", MEANS)
def test_gaussian_log_prob_is_the_log_density(mean, variance):
    x = np.float32(mean + np.sqrt(variance) * np.linspace(-7, 7, 15, dtype=np.float32))
    p = gaussian(np.full_like(x, mean), np.full_like(x, variance))
    expected = stats.norm.logpdf(x.astype(np.float64), np.float64(mean), np.sqrt(float(variance)))
    quadratic = (np.float64(x) - mean) ** 2 / variance
    size = np.abs(np.log(2 * np.pi * np.float64(variance))) + quadratic
    assert_close(distributions.log_prob(p, x), expected, roundings=8, size=size)


def test_gaussian_log_prob_is_finite_far_in_the_tail():
    log_prob = distributions.log_prob(gaussian([0.0, 1e4], [1e-8, 1e-8]), jnp.float32([1e4, -1e4]))
    assert_close(log_prob, [-0.5e16, -2e16], roundings=8)


def test_gaussian_log_prob_has_the_analytic_gradient():
    p, at = every_pair_of_gaussians()
    x = at.mean
    d_p, d_x = jax.grad(lambda p, x: distributions.log_prob(p, x).sum(), argnums=(0, 1))(p, x)
    (mean, variance), x = as_float64(p), np.float64(x)
    standardised = (x - mean) / variance
    error = float32_error(8, 1)
    assert_within(d_x, -standardised, error * np.abs(standardised))
    assert_within(d_p.mean, standardised, error * np.abs(standardised))
    quadratic, logarithm = standardised**2 / 2, 1 / (2 * variance)
    assert_within(d_p.variance, quadratic - logarithm, error * (quadratic + logarithm))


@pytest.mark.parametrize("x", [0, 1])
def test_bernoulli_log_prob_is_the_log_mass(x):
    logits = np.linspace(-8, 8, 33, dtype=np.float32)
    expected = stats.bernoulli.logpmf(x, special.expit(logits.astype(np.float64)))
    log_prob = distributions.log_prob(Bernoulli(logits), jnp.full_like(logits, x))
    assert_close(log_prob, expected, roundings=8)


@pytest.mark.parametrize("x", np.float32([0.0, 0.25, 0.7, 1.0]))
def test_bernoulli_log_prob_at_extreme_logits_and_grey_values(x):
    logits = LOGITS.astype(np.float64)
    expected = float(x) * special.log_expit(logits) + (1 - float(x)) * special.log_expit(-logits)
    log_prob = distributions.log_prob(Bernoulli(jnp.asarray(LOGITS)), jnp.full_like(LOGITS, x))
    # A relative error, down to the smallest float32: -exp(-80) is a log probability too.
    size = x * np.abs(logits) * (x < 1) + np.maximum(logits, 0) * (x < 1) + np.abs(expected)
    assert_close(log_prob, expected, roundings=8, size=size)


@pytest.mark.parametrize("x", np.float32([0.0, 0.25, 0.7, 1.0]))
def test_bernoulli_log_prob_has_gradient_x_minus_probability(x):
    gradient = jax.grad(lambda logits: distributions.log_prob(Bernoulli(logits), x).sum())(
        jnp.asarray(LOGITS)
    )
    expected = float(x) - special.expit(LOGITS.astype(np.float64))
    assert_close(gradient, expected, roundings=8, size=1)


@functools.cache
def sum_and_gradients(platform):
    """Of `sum_log_prob` of a Bernoulli, as one program per platform: JAX keeps traces by function.

    Called only where `jax.lax.platform_dependent` takes the branch of that platform.
    """

    def total(logits, x):
        return jnp.sum(distributions.sum_log_prob(Bernoulli(logits), x))

    @jax.jit
    def of_platform(logits, x):
        return distributions.sum_log_prob(Bernoulli(logits), x), jax.grad(total, (0, 1))(logits, x)

    return of_platform


@pytest.mark.parametrize("units", [1, 7, 16, 17, 64, 784])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("platform", ["cpu", "accelerator"])
def test_a_sum_of_bernoulli_log_probs_is_that_of_float64_and_so_is_its_gradient(
    units, scale, platform, monkeypatch
):
    monkeypatch.setattr(
        jax.lax,
        "platform_dependent",
        lambda *given, default, **known: known.get(platform, default)(*given),
    )
    rng = np.random.default_rng(units)
    logits = np.float32(scale * rng.standard_normal((3, 2, units)))
    x = np.float32(rng.random((1, 2, units)) < 0.5)
    wide = np.where(x == 1, np.float64(logits), -np.float64(logits))
    each = -np.logaddexp(0, -wide)
    found, (by_logits, by_x) = sum_and_gradients(platform)(logits, x)
    assert found.shape == (3, 2)
    # Of each unit the rounding of 1 + exp(-|l|), and of the sum that of its size.
    rounding = float32_error(np.sqrt(units) + 4, np.abs(each).sum(-1))
    assert_within(found, each.sum(-1), units * EPSILON + rounding)

    assert_close(by_logits, x - special.expit(np.float64(logits)), roundings=8, size=1)
    size = np.abs(np.float64(logits)).sum(0, keepdims=True)
    assert_close(by_x, np.float64(logits).sum(0, keepdims=True), roundings=3, size=size)


@pytest.mark.parametrize("logits_shape", [(5,), (1,), (2, 1), (2, 5)])
@pytest.mark.parametrize("x", [np.ones(5, np.float32), np.array([True]), np.arange(5) % 2 == 0])
def test_logits_and_values_of_a_sum_of_bernoulli_log_probs_broadcast_and_may_be_booleans(
    logits_shape, x
):
    logits = np.random.default_rng(0).standard_normal(logits_shape).astype(np.float32)
    x = x.reshape((1,) * (logits.ndim - 1) + x.shape)
    p = special.expit(np.float64(logits))
    each = stats.bernoulli.logpmf(*np.broadcast_arrays(np.int64(x), p))

    @jax.jit
    def sum_and_gradient(logits):
        sums, gradient = jax.vjp(
            lambda logits: distributions.sum_log_prob(Bernoulli(logits), jnp.asarray(x)), logits
        )
        return sums, *gradient(jnp.ones_like(sums))

    found, gradient = sum_and_gradient(logits)
    assert_close(found, each.sum(-1), roundings=16, size=5)
    # The derivative of a logit is the sum over the values that it is broadcast to.
    residuals = np.broadcast_to(x - p, each.shape)
    ones = tuple(i for i, n in enumerate(logits_shape) if n == 1)
    expected = residuals.sum(ones, keepdims=True).reshape(logits_shape)
    assert_close(gradient, expected, roundings=16, size=5)


@pytest.mark.parametrize(
    "total", [distributions.sum_log_prob, lambda p, x: jnp.sum(distributions.log_prob(p, x))]
)
def test_the_second_derivative_of_a_sum_of_bernoulli_log_probs_is_minus_the_variance(total):
    logits = jnp.float32([-3.0, 0.0, 0.4])
    hessian = jax.jit(jax.hessian(lambda at: total(Bernoulli(at), jnp.ones(3))))(logits)
    p = special.expit(np.float64(logits))
    assert_close(hessian, -np.diag(p * (1 - p)), roundings=8, size=1)


def test_a_sum_of_certain_bernoulli_log_probs_is_zero_and_of_wrong_ones_is_their_logits():
    logits = jnp.asarray(np.where(np.arange(784) % 2, 1e30, -1e30), jnp.float32)
    right = jnp.asarray(np.arange(784) % 2, jnp.float32)
    assert distributions.sum_log_prob(Bernoulli(logits), right) == 0
    wrong = distributions.sum_log_prob(Bernoulli(logits), 1 - right)
    assert_close(wrong, -784e30, roundings=np.sqrt(784) + 4)


def test_a_sum_of_gaussian_log_probs_is_the_log_density_of_independent_units():
    rng = np.random.default_rng(0)
    mean, variance, x = rng.normal(size=(2, 5)), rng.uniform(0.1, 3, (2, 5)), rng.normal(size=5)
    found = distributions.sum_log_prob(gaussian(mean, variance), jnp.float32(x)[None])
    expected = [
        stats.multivariate_normal.logpdf(x, m, np.diag(v))
        for m, v in zip(mean, variance, strict=True)
    ]
    size = (np.abs(np.log(2 * np.pi * variance)) + (x - mean) ** 2 / variance).sum(-1)
    # The fields are rounded to float32 too, which changes a deviation by that of x and mean.
    size += ((np.abs(x) + np.abs(mean)) * np.abs(x - mean) / variance).sum(-1)
    assert_close(found, expected, roundings=8 + np.sqrt(5), size=size)


# --- KL divergence -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "p"),
    [
        ((0.0, 1.0), (0.0, 1.0)),
        ((0.3, 0.2), (-1.0, 2.0)),
        ((2.0, 5.0), (1.5, 0.4)),
        ((-4.0, 1e-4), (0.0, 1.0)),
        ((0.0, 1.0), (3.0, 1e3)),
    ],
)
def test_kl_is_the_integral_of_q_log_q_over_p(q, p):
    density_q, density_p = (stats.norm(mean, np.sqrt(variance)) for mean, variance in (q, p))

    def integrand(x):
        return density_q.pdf(x) * (density_q.logpdf(x) - density_p.logpdf(x))

    half_width = 12 * np.sqrt(q[1])
    expected, error = integrate.quad(integrand, q[0] - half_width, q[0] + half_width, limit=200)
    actual = distributions.kl(gaussian(*q), gaussian(*p))
    size = ((q[0] - p[0]) ** 2 + q[1]) / p[1] + 1 + abs(np.log(q[1] / p[1]))
    assert_within(actual, expected, float32_error(8, size) + error)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_kl_at_extreme_variances_is_the_float64_formula(transform):
    q, p = every_pair_of_gaussians()
    (mean_q, var_q), (mean_p, var_p) = as_float64(q), as_float64(p)
    terms = np.stack([(mean_q - mean_p) ** 2 / var_p, var_q / var_p - 1, -np.log(var_q / var_p)])
    error = float32_error(8, np.abs(terms).sum(axis=0))
    assert_within(transform(distributions.kl)(q, p), terms.sum(axis=0) / 2, error)


def test_kl_of_nearly_equal_variances_keeps_its_accuracy():
    difference = np.concatenate([s * np.geomspace(1e-7, 0.3, 500) for s in (-1, 1)])
    var_p = np.float32(np.geomspace(1e-8, 1e8, difference.size))
    var_q = np.float32(var_p * (1 + difference))
    zeros = jnp.zeros_like(var_p)
    actual = distributions.kl(Gaussian(zeros, var_q), Gaussian(zeros, var_p))
    relative = (var_q.astype(np.float64) - var_p) / var_p
    expected = (relative - np.log1p(relative)) / 2
    # The ratio is rounded to float32, so the error is one rounding times the slope, the difference;
    # of what is left of r - 1 - log r close to 1, the square of a rounding.
    assert_within(actual, expected, float32_error(2, relative) + EPSILON**2)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_kl_is_never_negative(transform):
    rng = np.random.default_rng(0)
    var_p = np.float32(10 ** rng.uniform(-8, 8, 100_000))
    apart = np.float32(var_p * 10 ** rng.uniform(-16, 16, var_p.size)).clip(1e-8, 1e8)
    close = np.float32(var_p * (1 + 10 ** rng.uniform(-8, 0, var_p.size)))
    zeros = jnp.zeros_like(var_p)
    for var_q in (apart, close):
        kl = transform(distributions.kl)(Gaussian(zeros, var_q), Gaussian(zeros, var_p))
        assert kl.min() >= 0


def test_kl_is_zero_only_between_equal_gaussians():
    q, p = every_pair_of_gaussians()
    equal = np.asarray((q.mean == p.mean) & (q.variance == p.variance))
    assert np.array_equal(np.asarray(distributions.kl(q, p)) == 0, equal)
    q = gaussian([0.0, 0.0, 1e-3], [1.0001, 0.9999, 1.0])
    assert np.all(distributions.kl(q, distributions.standard_gaussian((3,))) > 0)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_kl_has_the_analytic_gradient_at_extremes(transform):
    q, p = every_pair_of_gaussians()
    gradient = jax.grad(lambda q, p: distributions.kl(q, p).sum(), argnums=(0, 1))
    d_q, d_p = transform(gradient)(q, p)
    (mean_q, var_q), (mean_p, var_p) = as_float64(q), as_float64(p)
    pull = (mean_q - mean_p) / var_p
    assert_within(d_q.mean, pull, float32_error(8, pull))
    assert_within(d_p.mean, -pull, float32_error(8, pull))
    wide, narrow = 1 / (2 * var_p), 1 / (2 * var_q)
    assert_within(d_q.variance, wide - narrow, float32_error(8, wide + narrow))
    spread = (var_q + (mean_q - mean_p) ** 2) / (2 * var_p**2)
    assert_within(d_p.variance, wide - spread, float32_error(8, wide + spread))


# --- Product of Gaussians ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0.0, 1.0), (0.0, 1.0)),
        ((1.0, 0.3), (-2.0, 2.0)),
        ((-1.5, 4.0), (3.0, 0.01)),
        ((0.5, 1e-3), (0.4, 1e2)),
    ],
)
def test_precision_weighted_is_the_product_of_gaussians(a, b):
    centre, width = (a[0], a[1]) if a[1] < b[1] else (b[0], b[1])
    # The product lies within some sigmas of the narrower factor; its mean leans to the wider one.
    x = np.linspace(centre - 12 * np.sqrt(width), centre + 12 * np.sqrt(width), 20_001)
    product = stats.norm.pdf(x, a[0], np.sqrt(a[1])) * stats.norm.pdf(x, b[0], np.sqrt(b[1]))
    product /= integrate.trapezoid(product, x)
    mean = integrate.trapezoid(product * x, x)
    variance = integrate.trapezoid(product * (x - mean) ** 2, x)
    posterior = distributions.precision_weighted(gaussian(*a), gaussian(*b))
    # The trapezoids' own error, of a width of 24 deviations over 20,000, is far below a rounding;
    # float32 rounds both fields of both factors, too.
    assert_close(posterior.mean, mean, roundings=8, size=abs(a[0]) + abs(b[0]) + 1)
    assert_close(posterior.variance, variance, roundings=8)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_precision_weighted_adds_precisions_at_extremes(transform):
    a, b = every_pair_of_gaussians()
    posterior = transform(distributions.precision_weighted)(a, b)
    (mean_a, var_a), (mean_b, var_b) = as_float64(a), as_float64(b)
    variance = 1 / (1 / var_a + 1 / var_b)
    mean = variance * (mean_a / var_a + mean_b / var_b)
    assert_close(posterior.variance, variance, roundings=4)
    assert_close(posterior.mean, mean, roundings=4, size=np.abs(mean_a) + np.abs(mean_b))


def test_precision_weighted_is_symmetric():
    a, b = every_pair_of_gaussians()
    one, other = distributions.precision_weighted(a, b), distributions.precision_weighted(b, a)
    assert_close(one.variance, other.variance, roundings=4)
    assert_close(one.mean, other.mean, roundings=4, size=np.abs(a.mean) + np.abs(b.mean))


def test_precision_weighted_has_the_analytic_gradient_at_extremes():
    a, b = every_pair_of_gaussians()
    (mean_a, var_a), (mean_b, var_b) = as_float64(a), as_float64(b)
    total = var_a + var_b

    def field(name):
        return lambda a, b: getattr(distributions.precision_weighted(a, b), name).sum()

    d_a, d_b = jax.grad(field("mean"), argnums=(0, 1))(a, b)
    assert_close(d_a.mean, var_b / total, roundings=4)
    assert_close(d_b.mean, var_a / total, roundings=4)
    error = float32_error(8, (np.abs(mean_a) + np.abs(mean_b)) / total)
    assert_within(d_a.variance, var_b * (mean_b - mean_a) / total**2, error)
    assert_within(d_b.variance, var_a * (mean_a - mean_b) / total**2, error)

    d_a, d_b = jax.grad(field("variance"), argnums=(0, 1))(a, b)
    assert not np.any(d_a.mean)
    assert not np.any(d_b.mean)
    assert_within(d_a.variance, (var_b / total) ** 2, float32_error(8, var_b / total))
    assert_within(d_b.variance, (var_a / total) ** 2, float32_error(8, var_a / total))


# --- Samples and means ---------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (-3.0, 0.04), (10.0, 400.0)])
def test_gaussian_samples_have_its_distribution(mean, variance):
    draws = 50_000
    p = gaussian(np.full(draws, mean), np.full(draws, variance))
    values = np.asarray(distributions.sample(jax.random.key(1), p), np.float64)
    # The standard error of a Gaussian's variance is var sqrt(2 / n).
    limit = threshold(comparisons=2)
    assert abs(values.mean() - mean) < limit * np.sqrt(variance / draws)
    assert abs(values.var() - variance) < limit * variance * np.sqrt(2 / draws)
    assert_plausible(stats.kstest(values, stats.norm(mean, np.sqrt(variance)).cdf).pvalue)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
def test_bernoulli_samples_are_ones_with_its_probability(logit):
    draws = 50_000
    values = distributions.sample(jax.random.key(2), Bernoulli(jnp.full(draws, logit, jnp.float32)))
    probability = special.expit(logit)
    assert set(np.unique(values)) == {0.0, 1.0}
    assert_mean(values, probability)


def test_bernoulli_samples_at_extreme_logits_are_certain():
    logits = jnp.concatenate([jnp.full(1000, -200.0), jnp.full(1000, 200.0)])
    values = distributions.sample(jax.random.key(3), Bernoulli(logits))
    assert np.array_equal(values, np.repeat([0.0, 1.0], 1000))


def test_reparameterize_is_mean_plus_sigma_noise():
    p = gaussian([[1.0], [-2.0]], [[4.0], [0.25]])
    noise = jnp.float32([[0.5, -1.0, 0.0]])
    expected = [[2.0, -1.0, 1.0], [-1.75, -2.5, -2.0]]
    assert np.array_equal(distributions.reparameterize(p, noise), expected)


def test_reparameterize_has_the_pathwise_gradient():
    noise = np.linspace(-3, 3, VARIANCES.size, dtype=np.float32)
    p = gaussian(np.full_like(VARIANCES, 2.0), VARIANCES)
    d_p = jax.grad(lambda p: distributions.reparameterize(p, noise).sum())(p)
    assert np.array_equal(d_p.mean, np.ones_like(noise))
    expected = noise.astype(np.float64) / (2 * np.sqrt(VARIANCES.astype(np.float64)))
    assert_close(d_p.variance, expected, roundings=8)


def test_a_gaussian_sample_is_differentiable_in_mean_and_variance():
    p = gaussian(np.zeros(6), [0.01, 0.1, 1.0, 2.0, 10.0, 100.0])
    key = jax.random.key(4)
    d_p = jax.grad(lambda p: distributions.sample(key, p).sum())(p)
    assert np.array_equal(d_p.mean, np.ones(6))
    # noise / (2 sigma), the noise being z / sigma for a mean of zero.
    expected = np.float64(distributions.sample(key, p)) / (2 * np.float64(p.variance))
    assert_close(d_p.variance, expected, roundings=8)


def test_standard_gaussian_has_mean_zero_and_variance_one():
    p = distributions.standard_gaussian((2, 3))
    assert np.array_equal(p.mean, np.zeros((2, 3)))
    assert np.array_equal(p.variance, np.ones((2, 3)))


def test_mean_is_the_mean_field_or_the_probability_of_a_one():
    p = gaussian([1.0, -2.0], [3.0, 4.0])
    assert np.array_equal(distributions.mean(p), [1.0, -2.0])
    expected = special.expit(LOGITS.astype(np.float64))
    actual = distributions.mean(Bernoulli(jnp.asarray(LOGITS)))
    assert_close(actual, expected, roundings=8)


# --- Transformations, dtypes, pytrees ------------------------------------------------------------


def arguments(*names):
    """Arguments by name, each with 4 examples of 3 units."""
    rng = np.random.default_rng(5)

    def normal():
        return jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)

    make = {
        "gaussian": lambda: Gaussian(normal(), jnp.exp(normal())),
        "bernoulli": lambda: Bernoulli(normal()),
        "values": normal,
        "bits": lambda: (normal() > 0).astype(jnp.float32),
        "keys": lambda: jax.random.split(jax.random.key(6), 4),
    }
    return tuple(make[name]() for name in names)


SIZE = 16.0
"""What `FUNCTIONS` add up of these arguments, squares of deviations over variances, is smaller."""

FUNCTIONS = {
    "gaussian log_prob": (distributions.log_prob, arguments("gaussian", "values")),
    "bernoulli log_prob": (distributions.log_prob, arguments("bernoulli", "bits")),
    "kl": (distributions.kl, arguments("gaussian", "gaussian")),
    "precision_weighted": (distributions.precision_weighted, arguments("gaussian", "gaussian")),
    "reparameterize": (distributions.reparameterize, arguments("gaussian", "values")),
    "gaussian mean": (distributions.mean, arguments("gaussian")),
    "bernoulli mean": (distributions.mean, arguments("bernoulli")),
    "gaussian sample": (distributions.sample, arguments("keys", "gaussian")),
    "bernoulli sample": (distributions.sample, arguments("keys", "bernoulli")),
}


@pytest.fixture(params=FUNCTIONS)
def function_and_examples(request):
    """A function, and the arguments of each of 4 examples."""
    function, batched = FUNCTIONS[request.param]
    return function, [jax.tree.map(lambda a, i=i: a[i], batched) for i in range(4)]


def test_jit_equals_eager(function_and_examples):
    function, examples = function_and_examples
    jax.tree.map(
        lambda actual, expected: assert_close(actual, expected, roundings=8, size=SIZE),
        jax.jit(function)(*examples[0]),
        function(*examples[0]),
    )


def test_vmap_equals_a_loop(function_and_examples):
    function, examples = function_and_examples
    batched = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(function(*e) for e in examples))
    jax.tree.map(
        lambda actual, expected: assert_close(actual, expected, roundings=8, size=SIZE),
        jax.vmap(function)(*batched),
        looped,
    )


@pytest.mark.usefixtures("strict_dtypes")
def test_float32_stays_float32(function_and_examples):
    function, examples = function_and_examples
    result = jax.eval_shape(function, *examples[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype("float32")}
    assert {leaf.shape for leaf in jax.tree.leaves(result)} == {(3,)}


def test_distributions_are_pytrees():
    p, b = gaussian([1.0, 2.0], [3.0, 4.0]), Bernoulli(jnp.float32([5.0]))
    doubled_p, doubled_b = jax.tree.map(lambda a: 2 * a, (p, b))
    assert isinstance(doubled_p, Gaussian)
    assert np.array_equal(doubled_p.mean, [2.0, 4.0])
    assert np.array_equal(doubled_p.variance, [6.0, 8.0])
    assert isinstance(doubled_b, Bernoulli)
    assert np.array_equal(doubled_b.logits, [10.0])


def test_a_sum_is_over_the_last_axis_of_any_number():
    rng = np.random.default_rng(3)
    mean, x = rng.standard_normal((2, 2, 3, 4)).astype(np.float32)
    p = Gaussian(jnp.asarray(mean), jnp.full(mean.shape, 2.0, jnp.float32))
    each = stats.norm.logpdf(np.float64(x), np.float64(mean), np.sqrt(2.0))
    found = distributions.sum_log_prob(p, jnp.asarray(x))
    assert_close(found, each.sum(-1), roundings=10, size=np.abs(each).sum(-1) + 4)
