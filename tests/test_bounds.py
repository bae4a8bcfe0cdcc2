"""KL terms and bounds, against sums in float64, quadrature and a model with known p(x)."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import special, stats
from tolerances import (
    EPSILON,
    assert_close,
    assert_mean,
    assert_within,
    float32_error,
    standard_error,
)

from lvae_jax import Objective, bounds, distributions
from lvae_jax.bounds import Terms
from lvae_jax.distributions import Gaussian

# Compiled whole, which is quicker than operation by operation; test_jit_equals_eager ties the two.
elbo = jax.jit(bounds.elbo)
log_weights = jax.jit(bounds.log_weights)
importance_weighted = jax.jit(bounds.importance_weighted)


@functools.partial(jax.jit, static_argnums=2)
def objective(terms, beta, importance_samples):
    """By example: the bound that training climbs, here of batches of one example."""
    one_by_one = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1)[:, :, None], terms)
    loss = Objective(importance_samples=importance_samples).loss
    return -jax.vmap(loss, (0, None))(one_by_one, beta)


effective_sample_size = jax.jit(bounds.effective_sample_size)

FLAGS = list(itertools.product([False, True], repeat=2))


def float32(a):
    return jnp.asarray(a, jnp.float32)


def make_terms(samples=6, batch=3, units=(4, 2), closed_form_kl=(True, True), seed=0):
    """Terms with random fields, the same ones whatever the flags."""
    rng = np.random.default_rng(seed)
    shapes = [(samples, batch, n) for n in units]

    def gaussians():
        return tuple(
            Gaussian(float32(rng.normal(size=shape)), float32(rng.uniform(0.2, 3.0, shape)))
            for shape in shapes
        )

    return Terms(
        log_px=float32(rng.normal(-90, 5, (samples, batch))),
        z=tuple(float32(rng.normal(size=shape)) for shape in shapes),
        posterior=gaussians(),
        prior=gaussians(),
        closed_form_kl=closed_form_kl,
    )


def terms_of_log_weights(log_weights):
    """Terms whose log weights are the given ones: the posterior is the prior."""
    p = (distributions.standard_gaussian((*np.shape(log_weights), 1)),)
    return Terms(float32(log_weights), (jnp.zeros_like(p[0].mean),), p, p, (False,))


def kl_in_float64(terms):
    """By layer, closed form or log ratio at the sample, from float64 formulas and scipy."""
    layers = []
    for q, p, z, closed_form in zip(
        terms.posterior, terms.prior, terms.z, terms.closed_form_kl, strict=True
    ):
        (mean_q, var_q), (mean_p, var_p) = np.asarray(q, np.float64), np.asarray(p, np.float64)
        if closed_form:
            kl = ((mean_q - mean_p) ** 2 + var_q) / var_p - 1 + np.log(var_p) - np.log(var_q)
            layers.append(kl / 2)
        else:
            log_q = stats.norm.logpdf(z, mean_q, np.sqrt(var_q))
            layers.append(log_q - stats.norm.logpdf(z, mean_p, np.sqrt(var_p)))
    return layers


def size_per_unit(terms):
    """By layer, the absolute values that a KL term adds up, as a closed form or as a log ratio."""
    layers = []
    for q, p, z in zip(terms.posterior, terms.prior, terms.z, strict=True):
        (mean_q, var_q), (mean_p, var_p) = np.asarray(q, np.float64), np.asarray(p, np.float64)
        closed_form = ((mean_q - mean_p) ** 2 + var_q) / var_p + 1 + np.abs(np.log(var_q / var_p))
        log_ratio = 0
        for mean, var in ((mean_q, var_q), (mean_p, var_p)):
            log_ratio += np.abs(np.log(2 * np.pi * var)) + (z - mean) ** 2 / var
        layers.append(np.maximum(closed_form, log_ratio))
    return layers


def size_of(terms, beta=1.0):
    """The absolute values that a bound adds up of every sample, [samples, batch]."""
    kl = sum(layer.sum(-1) for layer in size_per_unit(terms))
    return np.abs(np.float64(terms.log_px)) + beta * kl


def roundings_of(terms):
    """Of a term on its way into a bound: the units' sums, the mean of samples, and 8 of its own."""
    return sum(z.shape[-1] for z in terms.z) + terms.log_px.shape[0] + 8


