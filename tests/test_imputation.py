"""Missing values against the exact conditionals of linear-Gaussian and of eight-pixel models."""

import functools
import itertools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from random_parameters import random_params
from scipy import special, stats
from tolerances import (
    assert_close,
    assert_mean,
    assert_plausible,
    assert_within,
    standard_error,
    threshold,
)

from lvae_jax import VAE, LadderVAE, evaluation, imputation
from lvae_jax.distributions import Bernoulli, Gaussian
from lvae_jax.imputation import Conditioning

OBSERVED = np.array([True, False, True])
FILLING = jnp.float32([5.0, 5.0, 5.0])  # far off, so that Metropolis-within-Gibbs has work
EFFORT = Conditioning(num_samples=512, chains=8, steps=5, rounds=3, effective_sample_size=200)


def test_masked_log_densities_are_those_of_the_observed_entries():
    rng = np.random.default_rng(0)
    x, logits, mean = rng.normal(size=(3, 4, 5))
    variance = rng.uniform(0.1, 2, (4, 5))
    observed = rng.random((4, 5)) < 0.5
    x = np.where(observed, x, np.nan)
    masked_log_prob = jax.jit(imputation.masked_log_prob)
    found = masked_log_prob(
        Gaussian(jnp.float32(mean), jnp.float32(variance)), jnp.float32(x), jnp.array(observed)
    )
    expected = np.nansum(stats.norm.logpdf(x, mean, np.sqrt(variance)), axis=-1)
    # The logarithm, and a deviation with the roundings of what it is the difference of.
    deviation = np.abs(x - mean) * (np.abs(x) + np.abs(mean)) / variance
    size = np.nansum(np.abs(np.log(2 * np.pi * variance)) + deviation, axis=-1)
    assert_close(found, expected, roundings=8, size=size)
    ones = np.where(observed, x > 0, np.nan)
    found = masked_log_prob(Bernoulli(jnp.float32(logits)), jnp.float32(ones), jnp.array(observed))
    expected = np.where(ones == 1, special.log_expit(logits), special.log_expit(-logits))
    size = np.where(observed, 1 + np.abs(logits), 0).sum(-1)
    assert_close(found, np.where(observed, expected, 0).sum(-1), roundings=8, size=size)


def test_a_missing_nan_reaches_no_gradient():
    # By hand, of the observed entry. Bernoulli: d/dl (x l - log(1 + e^l)) = x - 1/2 at l = 0.
    # Gaussian at x = 1, m = 0, v = 2: (x - m) / v = 1/2, and ((x - m)^2 / v - 1) / (2 v) = -1/8.
    x, observed = jnp.float32([1.0, jnp.nan]), jnp.array([True, False])
    gradient = jax.jit(
        jax.grad(lambda p, x: imputation.masked_log_prob(p, x, observed), argnums=(0, 1))
    )
    of_p, of_x = gradient(Bernoulli(jnp.zeros(2)), x)
    assert of_p.logits.tolist() == [0.5, 0.0]
    assert of_x.tolist()[1] == 0
    of_p, of_x = gradient(Gaussian(jnp.zeros(2), jnp.full(2, 2.0)), x)
    assert of_p.mean.tolist() == [0.5, 0.0]
    assert of_p.variance.tolist() == [-0.125, 0.0]
    assert of_x.tolist() == [-0.5, 0.0]


def bias_of(estimates, effective_sample_size):
    """At most, of self-normalised estimates with mean weights w: -Cov(estimate, w) / E[w].

    That is the deviation of the estimates times the relative one of w, 1 / sqrt(ESS).
    """
    return estimates.std(axis=0) / np.sqrt(np.min(effective_sample_size))


# A linear-Gaussian model of two layers: the conditional of x_m given x_o is a Gaussian.


@functools.cache
def linear(model_class):
    generative = {VAE: lg.ONE_UNIT_LAYERS, LadderVAE: lg.LADDER}[model_class][:2]
    inference = lg.worsened(lg.perfectly(generative, model_class))
    return generative, *lg.model_and_variables(model_class, generative, inference)


