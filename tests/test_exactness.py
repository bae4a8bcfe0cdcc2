"""Two tests of everything at once: probabilities add up to one, and posteriors are calibrated.

Importance sampling is unbiased for p(x) = exp(log p(x)), whatever the weights of the networks, the
number K of samples, the depth and the inference. So the sum of exp(L_K) over all x has expectation
1 exactly, and a wrong sign, scale, missing term or density that does not integrate to one shows.

And for x drawn from the model, the z that it was drawn from is a draw from p(z | x): its place
among samples weighted by p(x, z) / q(z | x) is uniform (simulation-based calibration: Talts,
Betancourt, Simpson, Vehtari, Gelman 2018, arXiv:1804.06788).
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_params, variables_like
from scipy import stats
from tolerances import FALSE_ALARM, assert_mean, assert_plausible, standard_error

from lvae_jax import VAE, LadderVAE, bounds, evaluation

pytestmark = pytest.mark.faults

VARIANTS = {
    "vae": VAE,
    "ladder": LadderVAE,
    "own_top_down": functools.partial(LadderVAE, own_top_down=True),
    "mean_upward": functools.partial(LadderVAE, mean_upward=True),
}


def model_and_variables(variant, depth, batch_norm, observation="bernoulli", data_dim=8):
    """A small model with random parameters and statistics.

    The weights p / q have a finite variance where q is wider than p over sqrt(2), in every layer:
    the inference's variances are large. (A ladder's q, a product with p, is narrower than p.) Means
    are bounded, by tanh, so that no p is far from its q.
    """
    model = VARIANTS[variant](
        data_dim,
        (2, 2, 1)[:depth],
        (5, 4, 3)[:depth],
        observation=observation,
        activation="tanh",
        batch_norm=batch_norm,
    )
    params = jax.tree.map(np.array, random_params(model, seed=depth))

    def with_variances(path, leaf, centre):
        """Raw variances around `centre`, which vary little, and means that vary half as much."""
        name, units = path[-1].key, leaf.shape[-1] // 2
        raw = slice(units, None)
        if not path[0].key.startswith(("heads_", "top_down_heads_")):
            return leaf
        if name in ("bias", "shift"):
            leaf[raw] = centre + leaf[raw] / 10
            return leaf
        if name == "kernel" and batch_norm:  # which comes after the kernel
            return leaf
        return leaf * np.repeat(np.float32([0.5, 0.2]), units)

    for part, centre in (("inference", 1.2), ("generative", -0.5)):  # variances of 1.5 and 0.5
        params[part] = jax.tree.map_with_path(
            functools.partial(with_variances, centre=centre), params[part]
        )
    if observation == "gaussian":  # of a narrow p(x | z) few samples have all of the weight
        for leaf in jax.tree.leaves(params["generative"]["observation_head"]):
            leaf[..., data_dim:] = 2.0 * (leaf.ndim == 1)
    if not batch_norm:
        return model, {"params": params}
    like = variables_like(model)["batch_stats"]
    rng = np.random.default_rng(depth)
    statistics = jax.tree.map_with_path(
        lambda path, leaf: np.float32(
            rng.uniform(0.5, 1.5, leaf.shape)
            if path[-1].key == "variance"
            else rng.normal(0, 0.3, leaf.shape)
        ),
        like,
    )
    return model, {"params": params, "batch_stats": statistics}


# Probabilities add up to one


def by_evaluation(model, variables, x, key, num_samples):
    """L_K of every row, as a trained model is evaluated."""
    result = evaluation.log_likelihood(
        model, variables, x, key, num_samples=num_samples, chunk_size=min(num_samples, 50)
    )
    return result.log_likelihood


@functools.partial(jax.jit, static_argnames=("model", "num_samples"))
def by_bound(model, variables, x, key, num_samples):
    """L_K of every row, as the bound of the terms of K samples."""
    terms = model.apply(variables, x, num_samples, rngs={"sample": key})
    return bounds.importance_weighted(terms)


def estimates(estimate, model, variables, x, num_samples, repeats):
    """exp(L_K) of every row of x, from independent samples, [repeats, rows]."""
    rows = jnp.asarray(np.tile(x, (repeats, 1)), jnp.float32)
    log_px = estimate(model, variables, rows, jax.random.key(1), num_samples)
    return np.exp(np.float64(log_px)).reshape(repeats, -1)


CASES = [
    (by_evaluation, "vae", 3, True, 50),
    (by_evaluation, "own_top_down", 3, True, 50),
    (by_evaluation, "ladder", 1, False, 20),
    (by_bound, "vae", 1, True, 1),
    (by_bound, "ladder", 2, True, 5),
    (by_bound, "mean_upward", 3, True, 50),
]


@pytest.mark.parametrize(("estimate", "variant", "depth", "batch_norm", "num_samples"), CASES)
def test_the_probabilities_of_all_binary_x_add_up_to_one(
    estimate, variant, depth, batch_norm, num_samples
):
    model, variables = model_and_variables(variant, depth, batch_norm)
    x = list(itertools.product((0, 1), repeat=8))
    repeats = max(32, 2_000 // num_samples)
    sums = estimates(estimate, model, variables, x, num_samples, repeats).sum(axis=1)
    assert standard_error(sums) < 0.02  # so that 0.12 nats too many or too few would be seen
    assert_mean(sums, 1.0)


@pytest.mark.parametrize(
    ("estimate", "variant", "depth"), [(by_evaluation, "vae", 2), (by_bound, "ladder", 2)]
)
def test_the_density_of_real_x_integrates_to_one(estimate, variant, depth):
    model, variables = model_and_variables(variant, depth, True, "gaussian", data_dim=1)
    # A density this smooth is integrated by equidistant sums without an error that could be seen.
    x, step = np.linspace(-20, 20, 201, retstep=True)
    density = estimates(estimate, model, variables, x[:, None], num_samples=100, repeats=32)
    assert max(density[:, 0].max(), density[:, -1].max()) < 1e-9
    sums = step * density.sum(axis=1)
    assert standard_error(sums) < 0.03
    assert_mean(sums, 1.0)


# Calibration

PAIRS, PROPOSALS = 4_000, 30


def drawn_from_the_model(model, variables, apply):
    """(z, x) of `PAIRS` ancestral draws: z by layer, bottom to top, [1, PAIRS, units]."""
    rng = np.random.default_rng(4)
    x = np.zeros((PAIRS, model.data_dim), np.float32)
    z = [np.zeros((1, PAIRS, units), np.float32) for units in model.latent_sizes]
    for layer in reversed(range(model.depth)):
        # The prior of a layer depends on the layers above it alone, which are drawn by now.
        p = apply(variables, x, tuple(z), method="densities").prior[layer]
        z[layer] = np.float32(rng.normal(p.mean, np.sqrt(p.variance)))
    probability = apply(variables, z[0][0], layer=1, method="generate")
    return tuple(z), np.float32(rng.random(x.shape) < probability)


@functools.cache
def truth_and_proposals(variant):
    """The terms at the z that each x was drawn from, and those of proposals from q."""
    model, variables = model_and_variables(variant, depth=3, batch_norm=True)
    apply = jax.jit(model.apply, static_argnames=("method", "layer", "num_samples"))
    z, x = drawn_from_the_model(model, variables, apply)
    truth = apply(variables, x, z, method="densities")
    rngs = {"sample": jax.random.key(5)}
    return truth, apply(variables, x, num_samples=PROPOSALS, rngs=rngs)


def places_of_the_truth(variant, log_weights):
    """Where the z that x was drawn from lies among weighted samples, by every unit of every layer.

    And by log p(x | z_1), which alone sees weights without x, those of the prior (Modrák et al.
    2023, arXiv:2211.02383). Arrays are [PAIRS, units], the last one [PAIRS, 1].

    The pool is the truth and proposals from q. Given the pool, the probability of each member to be
    the truth is in proportion to its weight. So the sum of the weights of smaller members, and a
    random part of its own, is uniform: exactly, for any number of proposals.
    """
    rng = np.random.default_rng(6)
    truth, proposals = truth_and_proposals(variant)
    log_w = np.concatenate([log_weights(terms) for terms in (truth, proposals)])
    w = np.exp(np.float64(log_w) - log_w.max(0))
    w /= w.sum(0)
    assert np.median(1 / (w**2).sum(0)) > 3  # else the truth alone has all the weight
    places = []
    by_density = truth.log_px[..., None], proposals.log_px[..., None]
    for true, drawn in (*zip(truth.z, proposals.z, strict=True), by_density):
        below = (w[1:, :, None] * (np.asarray(drawn) < np.asarray(true))).sum(0)
        places.append(below + w[0, :, None] * rng.random(below.shape))
    return places


def p_values(places):
    """Of a Kolmogorov-Smirnov test of every unit's places against the uniform distribution."""
    return [stats.kstest(unit, "uniform").pvalue for layer in places for unit in layer.T]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_z_that_x_was_drawn_from_is_a_draw_from_the_posterior(variant):
    places = places_of_the_truth(variant, jax.jit(bounds.log_weights))
    assert [layer.shape for layer in places] == [(PAIRS, units) for units in (2, 2, 1, 1)]
    assert_plausible(p_values(places))


@pytest.mark.parametrize("without", ["log_px", "prior", "posterior"])
def test_calibration_sees_a_term_that_is_missing_from_the_weights(without):
    def wrong(terms):
        log_w = np.float64(jax.jit(bounds.log_weights)(terms))
        if without == "log_px":
            return log_w - np.asarray(terms.log_px)
        sign = {"prior": -1, "posterior": 1}[without]
        for z, p in zip(terms.z, getattr(terms, without), strict=True):
            log_w = log_w + sign * stats.norm.logpdf(z, p.mean, np.sqrt(p.variance)).sum(-1)
        return log_w

    assert min(p_values(places_of_the_truth("ladder", wrong))) < FALSE_ALARM