def assert_bound(actual, expected, terms, beta=1.0):
    """A bound, [batch] or less, within float32 of the one computed in float64.

    A log mean of weights moves by no more than the log weights themselves do.
    """
    size = size_of(terms, beta).max(0)
    assert_close(actual, expected, roundings_of(terms), size if np.ndim(expected) else size.max())


def log_weights_in_float64(terms, beta=1.0):
    without = Terms(terms.log_px, terms.z, terms.posterior, terms.prior, (False,) * len(terms.z))
    return np.float64(terms.log_px) - beta * sum(kl.sum(-1) for kl in kl_in_float64(without))


# --- KL terms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed_form_kl", FLAGS)
def test_kl_per_unit_is_closed_form_where_the_flag_says_so_else_the_log_ratio(closed_form_kl):
    terms = make_terms(closed_form_kl=closed_form_kl)
    actual = bounds.kl_per_unit(terms)
    assert len(actual) == 2
    expected_layers, sizes = kl_in_float64(terms), size_per_unit(terms)
    for layer, expected, size in zip(actual, expected_layers, sizes, strict=True):
        assert_close(layer, expected, roundings=8, size=size)


@pytest.mark.parametrize("closed_form_kl", FLAGS)
def test_log_ratio_per_unit_ignores_the_flags(closed_form_kl):
    terms = make_terms(closed_form_kl=closed_form_kl)
    expected = kl_in_float64(make_terms(closed_form_kl=(False, False)))
    actual, sizes = bounds.log_ratio_per_unit(terms), size_per_unit(terms)
    for layer, ratio, size in zip(actual, expected, sizes, strict=True):
        assert_close(layer, ratio, roundings=8, size=size)


def test_the_closed_form_is_the_mean_of_the_log_ratio_over_posterior_samples():
    samples = 20_000
    one = make_terms(samples=1, batch=2, units=(3,), closed_form_kl=(True,))

    @jax.jit
    def log_ratios():
        posterior, prior = jax.tree.map(
            lambda a: jnp.broadcast_to(a, (samples, 2, 3)), (one.posterior[0], one.prior[0])
        )
        z = distributions.sample(jax.random.key(0), posterior)
        terms = Terms(jnp.zeros((samples, 2)), (z,), (posterior,), (prior,), (True,))
        return bounds.log_ratio_per_unit(terms)[0]

    assert_mean(np.float64(log_ratios()), np.float64(jax.jit(bounds.kl_per_unit)(one)[0][0]))


def test_sum_units_and_sum_layers_add_what_they_say():
    per_unit = (float32([[[1, 2, 3], [4, 5, 6]]]), float32([[[10, 20], [30, 40]]]))
    by_layer = bounds.sum_units(per_unit)
    assert np.array_equal(by_layer[0], [[6, 15]])
    assert np.array_equal(by_layer[1], [[30, 70]])
    assert np.array_equal(bounds.sum_layers(per_unit), [[36, 85]])


# --- ELBO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed_form_kl", FLAGS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_elbo_is_log_px_minus_beta_kl_averaged_over_samples(beta, closed_form_kl):
    terms = make_terms(closed_form_kl=closed_form_kl)
    kl = sum(layer.sum(-1) for layer in kl_in_float64(terms))
    expected = (np.float64(terms.log_px) - beta * kl).mean(axis=0)
    assert_bound(elbo(terms, beta), expected, terms, beta)