def exact_conditional(generative, x):
    """Mean and variance of the missing value of every row of x."""
    mean, covariance = lg.marginal_of_x(generative)
    oo, mo = covariance[np.ix_(OBSERVED, OBSERVED)], covariance[np.ix_(~OBSERVED, OBSERVED)]
    gain = np.linalg.solve(oo, mo.T).T
    variance = covariance[np.ix_(~OBSERVED, ~OBSERVED)] - gain @ mo.T
    return mean[~OBSERVED] + (x[:, OBSERVED] - mean[OBSERVED]) @ gain.T, variance[0, 0]


def test_draws_and_means_are_those_of_the_exact_conditional():
    generative, model, variables = linear(LadderVAE)
    copies = 100
    x = np.tile(np.where(OBSERVED, lg.X, np.nan), (copies, 1))
    result = evaluation.impute(
        model,
        variables,
        jnp.float32(x),
        jnp.array(np.broadcast_to(OBSERVED, x.shape)),
        FILLING,
        jax.random.key(0),
        num_draws=1,
        effort=EFFORT,
    )
    np.testing.assert_array_equal(
        np.float64(result.draws[0])[:, OBSERVED], np.float32(x[:, OBSERVED])
    )
    np.testing.assert_array_equal(np.float64(result.mean)[:, OBSERVED], np.float32(x[:, OBSERVED]))
    mean, variance = exact_conditional(generative, lg.X)
    means = np.float64(result.mean)[:, ~OBSERVED].reshape(copies, 4)
    assert np.all(standard_error(means) < 0.02)
    assert_mean(means, mean[:, 0], bias_of(means, result.effective_sample_size))
    draws = (np.float64(result.draws[0])[:, ~OBSERVED].reshape(copies, 4) - mean[:, 0]) / np.sqrt(
        variance
    )
    assert_plausible(stats.kstest(draws.ravel(), "norm").pvalue)  # of 400 independent draws


@pytest.mark.parametrize(("model_class", "rounds"), [(VAE, 3), (LadderVAE, 0)])
def test_the_conditional_log_likelihood_is_exact_with_the_error_it_states(model_class, rounds):
    generative, model, variables = linear(model_class)
    copies = 60
    filling, chains = (FILLING, 8) if rounds else (jnp.float32([0.3, 0.0, 0.1]), 1)
    result = evaluation.conditional_log_likelihood(
        model,
        variables,
        jnp.float32(np.tile(lg.X, (copies, 1))),
        jnp.array(np.broadcast_to(OBSERVED, (4 * copies, 3))),
        filling,
        jax.random.key(1),
        effort=Conditioning(1024, chains, 5, rounds, 400.0),
    )
    mean, variance = exact_conditional(generative, lg.X)
    exact = stats.norm.logpdf(lg.X[:, 1], mean[:, 0], np.sqrt(variance))
    found = np.float64(result.log_likelihood).reshape(copies, 4)
    stated = np.float64(result.standard_error).reshape(copies, 4)
    assert np.all(stated < 0.2)
    # The bias of the logarithm is half a variance at most.
    assert_mean(found, exact, np.mean(stated**2, axis=0))
    distance = np.abs(found - exact) / stated
    p_values = []
    for width in (1, 3):
        covers = stats.norm.cdf(width) - stats.norm.cdf(-width)
        within = int(np.sum(distance < width))
        p_values.append(stats.binomtest(within, distance.size, covers).pvalue)
    assert_plausible(p_values)


# Eight binary pixels and one latent: the conditional is a table of probabilities by quadrature.

HIDDEN = np.array([1, 4, 6])


@functools.cache
def eight_pixels():
    """A model, its variables, nodes of z with the prior's weights, and p(x_j = 1 | z) at them."""
    model = LadderVAE(8, (1,), ((3,),), activation="tanh", batch_norm=False)
    params = random_params(model, seed=3, scale=1.6)
    # A posterior that depends on the image, and is wider than the prior: no weight is large.
    head = params["inference"]["heads_0"]["Linear_0"]["Dense_0"]
    head.update(kernel=head["kernel"] * jnp.float32([[0.3, 0.0]]), bias=jnp.float32([0.2, 1.0]))
    networks = jax.tree.map(np.float64, params["generative"])
    z = np.linspace(-6, 6, 2001)
    dense = networks["mlps_0"]["Linear_0"]["Dense_0"]
    d = np.tanh(z[:, None] @ dense["kernel"] + dense["bias"])
    dense = networks["observation_head"]["Dense_0"]
    probability = special.expit(d @ dense["kernel"] + dense["bias"])
    weight = stats.norm.pdf(z)
    return model, {"params": params}, z, weight / weight.sum(), probability


