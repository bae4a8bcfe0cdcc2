"""Bidirectional Monte Carlo against log p(x) by quadrature and by dense linear algebra."""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from random_parameters import random_params
from scipy import special, stats
from tolerances import (
    assert_mean,
    assert_plausible,
    assert_within,
    standard_error,
    threshold,
)

from lvae_jax import LadderVAE, annealing, evaluation

LAYERS = lg.LADDER[:2]


@functools.cache
def eight_pixels():
    """A model of eight binary pixels and two layers of one unit, and its exact log p(x)."""
    model = LadderVAE(8, (1, 1), ((3,), (3,)), activation="tanh", batch_norm=False)
    params = random_params(model, seed=2, scale=1.5)
    networks = jax.tree.map(np.float64, params["generative"])

    def mlp(name, d):
        dense = networks[name]["Linear_0"]["Dense_0"]
        return np.tanh(d @ dense["kernel"] + dense["bias"])

    # Gauss-Hermite in the noise of both layers: smooth functions of it, 80 nodes are plenty.
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    head = networks["heads_0"]["Linear_0"]["Dense_0"]
    mean, raw = np.split(mlp("mlps_1", nodes[:, None]) @ head["kernel"] + head["bias"], 2, axis=-1)
    sigma = np.sqrt(np.logaddexp(raw, 0) + model.variance_floor)
    z_1 = (mean + sigma * nodes).reshape(-1, 1)  # of z_2, then of the noise of z_1
    dense = networks["observation_head"]["Dense_0"]
    logits = mlp("mlps_0", z_1) @ dense["kernel"] + dense["bias"]
    log_weights = np.log(np.outer(weights, weights)).reshape(-1)

    def log_evidence(x):
        images, rows = np.unique(x, axis=0, return_inverse=True)  # there are only 256
        log_px = images @ logits.T - np.logaddexp(logits, 0).sum(-1)
        return special.logsumexp(log_px + log_weights, axis=1)[rows.reshape(-1)]

    return model, {"params": params}, log_evidence


@functools.cache
def linear():
    """A linear-Gaussian model, and its exact log p(x)."""
    inference = lg.perfectly(LAYERS, LadderVAE)
    model, variables = lg.model_and_variables(LadderVAE, LAYERS, inference)
    return model, variables, functools.partial(lg.log_evidence, LAYERS)


@functools.cache
def of_chains(exact, chains, temperatures=30):
    """Of a model, 2500 images and their bounds, at temperatures so few that these vary."""
    model, variables, _ = exact()
    keys = jax.random.split(jax.random.key(0), 2500)
    return evaluation.bidirectional(
        model, variables, keys, temperatures=temperatures, chains=chains, leapfrog_steps=5
    )


@pytest.mark.parametrize(
    ("exact", "chains", "temperatures"),
    [(linear, 1, 30), (eight_pixels, 1, 30), (eight_pixels, 4, 10)],
)
def test_chains_are_unbiased_for_the_evidence_up_and_for_its_inverse_down(
    exact, chains, temperatures
):
    *_, log_evidence = exact()
    result = of_chains(exact, chains, temperatures)
    log_px = log_evidence(np.float64(result.x))
    # E w / p(x) = 1 and E p(x) / w = 1 over x and w.
    for log_ratio in (result.lower - log_px, log_px - result.upper):
        ratio = np.exp(np.float64(log_ratio))
        assert standard_error(ratio) < 0.05
        assert_mean(ratio, 1.0, comparisons=2)


def test_a_step_leaves_its_tempered_posterior_as_it_is():
    # x = 1.5 of N(2 e_1 - e_2, 1/2), and both e of N(0, 1): with the likelihood to the power of 0.6
    # the posterior is a Gaussian of this precision and mean.
    weight, variance, beta = np.array([2.0, -1.0]), 0.5, 0.6
    precision = np.eye(2) + beta * np.outer(weight, weight) / variance
    mean = np.linalg.solve(precision, beta * 1.5 * weight / variance)
    root = np.linalg.cholesky(precision)

    def log_px(eps):
        return -((1.5 - jnp.float32(weight) @ eps) ** 2) / (2 * variance)

    def state_at(eps):
        return annealing._State(eps, *jax.value_and_grad(log_px)(eps))

    chains = 50_000
    noise = np.random.default_rng(0).normal(size=(chains, 2))
    before = jnp.float32(mean + np.linalg.solve(root.T, noise.T).T)
    keys = jax.random.split(jax.random.key(5), chains)
    step = jax.jit(
        jax.vmap(
            lambda key, eps: annealing._step(
                state_at, 3, key, state_at(eps), jnp.float32(beta), jnp.float32(0.6)
            )
        )
    )
    after, accepted = step(keys, before)
    assert 0.1 < np.mean(accepted) < 0.95  # both outcomes matter
    assert_mean(np.any(after.eps != before, axis=1) - np.float64(accepted), 0.0, comparisons=1)
    whitened = (np.float64(after.eps) - mean) @ root
    assert_plausible([stats.kstest(each, "norm").pvalue for each in whitened.T])