@pytest.mark.parametrize("closed_form_kl", FLAGS)
def test_beta_zero_leaves_no_gradient_of_the_kl_terms(closed_form_kl):
    terms = make_terms(closed_form_kl=closed_form_kl)
    gradient = jax.jit(jax.grad(lambda terms, beta: bounds.elbo(terms, beta).sum()))
    without, within = gradient(terms, 0.0), gradient(terms, 1.0)
    for leaf in jax.tree.leaves((without.z, without.posterior, without.prior)):
        assert not np.any(leaf)
    for leaf in jax.tree.leaves((within.posterior, within.prior)):
        assert np.all(np.asarray(leaf) != 0)
    assert_close(without.log_px, np.full((6, 3), 1 / 6), roundings=1)


# --- Importance-weighted bound -------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_importance_weighted_is_the_log_mean_of_the_weights(beta):
    terms = make_terms()
    expected = log_weights_in_float64(terms, beta)
    size = size_of(terms, beta)
    assert_close(log_weights(terms, beta), expected, roundings_of(terms), size)
    expected = special.logsumexp(expected, axis=0) - np.log(6)
    assert_bound(importance_weighted(terms, beta), expected, terms, beta)


def test_one_importance_sample_gives_the_elbo_without_closed_forms():
    terms = make_terms(samples=1, closed_form_kl=(False, False))
    bound = importance_weighted(terms)
    assert_bound(bound, np.float64(elbo(terms)), terms)
    assert_bound(bound, log_weights_in_float64(terms)[0], terms)


def test_more_importance_samples_never_loosen_the_bound():
    # By Jensen's inequality this holds for every draw, not just on average.
    terms = make_terms(samples=12, batch=50, closed_form_kl=(False, False))
    by_k = [objective(terms, 1.0, k) for k in (1, 2, 4, 12)]
    for fewer, more in itertools.pairwise(by_k):
        assert np.all(more > fewer)


class LinearGaussian:
    """z ~ N(0, 1), x | z ~ N(z, noise): p(x) is N(0, 1 + noise), the posterior is known too."""

    x, noise = 1.3, 0.4
    log_px = stats.norm.logpdf(x, 0, np.sqrt(1 + noise))
    posterior_mean, posterior_variance = x / (1 + noise), noise / (1 + noise)

    def terms(self, z, mean, variance):
        """Terms at samples z, [samples, batch], of the posterior N(mean, variance)."""
        z = np.float32(z)[..., None]
        mean, variance, zero, one = (float32(np.full_like(z, a)) for a in (mean, variance, 0, 1))
        log_px = float32(stats.norm.logpdf(self.x, z[..., 0], np.sqrt(self.noise)))
        q, p = Gaussian(mean, variance), Gaussian(zero, one)
        return Terms(log_px, (float32(z),), (q,), (p,), (False,))


def test_with_the_exact_posterior_every_sample_gives_the_log_likelihood():
    model = LinearGaussian()
    z = np.random.default_rng(1).normal(size=(5, 7))
    terms = model.terms(z, model.posterior_mean, model.posterior_variance)
    expected = np.full(7, model.log_px)
    assert_bound(importance_weighted(terms), expected, terms)
    assert_bound(elbo(terms), expected, terms)


def test_expected_bounds_rise_with_k_from_the_elbo_to_the_log_likelihood():
    model, mean, variance = LinearGaussian(), 0.5, 0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights /= weights.sum()
    expected_bound, rounding = [], []
    for k in (1, 2, 3):
        # The expectation over K samples by quadrature: every K-tuple of nodes is an example.
        z = np.array(list(itertools.product(mean + np.sqrt(variance) * nodes, repeat=k))).T
        probability = np.prod(list(itertools.product(weights, repeat=k)), axis=1)
        terms = model.terms(z, mean, variance)
        expected_bound.append(np.float64(importance_weighted(terms)) @ probability)
        rounding.append(float32_error(roundings_of(terms), size_of(terms).max(0) @ probability))
    expected_log_px = -0.5 * (
        np.log(2 * np.pi * model.noise) + ((model.x - mean) ** 2 + variance) / model.noise
    )
    expected_elbo = expected_log_px - 0.5 * (mean**2 + variance - 1 - np.log(variance))
    assert expected_bound[0] == pytest.approx(expected_elbo, abs=rounding[0])
    assert max(rounding) < 1e-3
    assert expected_elbo < expected_bound[1] - 0.01 < expected_bound[2] - 0.02 < model.log_px