IMAGE = np.array([1, 0, 0, 1, 1, 0, 1, 0])


def posterior_and_table():
    """p(z | x_o) at the nodes, and p(x_m | x_o) of the eight completions of `IMAGE`."""
    _, _, _, weight, probability = eight_pixels()
    shown = np.setdiff1d(np.arange(8), HIDDEN)
    given = stats.bernoulli.pmf(IMAGE[shown], probability[:, shown]).prod(-1) * weight
    completions = np.array(list(itertools.product((0, 1), repeat=3)))
    each = stats.bernoulli.pmf(completions[:, None], probability[:, HIDDEN]).prod(-1)
    return given / given.sum(), each @ given / given.sum()


def completion(x):
    """Which of the eight completions each row is."""
    return np.int64(np.asarray(x)[:, HIDDEN]) @ [4, 2, 1]


def test_imputed_pixels_have_the_enumerated_probabilities():
    model, variables, *_ = eight_pixels()
    copies = 300
    observed = np.ones(8, bool)
    observed[HIDDEN] = False
    arguments = (
        jnp.float32(np.tile(IMAGE, (copies, 1))),
        jnp.array(np.broadcast_to(observed, (copies, 8))),
        jnp.full(8, 0.5),
    )
    effort = Conditioning(512, 4, 3, 2, 300.0)
    result = evaluation.impute(
        model, variables, *arguments, jax.random.key(2), num_draws=1, effort=effort
    )
    _, table = posterior_and_table()
    counts = np.bincount(completion(result.draws[0]), minlength=8)
    assert_plausible(stats.chisquare(counts, copies * table).pvalue)
    completions = np.array(list(itertools.product((0, 1), repeat=3)))
    means = np.float64(result.mean)[:, HIDDEN]
    assert_mean(means, table @ completions, bias_of(means, result.effective_sample_size))
    x = np.tile(np.float32(IMAGE), (8, 1))
    x[:, HIDDEN] = completions
    _, observed, filling = arguments
    found = evaluation.conditional_log_likelihood(
        model,
        variables,
        jnp.asarray(x),
        jnp.asarray(np.asarray(observed)[:8]),
        filling,
        jax.random.key(3),
        effort=effort,
    )
    error = np.float64(found.standard_error)
    limit = threshold(len(table)) * error + error**2  # and the bias of the logarithm
    assert_within(found.log_likelihood, np.log(table), limit)


def test_the_draws_of_an_image_are_independent():
    model, variables, *_ = eight_pixels()
    copies, draws = 400, 16
    observed = np.ones(8, bool)
    observed[HIDDEN] = False
    result = evaluation.impute(
        model,
        variables,
        jnp.float32(np.tile(IMAGE, (copies, 1))),
        jnp.array(np.broadcast_to(observed, (copies, 8))),
        jnp.full(8, 0.5),
        jax.random.key(5),
        num_draws=draws,
        effort=Conditioning(1024, 4, 3, 2, 600.0),
    )
    posterior, table = posterior_and_table()
    each = completion(result.draws.reshape(-1, 8)).reshape(draws, copies)
    counts = np.stack([np.bincount(one, minlength=8) for one in each.T])
    # How many pairs of an image's draws are equal. Two draws share a latent with a probability of
    # 1 / ESS, and the importance samples of an image deviate together by no more than that.
    equal = (counts * (counts - 1)).sum(1) / (draws * (draws - 1))
    shared = 2 / np.min(result.effective_sample_size)
    assert_mean(equal, np.sum(table**2), rounding=shared)
    # All of one latent: a distance that no chance explains.
    p = eight_pixels()[-1][:, HIDDEN]
    of_one_latent = np.sum(posterior * np.prod(p**2 + (1 - p) ** 2, axis=1))
    assert of_one_latent - np.sum(table**2) > 2 * (shared + threshold() * standard_error(equal))