def test_the_bounds_close_around_the_evidence():
    model, variables, log_evidence = eight_pixels()
    keys = jax.random.split(jax.random.key(1), 200)
    gaps = []
    for temperatures in (10, 100):
        result = evaluation.bidirectional(
            model, variables, keys, temperatures=temperatures, chains=2, leapfrog_steps=5
        )
        log_px = log_evidence(np.float64(result.x))
        below, above = log_px - np.float64(result.lower), np.float64(result.upper) - log_px
        for gap in (below, above):
            assert gap.mean() > -threshold(4, len(keys) - 1) * standard_error(gap)
        gaps.append((below + above).mean())
        assert 0.3 < float(jnp.mean(result.acceptance)) <= 1
    assert gaps[0] > 0.1  # so that there is something to close
    assert gaps[1] < gaps[0] / 2  # it falls as one over the temperatures


def test_trajectories_that_overflow_are_rejected_and_the_bounds_stay_finite():
    # The likelihood's curvature is (1000)^2 / 1e-5 = 1e11, so that each step of 0.2 makes a
    # deviation up to 4e9 times as large, and ten steps go beyond float32.
    generative = [lg.layer([[1000.0], [0.0]], [0.0, 0.0], [1e-5 + 1e-6] * 2)]
    inference = [lg.layer([[1.0, 0.0]], [0.0], [1.0])]  # not used
    model, variables = lg.model_and_variables(LadderVAE, generative, inference)
    keys = jax.random.split(jax.random.key(4), 20)
    result = evaluation.bidirectional(model, variables, keys, temperatures=5, leapfrog_steps=10)
    for field in result:
        assert np.all(np.isfinite(field))
    assert np.all(result.acceptance <= 1)
    assert np.all(result.acceptance >= 0)


def test_images_are_draws_of_the_model():
    x = np.float64(of_chains(linear, 1).x)
    mean, covariance = lg.marginal_of_x(LAYERS)
    limit = threshold(comparisons=3 + 6)  # means, and covariances of three values
    assert_within(x.mean(0), mean, limit * np.sqrt(np.diag(covariance) / len(x)))
    products = np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2
    assert_within(np.cov(x.T), covariance, limit * np.sqrt(products / len(x)))


def test_an_image_is_the_same_among_others_whatever_the_generator():
    model, variables, _ = linear()
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 3)
    among, among_others = (
        evaluation.bidirectional(model, variables, some, temperatures=2, leapfrog_steps=1)
        for some in (keys[:2], keys[2:0:-1])
    )
    for field, other in zip(among, among_others, strict=True):
        np.testing.assert_array_equal(field[1], other[1])


def test_too_few_of_anything_is_refused():
    model, variables, _ = eight_pixels()
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="temperatures=1; give at least 2"):
        evaluation.bidirectional(model, variables, keys, temperatures=1)
    with pytest.raises(ValueError, match="chains=0; give a whole number"):
        evaluation.bidirectional(model, variables, keys, chains=0)


def test_the_bounds_of_float64_parameters_lie_around_the_evidence_too():
    model, variables, log_evidence = eight_pixels()
    keys = jax.random.split(jax.random.key(1), 200)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)
        result = evaluation.bidirectional(model, wide, keys, temperatures=10, leapfrog_steps=5)
    assert result.lower.dtype == result.upper.dtype == jnp.float32
    log_px = log_evidence(np.float64(result.x))
    for gap in (log_px - np.float64(result.lower), np.float64(result.upper) - log_px):
        assert gap.mean() > -threshold(2, len(keys) - 1) * standard_error(gap)
        assert gap.mean() < 1  # with so few temperatures