def test_many_importance_samples_give_the_log_likelihood():
    model, mean, variance, samples = LinearGaussian(), 0.5, 0.5, 50_000
    z = np.random.default_rng(2).normal(mean, np.sqrt(variance), (samples, 1))
    terms = model.terms(z, mean, variance)
    weights = np.exp(log_weights_in_float64(terms) - model.log_px)
    assert standard_error(weights) < 0.005
    assert_mean(weights, 1.0)
    expected = model.log_px + np.log(weights.mean())
    assert_bound(importance_weighted(terms), np.array([expected]), terms)


def test_log_weights_of_a_hundred_nats_and_more_apart_stay_finite():
    given = np.float32(
        [[-1000, -90, 1e4, 0], [-850, -200, -1e4, 0], [-1200, -90.5, 3, 0], [-851, -300, 0, 0]]
    )
    terms = terms_of_log_weights(given)
    expected = special.logsumexp(given.astype(np.float64), axis=0) - np.log(4)
    assert_close(importance_weighted(terms), expected, roundings=16, size=np.abs(expected) + 1)
    gradient = jax.jit(jax.grad(lambda terms: bounds.importance_weighted(terms).sum()))(terms)
    # The gradient shares itself out as the normalised weights do.
    expected = special.softmax(given.astype(np.float64), axis=0)
    # exp makes an absolute error of the exponent a relative one of the weight.
    exponent = np.abs(np.float64(given) - given.max(0))
    assert_close(gradient.log_px, expected, roundings=16, size=expected * (1 + exponent))
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(leaf))


def test_log_mean_exp_is_the_logarithm_of_the_mean():
    values = np.random.default_rng(3).uniform(0.1, 5.0, (7, 2, 3))
    log_mean_exp = jax.jit(bounds.log_mean_exp)
    actual = log_mean_exp(float32(np.log(values)))
    # 7 terms, exp and log; of the logarithms given, the largest is 2.3 in size.
    assert_close(actual, np.log(values.mean(axis=0)), roundings=7 + 8, size=np.log(10))
    of_zero_and_one = log_mean_exp(float32([-np.inf, 0.0]))
    assert_close(of_zero_and_one, -np.log(2), roundings=8, size=1)


def test_log_mean_exp_of_float64_has_its_accuracy():
    values = np.random.default_rng(3).uniform(0.1, 5.0, 7)
    with jax.enable_x64(True):
        actual = bounds.log_mean_exp(jnp.asarray(np.log(values)))
    roundings = (7 + 8) * np.finfo(np.float64).eps * np.log(10)
    assert_within(actual, np.log(values.mean()), roundings)


# --- The objective of training -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importance_samples", "expected"),
    [
        (1, np.log(1 * 3 * 2 * 6) / 4),
        (2, (np.log(2) + np.log(4)) / 2),
        (4, np.log(3)),
    ],
)
def test_objective_averages_the_bounds_of_groups_of_samples(importance_samples, expected):
    terms = terms_of_log_weights(np.log([[1.0], [3.0], [2.0], [6.0]]))
    actual = objective(terms, 1.0, importance_samples)
    assert_bound(actual, np.array([expected]), terms)


@pytest.mark.parametrize("importance_samples", [2, 3, 6])
@pytest.mark.parametrize("beta", np.float32([0.25, 1.0]))
def test_objective_of_every_field_in_groups_is_the_float64_one(importance_samples, beta):
    terms = make_terms()
    groups = log_weights_in_float64(terms, beta).reshape(-1, importance_samples, 3)
    expected = special.logsumexp(groups, axis=1) - np.log(importance_samples)
    actual = objective(terms, beta, importance_samples)
    assert_bound(actual, expected.mean(axis=0), terms, beta)