def test_rounds_end_at_the_size_that_is_asked_for_or_at_the_largest_number():
    _, model, variables = linear(LadderVAE)
    x = jnp.float32(lg.X)
    observed = jnp.array(np.broadcast_to(OBSERVED, x.shape))

    def rounds(size):
        effort = Conditioning(64, 2, 2, 3, size)
        return evaluation.impute(
            model, variables, x, observed, FILLING, jax.random.key(6), effort=effort
        ).rounds.tolist()

    assert rounds(65.0) == [3] * len(x)  # more than there are samples
    assert rounds(1.0) == [0] * len(x)


def test_the_size_of_a_likelihood_is_the_smaller_of_the_two_it_is_made_of():
    # A perfect encoder's weights of complete images are all equal; of those with a far filling few
    # count.
    generative = lg.LADDER[:2]
    inference = lg.perfectly(generative, LadderVAE)
    model, variables = lg.model_and_variables(LadderVAE, generative, inference)
    x = jnp.float32(lg.X)
    everything = jnp.ones(x.shape, bool)
    sizes = [
        evaluation.conditional_log_likelihood(
            model, variables, x, observed, FILLING, jax.random.key(7),
            effort=Conditioning(64, 1, 1, 0),
        ).effective_sample_size
        for observed in (everything, jnp.array(np.broadcast_to(OBSERVED, x.shape)))
    ]  # fmt: skip
    assert np.all(sizes[0] > 63)
    assert np.all(sizes[1] < 32)


def test_metropolis_within_gibbs_leaves_the_exact_conditional_as_it_is():
    model, variables, z, _, probability = eight_pixels()
    posterior, table = posterior_and_table()
    chains = 20_000
    rng = np.random.default_rng(1)
    node = rng.choice(len(z), size=chains, p=posterior)
    x = np.tile(IMAGE, (chains, 1))
    x[:, HIDDEN] = rng.random((chains, 3)) < probability[node][:, HIDDEN]
    observed = np.ones((1, 8), bool)
    observed[:, HIDDEN] = False
    step = jax.jit(
        functools.partial(
            imputation.metropolis_within_gibbs, functools.partial(model.apply, variables)
        )
    )
    x, (z_1,) = step(
        jnp.float32(x), (jnp.float32(z[node])[:, None],), jnp.array(observed), jax.random.key(4)
    )
    moved = np.mean(np.float64(z_1)[:, 0] != np.float32(z[node]))
    assert 0.1 < moved < 0.95  # both outcomes matter
    counts = np.bincount(completion(x), minlength=8)
    shift = rng.uniform(-0.003, 0.003, chains)  # nodes are 0.006 apart
    distribution = functools.partial(np.interp, xp=z, fp=np.cumsum(posterior) - posterior / 2)
    of_z = stats.kstest(np.float64(z_1)[:, 0] + shift, distribution)
    assert_plausible([stats.chisquare(counts, chains * table).pvalue, of_z.pvalue])


def test_shapes_and_efforts_that_do_not_fit_are_refused():
    _, model, variables = linear(LadderVAE)
    x, key = jnp.float32(lg.X), jax.random.key(0)
    with pytest.raises(ValueError, match="filling for one image"):
        evaluation.impute(model, variables, x, x > 0, x, key)
    with pytest.raises(ValueError, match="give observed for every value of x"):
        evaluation.impute(model, variables, x, x[:, :1] > 0, x[0], key)
    with pytest.raises(ValueError, match="multiple of chains"):
        Conditioning(num_samples=10, chains=3)
    for wrong in ({"rounds": -1}, {"effective_sample_size": float("nan")}):
        with pytest.raises(ValueError, match=r"rounds=.*, effective_sample_size=.*; give at least"):
            Conditioning(**wrong)
    for field in ("num_samples", "chains", "steps"):
        with pytest.raises(ValueError, match=f"{field}=0; give a whole number of at least 1"):
            Conditioning(**{field: 0})