def test_objective_with_one_importance_sample_is_the_elbo_with_closed_forms():
    terms = make_terms(closed_form_kl=(True, True))
    kl = sum(layer.sum(-1) for layer in kl_in_float64(terms))
    expected = (np.float64(terms.log_px) - 0.7 * kl).mean(axis=0)
    assert_bound(objective(terms, 0.7, 1), expected, terms, 0.7)


def test_objective_refuses_samples_that_do_not_form_groups():
    message = "6 samples do not split into groups of importance_samples=4; give a multiple"
    with pytest.raises(ValueError, match=message):
        objective(make_terms(), 1.0, 4)


# --- Beyond the paper: free bits, other gradients ------------------------------------------------


def terms_with_kl(kl_by_layer, log_px):
    """Terms of one sample with closed-form KLs: KL(N(m, 1) || N(0, 1)) is m^2 / 2."""
    prior = [distributions.standard_gaussian(np.shape(kl)) for kl in kl_by_layer]
    posterior = [
        Gaussian(float32(np.sqrt(2 * np.asarray(kl))), p.variance)
        for kl, p in zip(kl_by_layer, prior, strict=True)
    ]
    z = tuple(q.mean for q in posterior)
    flags = (True,) * len(z)
    return Terms(float32(log_px), z, tuple(posterior), tuple(prior), flags)


# [samples, batch, units]: two examples, with two units in one layer and one in the other, of which
# the means over the examples are 0.5, 1.0 and 0.05.
FREE_BITS_TERMS = terms_with_kl(
    ([[[0.5, 0.0], [0.5, 2.0]]], [[[0.02], [0.08]]]), log_px=[[-3.0, -5.0]]
)


@pytest.mark.parametrize(
    ("minimum", "expected"),
    [
        (0.01, -4 - 0.5 * (0.5 + 1.0 + 0.05)),
        # The second unit stays as it is, though its KL in the first example is zero.
        (0.25, -4 - 0.5 * (0.5 + 1.0 + 0.25)),
        (0.75, -4 - 0.5 * (0.75 + 1.0 + 0.75)),
        (3.0, -4 - 0.5 * 9.0),
    ],
)
def test_free_bits_charge_the_mean_kl_of_a_unit_but_no_less_than_the_minimum(minimum, expected):
    actual = bounds.free_bits(FREE_BITS_TERMS, 0.5, minimum)
    assert actual.shape == ()
    assert_bound(actual, expected, FREE_BITS_TERMS, 0.5)


def test_free_bits_take_the_gradient_from_units_below_the_minimum_alone():
    gradient = jax.jit(jax.grad(bounds.free_bits), static_argnums=2)(FREE_BITS_TERMS, 0.5, 0.25)
    # d/dm of -beta/2 m^2 averaged over two examples.
    lower, upper = (-0.5 * np.float64(q.mean) / 2 for q in FREE_BITS_TERMS.posterior)
    assert_close(gradient.posterior[0].mean, lower, roundings=8)
    assert np.any(upper)
    for leaf in jax.tree.leaves((gradient.posterior[1], gradient.prior[1])):
        assert not np.any(leaf)
    np.testing.assert_array_equal(gradient.log_px, [[0.5, 0.5]])


def test_free_bits_of_zero_give_the_mean_elbo_where_no_kl_is_negative():
    terms = make_terms(closed_form_kl=(True, True))
    kl = sum(layer.sum(-1) for layer in kl_in_float64(terms))
    expected = (np.float64(terms.log_px) - 0.7 * kl).mean()
    assert_bound(bounds.free_bits(terms, 0.7, 0.0), expected, terms, 0.7)


def test_free_bits_bound_the_mean_of_one_sample_estimates():
    terms = make_terms(closed_form_kl=(False, False), seed=5)
    kl = np.concatenate([layer.mean((0, 1)) for layer in kl_in_float64(terms)])
    assert kl.min() < 0.1 < kl.max()
    expected = np.float64(terms.log_px).mean() - 0.7 * np.maximum(kl, 0.1).sum()
    assert_bound(bounds.free_bits(terms, 0.7, 0.1), expected, terms, 0.7)


PATH_BOUNDS = {
    "stl": (bounds.sticking_the_landing, lambda w, beta: w),
    "dreg": (bounds.doubly_reparameterized, lambda w, beta: w - beta * w * (1 - w)),
}


@functools.cache
def gradient_of_images(name, importance_samples):
    """Of a path bound, image i times i, so that a share of another image's gradient would show."""

    def of_images(terms, beta):
        bound = PATH_BOUNDS[name][0](terms, beta, importance_samples)
        return jnp.sum(jnp.float32([1, 2, 3]) * bound)

    return jax.jit(jax.grad(of_images))


@pytest.mark.parametrize("importance_samples", [1, 3])
@pytest.mark.parametrize("beta", np.float32([0.0, 0.5, 1.0]))
@pytest.mark.parametrize("name", PATH_BOUNDS)
def test_gradients_share_out_the_path_by_the_normalised_weights(name, beta, importance_samples):
    terms = make_terms(closed_form_kl=(True, True))
    # Within a few nats of each other, so that no weight is near one.
    terms = dataclasses.replace(terms, log_px=terms.log_px / 5)
    _, weight_of = PATH_BOUNDS[name]
    gradient = gradient_of_images(name, importance_samples)(terms, beta)
    log_weights = log_weights_in_float64(terms, beta).reshape(-1, importance_samples, 3)
    weights = weight_of(special.softmax(log_weights, axis=1), np.float64(beta))
    share = np.float64([1, 2, 3]) * importance_samples / 6  # of a group in the mean over groups
    weights = share * weights.reshape(6, 3)
    # exp makes the absolute errors of log weights relative ones of their shares.
    error = share * float32_error(roundings_of(terms), 2 * size_of(terms, beta).max())
    assert_within(gradient.log_px, weights, error)
    for layer in range(2):
        q, p = np.float64(terms.posterior[layer]), np.float64(terms.prior[layer])
        z = np.float64(terms.z[layer])
        slope = beta * ((z - q[0]) / q[1] - (z - p[0]) / p[1])  # of the log weight, by z
        size = beta * sum(np.abs(z - g[0]) / g[1] for g in (q, p))
        tolerance = error[:, None] * np.abs(slope) + float32_error(8, weights[..., None] * size)
        assert_within(gradient.z[layer], weights[..., None] * slope, tolerance)


@pytest.mark.parametrize("importance_samples", [1, 3])
def test_sticking_the_landing_has_the_value_of_the_bound_without_closed_forms(importance_samples):
    terms = make_terms(closed_form_kl=(True, True))
    groups = log_weights_in_float64(terms, 0.5).reshape(-1, importance_samples, 3)
    expected = special.logsumexp(groups, axis=1) - np.log(importance_samples)
    path_bound = jax.jit(bounds.sticking_the_landing, static_argnums=2)
    actual = path_bound(terms, 0.5, importance_samples)
    assert_bound(actual, expected.mean(axis=0), terms, 0.5)


@pytest.mark.parametrize("name", PATH_BOUNDS)
def test_path_bounds_are_of_beta_one_and_one_importance_sample_unless_given(name):
    terms = make_terms()
    expected = log_weights_in_float64(terms, 1.0).mean(axis=0)  # a single weight is one
    assert_bound(jax.jit(PATH_BOUNDS[name][0])(terms), expected, terms)


@pytest.mark.parametrize("name", PATH_BOUNDS)
def test_gradients_refuse_samples_that_do_not_form_groups(name):
    message = "6 samples do not split into groups of importance_samples=4; give a multiple"
    with pytest.raises(ValueError, match=message):
        PATH_BOUNDS[name][0](make_terms(), 1.0, 4)


@pytest.mark.parametrize("importance_samples", [0, -2, 1.5, 3.0])
@pytest.mark.parametrize(
    "bound",
    [bounds.importance_weighted, bounds.sticking_the_landing, bounds.doubly_reparameterized],
)
def test_bounds_refuse_what_is_no_number_of_importance_samples(bound, importance_samples):
    message = f"importance_samples={importance_samples}; give a whole number of at least 1"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bound(make_terms(), 1.0, importance_samples)


@pytest.mark.parametrize("name", ["mc_samples", "importance_samples"])
@pytest.mark.parametrize("number", [1.5, 2.0, math.nan, "2"])
def test_an_objective_takes_whole_numbers_of_samples(name, number):
    both = {"mc_samples": 1, "importance_samples": 1} | {name: number}
    message = "mc_samples={mc_samples!r}, importance_samples={importance_samples!r}; give at least"
    with pytest.raises(ValueError, match=re.escape(message.format(**both)) + " 1 of each, as whol"):
        Objective(**both)


def test_numbers_of_samples_may_be_numpy_integers(monkeypatch):
    # More is taken than the annotations say.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    one = Objective(mc_samples=np.int64(3), importance_samples=np.int32(2))
    assert one == Objective(mc_samples=3, importance_samples=2)
    assert one.num_samples == 6
    terms = terms_of_log_weights(np.log([[1.0], [3.0], [2.0], [6.0]]))
    expected = np.array([(np.log(2) + np.log(4)) / 2])
    in_pairs = jax.jit(bounds.importance_weighted, static_argnums=2)
    assert_bound(in_pairs(terms, 1.0, np.int64(2)), expected, terms)


# --- Effective sample size, warm-up --------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, -90.0, -123_456.7, 1e6])
def test_effective_sample_size_of_equal_weights_is_their_number(offset):
    actual = effective_sample_size(float32(np.full((5, 2), offset)))
    assert_close(actual, [5.0, 5.0], roundings=8)


@pytest.mark.parametrize("lead", [50.0, 200.0, 1e5])
def test_effective_sample_size_is_one_where_one_weight_dominates(lead):
    given = np.zeros((100, 1))
    given[17] = lead
    actual = effective_sample_size(float32(given - 90))
    assert_close(actual, [1.0], roundings=8)


@pytest.mark.parametrize("offset", [0.0, -90.0, -3000.0, -200_000.0])
def test_effective_sample_size_is_the_squared_sum_over_the_sum_of_squares(offset):
    spread = np.random.default_rng(4).normal(0, 1.5, (200, 3))
    given = np.float32(offset + spread)
    weights = np.exp(given.astype(np.float64) - offset)
    expected = weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0)
    actual = effective_sample_size(given)
    # 200 terms, exp and a quotient; exp makes of an exponent's error a relative one, twice.
    exponent = np.ptp(np.float64(given), axis=0)
    assert_close(actual, expected, roundings=200 + 8, size=expected * (1 + exponent))


# --- Terms as a pytree, transformations, dtypes --------------------------------------------------


def test_terms_are_a_pytree_whose_flags_are_structure():
    terms = make_terms(closed_form_kl=(False, True))
    assert len(jax.tree.leaves(terms)) == 1 + 2 + 2 * 2 + 2 * 2
    doubled = jax.tree.map(lambda a: 2 * a, terms)
    assert isinstance(doubled, Terms)
    assert doubled.closed_form_kl == (False, True)
    assert np.array_equal(doubled.log_px, 2 * terms.log_px)
    assert np.array_equal(doubled.prior[1].variance, 2 * terms.prior[1].variance)
    other = make_terms(closed_form_kl=(True, True))
    assert jax.tree.structure(terms) != jax.tree.structure(other)


def test_terms_pass_through_jit_with_their_flags():
    returned = jax.jit(lambda terms: terms)(make_terms(closed_form_kl=(False, True)))
    assert returned.closed_form_kl == (False, True)
    # One jitted function serves all flags, each with its own terms.
    for closed_form_kl in FLAGS:
        terms = make_terms(closed_form_kl=closed_form_kl)
        kl = sum(layer.sum(-1) for layer in kl_in_float64(terms))
        expected = (np.float64(terms.log_px) - 0.3 * kl).mean(axis=0)
        assert_bound(elbo(terms, jnp.float32(0.3)), expected, terms, 0.3)


BOUNDS = {
    "elbo": bounds.elbo,
    "importance_weighted": bounds.importance_weighted,
    "in pairs": lambda terms, beta: bounds.importance_weighted(terms, beta, 2),
    "free_bits": lambda terms, beta: bounds.free_bits(terms, beta, 0.1),
    "doubly_reparameterized": lambda terms, beta: bounds.doubly_reparameterized(terms, beta, 3),
    "log_weights": bounds.log_weights,
    "effective_sample_size": lambda terms, beta: bounds.effective_sample_size(
        bounds.log_weights(terms, beta)
    ),
}


def rounding_of(name, terms, value):
    """By how much two programs for one of `BOUNDS` may differ."""
    error = 2 * float32_error(roundings_of(terms), size_of(terms, 0.5).max())
    if name == "effective_sample_size":  # whose weights have the errors of their logarithms
        return 4 * error * np.abs(value)
    if name == "doubly_reparameterized":  # a sum over the group with weights of such errors
        return 3 * error * size_of(terms, 0.5).max()
    return error


@pytest.mark.parametrize("name", BOUNDS)
def test_jit_equals_eager(name):
    terms, beta = make_terms(closed_form_kl=(False, True)), jnp.float32(0.5)
    actual, expected = jax.jit(BOUNDS[name])(terms, beta), BOUNDS[name](terms, beta)
    assert_within(actual, expected, rounding_of(name, terms, expected))


@pytest.mark.parametrize("name", BOUNDS)
def test_vmap_over_models_equals_a_loop(name):
    beta = jnp.float32(0.5)
    models = [make_terms(closed_form_kl=(False, True), seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *models)
    actual = jax.jit(jax.vmap(BOUNDS[name], in_axes=(0, None)))(stacked, beta)
    one_by_one = jax.jit(BOUNDS[name])
    expected = np.stack([one_by_one(terms, beta) for terms in models])
    for of_vmap, of_loop, terms in zip(actual, expected, models, strict=True):
        assert_within(of_vmap, of_loop, rounding_of(name, terms, of_loop))


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("beta", [0.5, np.float32(0.5)], ids=["python", "float32"])
@pytest.mark.parametrize("name", BOUNDS)
def test_float32_stays_float32(name, beta):
    assert jax.eval_shape(BOUNDS[name], make_terms(), beta).dtype == jnp.float32


def test_the_standard_error_of_a_bound_is_that_of_the_mean_weight():
    """Relative to it: the deviation of K weights over sqrt(K) and their mean."""
    w = np.random.default_rng(1).gamma(2.0, size=200)
    size = w.sum() ** 2 / (w**2).sum()
    expected = np.std(w) / np.sqrt(200) / np.mean(w)
    actual = bounds.importance_standard_error(jnp.float32(size), 200)
    # 1/ESS - 1/K cancels; the root halves its relative error.
    assert_close(actual, expected, roundings=4, size=1 / size / expected)
    for size in (200, 200 * (1 + 2 * EPSILON)):  # which is more than there are by its rounding
        assert bounds.importance_standard_error(jnp.float32(size), 200) == 0


def test_log_weights_are_those_of_beta_one_unless_given():
    terms = make_terms()
    np.testing.assert_array_equal(log_weights(terms), log_weights(terms, 1.0))


def test_terms_of_unequal_numbers_of_layers_are_refused_and_cannot_be_changed():
    terms = make_terms()
    short = dataclasses.replace(terms, prior=terms.prior[:1])
    for of_layers in (bounds.kl_per_unit, bounds.log_ratio_per_unit):
        with pytest.raises(ValueError, match="shorter than"):
            of_layers(short)
    with pytest.raises(ValueError, match="shorter than"):
        bounds.kl_per_unit(dataclasses.replace(terms, closed_form_kl=(True,)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        terms.z = ()
