"""The models against dense linear algebra and a forward pass in NumPy float64."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import jaxtyping
import linear_gaussian as lg
import numpy as np
import pytest
from flax import linen as nn
from random_parameters import variables_like, without_condition
from scipy import special, stats
from tolerances import (
    assert_close,
    assert_different,
    assert_mean,
    assert_plausible,
    assert_trees_within,
    assert_within,
    float32_error,
    size_of_log_weights,
    standard_error,
    threshold,
    value_and_error,
)

from lvae_jax import VAE, LadderVAE, bounds
from lvae_jax.checks import as_examples
from lvae_jax.models import HierarchicalVAE
from lvae_jax.networks import MLP, GaussianHead
from lvae_jax.observations import DiscretizedLogistic

BATCH_NORM_EPSILON = 1e-5
VARIANTS = {
    "vae": functools.partial(VAE),
    "ladder": functools.partial(LadderVAE),
    "own_top_down": functools.partial(LadderVAE, own_top_down=True),
    "mean_upward": functools.partial(LadderVAE, mean_upward=True),
}
LINEAR = {VAE: lg.ONE_UNIT_LAYERS, LadderVAE: lg.LADDER}
SMALL = {"data_dim": 4, "latent_sizes": (2,), "hidden_sizes": (3,)}

all_variants = pytest.mark.parametrize("variant", VARIANTS)
both_models = pytest.mark.parametrize("model_class", [VAE, LadderVAE])


@functools.partial(jax.jit, static_argnames=("model", "num_samples", "train"))
def infer(model, variables, x, key, num_samples=1, train=False):
    return model.apply(variables, x, num_samples=num_samples, train=train, rngs={"sample": key})


@functools.partial(jax.jit, static_argnames=("model", "train"))
def densities(model, variables, x, z, train=False):
    return model.apply(variables, x, z, train=train, method="densities")


@functools.partial(jax.jit, static_argnames=("model", "layer", "num_samples"))
def generate(model, variables, z_or_key, key=None, layer=None, num_samples=None):
    rngs = {} if key is None else {"sample": key}
    return model.apply(
        variables, z_or_key, layer=layer, num_samples=num_samples, rngs=rngs, method="generate"
    )


def init(model, seed):
    key = jax.random.key(seed, impl="unsafe_rbg")  # compiles faster than the default generator
    return model.init({"params": key, "sample": key}, jnp.zeros((2, model.data_dim), jnp.float32))


@functools.partial(jax.jit, static_argnames="model")
def initial_biases(model):
    """By the names of their layers."""
    leaves = jax.tree_util.tree_leaves_with_path(init(model, 0)["params"])
    return {
        "/".join(key.key for key in path[:-1]): leaf
        for path, leaf in leaves
        if path[-1].key == "bias"
    }


def shapes(model, x_rows=5, **kwargs):
    """Abstract variables and the abstract result of applying the model to them."""
    x = jax.ShapeDtypeStruct((x_rows, model.data_dim), jnp.float32)
    key = jax.random.key(0)
    variables = variables_like(model)
    if model.condition_dim:
        kwargs["condition"] = jnp.zeros((x_rows, model.condition_dim), jnp.float32)
    call = functools.partial(model.apply, rngs={"sample": key}, **kwargs)
    return variables, jax.eval_shape(call, variables, x)


def random_variables(model, seed=0, scale=0.7):
    """Variables of the model's structure with every leaf random, variances between 0.5 and 1.5."""
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        values = scale * rng.standard_normal(like.shape)
        if path[-1].key == "variance":
            values = rng.uniform(0.5, 1.5, like.shape)
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, variables_like(model))


def paths(tree):
    return {
        "/".join(part.key for part in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


# Linear-Gaussian models


@functools.cache
def linear_terms(model_class, exact, num_samples=4000):
    """Terms, in float64, of a three-layer model whose inference is exact, or is a little off."""
    generative = LINEAR[model_class]
    inference = lg.perfectly(generative, model_class)
    inference = inference if exact else lg.worsened(inference)
    model, variables = lg.model_and_variables(model_class, generative, inference)
    return infer(model, variables, jnp.float32(lg.X), jax.random.key(1), num_samples)


log_weights = jax.jit(bounds.log_weights)


@functools.partial(jax.jit, static_argnames=("bound", "sizes"))
def of_groups(bound, terms, sizes=(1,)):
    """By size, the bound of every group of so many samples, [groups, batch]."""

    def in_groups(size):
        return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), terms)

    return {size: jax.vmap(bound)(in_groups(size)) for size in sizes}


@both_models
def test_inference_by_the_exact_posterior_makes_every_weight_the_evidence(model_class):
    terms = linear_terms(model_class, exact=True)
    found = log_weights(terms)
    evidence = lg.log_evidence(LINEAR[model_class], lg.X)
    assert found.shape == (4000, 4)
    size = size_of_log_weights(terms)
    assert_close(found, np.broadcast_to(evidence, (4000, 4)), 32, size)


@both_models
def test_one_layer_with_the_exact_posterior_has_the_evidence_as_bound(model_class):
    generative = lg.LADDER[:1]
    inference = lg.perfectly(generative, model_class)
    model, variables = lg.model_and_variables(model_class, generative, inference)
    terms = infer(model, variables, jnp.float32(lg.X), jax.random.key(2), 500)
    evidence = lg.log_evidence(generative, lg.X)
    one_sample_bounds = of_groups(bounds.importance_weighted, terms)[1]
    size = size_of_log_weights(terms)
    assert_close(one_sample_bounds, np.broadcast_to(evidence, (500, 4)), 32, size)
    # With the KL in closed form log p(x | z) alone varies: the mean over samples is the evidence.
    assert_mean(of_groups(bounds.elbo, terms)[1], evidence)


@both_models
def test_mean_elbo_is_the_evidence_less_the_kl_from_the_posterior(model_class):
    generative = LINEAR[model_class]
    inference = lg.worsened(lg.perfectly(generative, model_class))
    expected = lg.expected_elbo(model_class, generative, inference, lg.X)
    terms = linear_terms(model_class, exact=False)
    elbos = np.float64(of_groups(bounds.elbo, terms)[1])
    assert_mean(elbos, expected)
    evidence = lg.log_evidence(generative, lg.X)
    assert np.all(elbos.mean(0) + threshold(4) * standard_error(elbos) < evidence)


@both_models
def test_importance_weighted_bound_rises_with_samples_towards_the_evidence(model_class):
    terms = linear_terms(model_class, exact=False)
    each = of_groups(bounds.importance_weighted, terms, (1, 5, 50, 4000))
    bound = {size: np.float64(values).mean(0) for size, values in each.items()}
    evidence = lg.log_evidence(LINEAR[model_class], lg.X)
    # By Jensen's inequality also of these samples, as a group of 50 is ten of 5.
    for smaller, larger in ((1, 5), (5, 50)):
        np.testing.assert_array_less(bound[smaller], bound[larger])
    np.testing.assert_array_less(bound[5], evidence + threshold(4) * standard_error(each[5]))
    # The weights' mean is p(x), and the bound is the logarithm of this mean.
    weights = np.exp(np.float64(log_weights(terms)) - evidence)
    assert_mean(weights, 1.0)
    expected = evidence + np.log(weights.mean(0))
    assert_close(bound[4000], expected, roundings=16, size=size_of_log_weights(terms).max(0))


def check_moments(samples, mean, covariance, comparisons=12):
    """Mean and covariance of Gaussian samples, by their standard errors and float32's rounding."""
    samples = np.float64(samples)
    variances = np.diag(covariance)
    rounding = float32_error(32, np.abs(samples).max(0) + 1)
    limit = threshold(comparisons) / np.sqrt(len(samples))
    assert_within(samples.mean(0), mean, limit * np.sqrt(variances) + rounding)
    deviation = np.sqrt(np.outer(variances, variances) + covariance**2)
    rounding = np.add.outer(rounding, rounding) * np.sqrt(variances.max())
    assert_within(np.cov(samples.T), covariance, limit * deviation + rounding)


@both_models
def test_samples_have_the_mean_and_covariance_of_the_joint_posterior(model_class):
    generative = LINEAR[model_class]
    inference = lg.worsened(lg.perfectly(generative, model_class))
    z = np.concatenate(linear_terms(model_class, exact=False).z[::-1], axis=-1).astype(np.float64)
    for image, x in enumerate(lg.X):
        expected = lg.joint_posterior(model_class, generative, inference, x)
        check_moments(z[:, image], expected.mean, expected.covariance, comparisons=4 * (4 + 16))


# A forward pass in NumPy, float64, given the samples


def np_linear(params, batch_stats, y, epsilon=BATCH_NORM_EPSILON):
    y = y @ np.float64(params["Dense_0"]["kernel"])
    if "BatchNorm_0" not in params:
        return y + np.float64(params["Dense_0"]["bias"])
    moments = jax.tree.map(np.float64, batch_stats["BatchNorm_0"])
    y_hat = (y - moments["mean"]) / np.sqrt(moments["variance"] + epsilon)
    return y_hat * np.float64(params["BatchNorm_0"]["scale"]) + np.float64(
        params["BatchNorm_0"]["shift"]
    )


ROUNDINGS = 8
"""Of an input of a layer: a product over up to 5 inputs, and what normalises it."""


class NumpyModel:
    """The networks of a model's variables, by the names of its parameters."""

    def __init__(self, model, variables):
        self.model = model
        self.params = variables["params"]
        self.batch_stats = variables.get("batch_stats", {})

    def _parts(self, part, name):
        return self.params[part][name], self.batch_stats.get(part, {}).get(name, {})

    def value_and_error(self, function, *inputs, layers):
        """What `function` of this model and the inputs gives, and what float32 may make of it."""

        def of_variables(variables, *inputs):
            return function(NumpyModel(self.model, variables), *inputs)

        roundings = layers * ROUNDINGS
        return value_and_error(of_variables, variables_of(self), *inputs, roundings=roundings)

    def mlp(self, part, index, y):
        params, batch_stats = self._parts(part, index)
        for name in ("Linear_0", "Linear_1"):
            y = np_linear(params[name], batch_stats.get(name), y, self.model.batch_norm_epsilon)
            y = np.tanh(y) if self.model.activation == "tanh" else np.where(y > 0, y, 0.1 * y)
        return y

    def head(self, part, index, d):
        params, batch_stats = self._parts(part, index)
        epsilon = self.model.batch_norm_epsilon
        y = np_linear(params["Linear_0"], batch_stats.get("Linear_0"), d, epsilon)
        mean, raw_variance = np.split(y, 2, axis=-1)
        return mean, np.logaddexp(0, raw_variance) + self.model.variance_floor

    def prior(self, layer, z_above):
        d = self.mlp("generative", f"mlps_{layer}", z_above)
        return self.head("generative", f"heads_{layer - 1}", d)

    def log_px(self, x, z_1):
        d = self.mlp("generative", "mlps_0", z_1)
        if self.model.observation == "gaussian":
            mean, variance = self.head("generative", "observation_head", d)
            return stats.norm.logpdf(x, mean, np.sqrt(variance)).sum(-1)
        probability = special.expit(np_linear(self.params["generative"]["observation_head"], {}, d))
        return stats.bernoulli.logpmf(x.astype(int), probability).sum(-1)

    def likelihoods(self, x):
        d, likelihoods = x, []
        for i in range(self.model.depth):
            d = self.mlp("inference", f"mlps_{i}", d)
            likelihoods.append(self.head("inference", f"heads_{i}", d))
            d = likelihoods[-1][0] if self.model.mean_upward else d
        return likelihoods


def check_gaussian(actual, value_and_error, shape):
    assert actual.mean.shape == actual.variance.shape == shape
    for field, by_hand, error in zip(actual, *value_and_error, strict=True):
        assert_within(field, *(np.broadcast_to(a, shape) for a in (by_hand, error)))


FORWARD = {
    "ladder": {"activation": "leaky_relu", "observation": "bernoulli", "batch_norm": False},
    "own_top_down": {
        "activation": "tanh", "observation": "gaussian", "batch_norm": True,
        "batch_norm_epsilon": 0.5, "generative_hidden_sizes": (5, 7),
    },
    "mean_upward": {"activation": "leaky_relu", "observation": "gaussian", "batch_norm": True},
    "vae": {
        "activation": "tanh", "observation": "bernoulli", "batch_norm": True,
        "batch_norm_epsilon": 0.25, "generative_hidden_sizes": (4, 6),
    },
}  # fmt: skip


@functools.cache
def forward(variant):
    """A model, its parameters in NumPy, x, and the terms of 6 samples."""
    model = VARIANTS[variant](4, (3, 2), (5, 3), variance_floor=1e-3, **FORWARD[variant])
    variables = random_variables(model)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 4))
    x = x if model.observation == "gaussian" else (x > 0).astype(float)
    terms = infer(model, variables, jnp.float32(x), jax.random.key(4), 6)
    return NumpyModel(model, variables), np.float64(np.float32(x)), terms


def variables_of(by_hand):
    return {"params": by_hand.params, "batch_stats": by_hand.batch_stats}


@functools.cache
def at_given_z(variant):
    """As `forward`, with the densities at values of z that have nothing to do with the model."""
    by_hand, x, terms = forward(variant)
    rng = np.random.default_rng(21)
    z = tuple(jnp.float32(2 * rng.standard_normal(layer.shape)) for layer in terms.z)
    return by_hand, x, densities(by_hand.model, variables_of(by_hand), jnp.float32(x), z)


drawn_and_given = pytest.mark.parametrize("evaluate", [forward, at_given_z], ids=["drawn", "given"])


@all_variants
@drawn_and_given
def test_log_px_is_that_of_a_forward_pass_by_hand(variant, evaluate):
    by_hand, x, terms = evaluate(variant)
    assert terms.log_px.shape == (6, 5)
    expected, error = by_hand.value_and_error(
        lambda by_hand, z: by_hand.log_px(x[None], z), terms.z[0], layers=3
    )
    assert_within(terms.log_px, expected, error)


@all_variants
@drawn_and_given
def test_priors_are_those_of_a_forward_pass_by_hand(variant, evaluate):
    by_hand, _, terms = evaluate(variant)
    expected = by_hand.value_and_error(lambda by_hand, z: by_hand.prior(1, z), terms.z[1], layers=3)
    check_gaussian(terms.prior[0], expected, (6, 5, 3))
    np.testing.assert_array_equal(terms.prior[1].mean, np.zeros((6, 5, 2)))
    np.testing.assert_array_equal(terms.prior[1].variance, np.ones((6, 5, 2)))


@pytest.mark.parametrize("variant", ["ladder", "own_top_down", "mean_upward"])
@drawn_and_given
def test_ladder_posterior_is_likelihood_times_what_comes_down(variant, evaluate):
    by_hand, x, terms = evaluate(variant)

    def posteriors(by_hand, x, z_2):
        (mean, variance), top = by_hand.likelihoods(x)
        if variant == "own_top_down":
            d = by_hand.mlp("inference", "top_down_mlps_0", z_2)
            mean_down, variance_down = by_hand.head("inference", "top_down_heads_0", d)
        else:
            mean_down, variance_down = by_hand.prior(1, z_2)
        product_variance = 1 / (1 / variance + 1 / variance_down)
        product_mean = product_variance * (mean / variance + mean_down / variance_down)
        return (product_mean, product_variance), top

    values, errors = by_hand.value_and_error(posteriors, x, terms.z[1], layers=5)
    for layer, shape in enumerate([(6, 5, 3), (6, 5, 2)]):
        check_gaussian(terms.posterior[layer], (values[layer], errors[layer]), shape)


@drawn_and_given
def test_bottom_up_posterior_is_that_of_a_forward_pass_by_hand(evaluate):
    by_hand, x, terms = evaluate("vae")
    for layer, below in enumerate((x, np.float64(terms.z[0]))):

        def posterior(by_hand, below, layer=layer):
            d = by_hand.mlp("inference", f"mlps_{layer}", below)
            return by_hand.head("inference", f"heads_{layer}", d)

        expected = by_hand.value_and_error(posterior, below, layers=3)
        check_gaussian(terms.posterior[layer], expected, terms.z[layer].shape)


@all_variants
def test_densities_keep_the_z_that_they_are_given(variant):
    *_, terms = forward(variant)
    *_, given = at_given_z(variant)
    assert given.closed_form_kl == terms.closed_form_kl
    rng = np.random.default_rng(21)
    for layer in given.z:
        np.testing.assert_array_equal(layer, np.float32(2 * rng.standard_normal(layer.shape)))


def terms_and_error(model, variables, x, z, train):
    """The terms at z in float64, and what float32 may make of them.

    All layers of both models follow each other.
    """

    def in_float64(variables, x, z):
        return densities(model, variables, x, z, train=train)

    with jax.enable_x64(True):
        layers = 6 * model.depth
        return value_and_error(in_float64, variables, x, z, roundings=layers * ROUNDINGS)


def assert_same_draws(one, other, model, variables, x, train):
    """Terms of two programs, each with z of its own, drawn by the same noise.

    The error of a z is not relative to z, but to its mean and deviation, and what depends on z has
    it, too.
    """
    noise = [
        (np.float64(z) - q.mean) / np.sqrt(np.float64(q.variance))
        for z, q in zip(one.z, one.posterior, strict=True)
    ]

    def in_float64(variables, x, noise):
        z = noise
        for _ in noise:  # each time one more layer is right, in the order in which they are drawn
            posterior = densities(model, variables, x, z, train=train).posterior
            z = [q.mean + q.variance**0.5 * n for q, n in zip(posterior, noise, strict=True)]
        return densities(model, variables, x, z, train=train)

    with jax.enable_x64(True):
        layers = 6 * model.depth
        _, error = value_and_error(in_float64, variables, x, noise, roundings=layers * ROUNDINGS)
    for a, b, e in zip(*map(jax.tree.leaves, (one, other, error)), strict=True):
        assert_within(a, b, 2 * e)


@all_variants
def test_densities_at_the_samples_drawn_are_the_terms_of_the_draw(variant):
    model = VARIANTS[variant](4, (3, 2), ((5,), (4,)))
    params = {"params": random_variables(model)["params"]}
    x = jnp.float32(np.random.default_rng(22).random((6, 4)) > 0.5)
    drawn = infer(model, params, x, jax.random.key(23), 7, train=True)
    assert_trees_within(drawn, *terms_and_error(model, params, x, drawn.z, train=True))


@pytest.mark.parametrize(
    ("shapes_of_z", "given"),
    [
        ([(6, 5, 3)], "(6, 5, 3)"),
        ([(6, 5, 2), (6, 5, 3)], "(6, 5, 2), (6, 5, 3)"),
        ([(6, 1, 3), (6, 1, 2)], "(6, 1, 3), (6, 1, 2)"),
        ([(6, 5, 3), (1, 5, 2)], "(6, 5, 3), (1, 5, 2)"),
    ],
)
def test_densities_refuse_a_z_of_other_shapes(shapes_of_z, given):
    by_hand, x, _ = forward("ladder")
    z = [jnp.zeros(shape, jnp.float32) for shape in shapes_of_z]
    message = (
        f"z has shapes {given}; give [samples, 5, units] for each of the units (3, 2), "
        "bottom to top"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        densities(by_hand.model, variables_of(by_hand), jnp.float32(x), z)


@all_variants
def test_noise_of_every_unit_sample_and_example_is_its_own(variant):
    *_, terms = forward(variant)
    noise = np.concatenate(
        [
            ((z - q.mean) / np.sqrt(q.variance)).ravel()
            for z, q in zip(terms.z, terms.posterior, strict=True)
        ]
    )
    assert noise.size == 6 * 5 * (3 + 2)
    assert np.min(np.diff(np.sort(noise))) > 0  # no two are the same draw
    assert_plausible(stats.kstest(noise, "norm").pvalue)


# Structure of terms and parameters


@all_variants
@pytest.mark.parametrize(
    ("depth", "observation", "activation", "batch_norm"),
    [
        (1, "bernoulli", "leaky_relu", True),
        (2, "gaussian", "tanh", True),
        (3, "gaussian", "leaky_relu", False),
    ],
)
def test_terms_are_of_samples_by_batch_by_units(
    variant, depth, observation, activation, batch_norm, strict_dtypes
):
    units = (4, 1, 3)[:depth]
    model = VARIANTS[variant](
        6,
        units,
        ((5,), (1,), (4,))[:depth],
        observation=observation,
        activation=activation,
        batch_norm=batch_norm,
    )
    variables, terms = shapes(model, num_samples=3)
    assert set(variables) == ({"params", "batch_stats"} if batch_norm else {"params"})
    assert terms.log_px.shape == (3, 5)
    assert model.depth == len(terms.z) == len(terms.posterior) == len(terms.prior) == depth
    for i, width in enumerate(units):
        of_layer = (terms.z[i], *terms.posterior[i], *terms.prior[i])
        assert all(field.shape == (3, 5, width) for field in of_layer)
    # In every layer of a ladder the KL has a closed form, in a VAE on top alone.
    assert terms.closed_form_kl == ((variant != "vae",) * (depth - 1) + (True,))
    assert all(
        leaf.dtype == jnp.float32 and not leaf.weak_type
        for leaf in jax.tree.leaves((variables, terms))
    )


@all_variants
def test_every_method_applies_without_promotion_of_dtypes(variant, strict_dtypes):
    model = VARIANTS[variant](6, (3, 2), ((5,), (4,)))
    variables, (_, updates) = shapes(model, train=True, mutable=["batch_stats"])
    assert jax.tree.map(jnp.shape, updates["batch_stats"]) == jax.tree.map(
        jnp.shape, variables["batch_stats"]
    )
    key = jax.random.key(0)
    call = functools.partial(model.apply, rngs={"sample": key})
    x = jnp.zeros((5, 6), jnp.float32)
    from_z = functools.partial(call, method="generate")
    assert jax.eval_shape(from_z, variables, key).shape == (1, 6)
    assert jax.eval_shape(from_z, variables, jnp.zeros((7, 2), jnp.float32)).shape == (7, 6)
    reconstruct = functools.partial(call, method="reconstruct")
    assert jax.eval_shape(reconstruct, variables, x).shape == (5, 6)
    at_z = functools.partial(call, method="densities")
    z = [jnp.zeros((7, 5, units), jnp.float32) for units in (3, 2)]
    assert jax.eval_shape(at_z, variables, x, z).log_px.shape == (7, 5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_with_one_layer_vae_and_ladder_are_the_same_model(batch_norm):
    fields = {"data_dim": 4, "latent_sizes": (2,), "hidden_sizes": (3,), "batch_norm": batch_norm}
    vae, ladder = VAE(**fields), LadderVAE(**fields)
    variables = random_variables(vae)
    assert jax.tree.structure(variables) == jax.tree.structure(variables_like(ladder))
    x = jnp.float32([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    terms = [infer(model, variables, x, jax.random.key(5), 3) for model in (vae, ladder)]
    assert terms[0].closed_form_kl == terms[1].closed_form_kl
    for one, other in zip(*map(jax.tree.leaves, terms), strict=True):
        np.testing.assert_array_equal(one, other)


def test_own_top_down_adds_networks_to_the_inference_of_all_layers_but_the_top():
    sizes = (4, (3, 2, 1), (5, 4, 3))
    shared = variables_like(LadderVAE(*sizes, batch_norm=False))
    own = variables_like(LadderVAE(*sizes, batch_norm=False, own_top_down=True))
    added = {
        f"params/inference/top_down_{network}/Dense_0/{leaf}"
        for i in (0, 1)
        for network in (f"mlps_{i}/Linear_0", f"mlps_{i}/Linear_1", f"heads_{i}/Linear_0")
        for leaf in ("kernel", "bias")
    }
    assert paths(own) - paths(shared) == added
    assert paths(shared) < paths(own)
    top_down, generative = own["params"]["inference"], own["params"]["generative"]
    for i in (0, 1):
        assert top_down[f"top_down_mlps_{i}"] == generative[f"mlps_{i + 1}"]
        assert top_down[f"top_down_heads_{i}"] == generative[f"heads_{i}"]


def test_mean_upward_changes_only_what_the_upper_mlps_take_in():
    sizes = (4, (3, 2, 1), (6, 5, 4))
    deterministic = variables_like(LadderVAE(*sizes))["params"]
    mean = variables_like(LadderVAE(*sizes, mean_upward=True))["params"]
    flat, flat_mean = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (deterministic, mean))
    )
    assert flat.keys() == flat_mean.keys()
    differing = {
        path: (flat[path], flat_mean[path]) for path in flat if flat[path] != flat_mean[path]
    }
    kernel = "['inference']['mlps_{}']['Linear_0']['Dense_0']['kernel']"
    assert differing == {
        kernel.format(1): ((6, 5), (3, 5)),
        kernel.format(2): ((5, 4), (2, 4)),
    }


def test_the_papers_mnist_ladder_has_1_86_million_parameters():
    latents, hidden = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)
    params = variables_like(LadderVAE(784, latents, hidden))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))

    def normalised(inputs, units):  # a kernel, and scale and shift of its batch norm
        return inputs * units + 2 * units

    def mlp(inputs, units):
        return normalised(inputs, units) + normalised(units, units)

    upward = sum(mlp(a, b) for a, b in itertools.pairwise((784, *hidden)))
    upward += sum(normalised(h, 2 * z) for h, z in zip(hidden, latents, strict=True))
    downward = sum(mlp(z, h) for h, z in zip(hidden, latents, strict=True))
    downward += sum(normalised(h, 2 * z) for h, z in zip(hidden[1:], latents[:-1], strict=True))
    assert count == upward + downward + 512 * 784 + 784 == 1_859_424


def test_parameters_of_the_vae_and_of_the_ladders_of_the_authors_code():
    latents, hidden = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)
    wide = (512, 512, 256, 128, 64)

    def count(model):
        return sum(leaf.size for leaf in jax.tree.leaves(variables_like(model)["params"]))

    ladder = functools.partial(LadderVAE, 784, latents, hidden, mean_upward=True)
    assert count(VAE(784, latents, hidden)) == count(ladder()) == 1_707_104
    own = count(ladder(own_top_down=True))
    # Of each MLP below the top: two kernels, and scale and shift of two batch norms; its head.
    assert own - count(ladder()) == sum(
        above * h + h * h + 4 * h + h * 2 * z + 4 * z
        for above, h, z in zip(latents[1:], hidden[1:], latents[:-1], strict=True)
    )
    authors = count(ladder(own_top_down=True, generative_hidden_sizes=wide))
    assert authors - own == sum(
        above * (w - h) + w * w - h * h + 4 * (w - h) + (w - h) * 2 * z
        for above, w, h, z in zip(latents[1:], wide[1:], hidden[1:], latents[:-1], strict=True)
    )
    assert authors == 2_168_384


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_bias_of_variances_is_that_of_x_and_where_there_is_no_batch_norm_of_every_z(batch_norm):
    model = LadderVAE(
        4, (3, 2), (5, 3), observation="gaussian", batch_norm=batch_norm, variance_bias=1.0
    )
    biases = {layer: bias for layer, bias in initial_biases(model).items() if np.any(bias)}
    heads = [] if batch_norm else ["inference/heads_0", "inference/heads_1", "generative/heads_0"]
    heads.append("generative/observation_head")
    assert set(biases) == {f"{head}/Linear_0/Dense_0" for head in heads}
    for bias in biases.values():
        np.testing.assert_array_equal(bias, [0] * (len(bias) // 2) + [1] * (len(bias) // 2))


def test_an_observation_of_one_number_has_no_bias_of_a_variance():
    biases = initial_biases(LadderVAE(4, (3,), (5,), variance_bias=1.0))
    assert not np.any(biases["generative/observation_head/Dense_0"])


@pytest.mark.parametrize("model_class", [VAE, LadderVAE])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"latent_sizes": (2, 1)},
            "latent_sizes=(2, 1) and hidden_sizes=(3,): give one of each per layer, "
            "and at least one layer",
        ),
        (
            {"latent_sizes": (), "hidden_sizes": ()},
            "latent_sizes=() and hidden_sizes=(): give one of each per layer, "
            "and at least one layer",
        ),
        *(
            (
                {name: value},
                "data_dim={data_dim!r}, latent_sizes={latent_sizes}, hidden_sizes={hidden_sizes}: "
                "every size must be an integer of at least 1".format(**SMALL | {name: value}),
            )
            for name, value in [
                ("latent_sizes", (0,)),
                ("data_dim", 0),
                ("data_dim", 4.5),
                ("hidden_sizes", (-1,)),
                ("hidden_sizes", ((),)),
                ("hidden_sizes", ((3, 0),)),
            ]
        ),
        ({"latent_sizes": 2}, "latent_sizes=2; give a tuple with an entry per layer"),
        (
            {"observation": "poisson"},
            "observation='poisson'; give one of bernoulli, gaussian, discretized_logistic, or an "
            "object with head_size, log_prob and mean",
        ),
        (
            {"activation": "relu"},
            "activation='relu'; give one of leaky_relu, leaky_relu_0.01, tanh, or a function",
        ),
        (
            {"activation": 0.2},
            "activation=0.2; give one of leaky_relu, leaky_relu_0.01, tanh, or a function",
        ),
        (
            {"condition_dim": -1},
            "condition_dim=-1; give the number of features of a condition, or 0 for none",
        ),
        (
            {"condition_dim": 2.5},
            "condition_dim=2.5; give the number of features of a condition, or 0 for none",
        ),
        (
            {"observation": DiscretizedLogistic},
            "observation=DiscretizedLogistic is a class; give an object of it, such as "
            "DiscretizedLogistic()",
        ),
        ({"variance_floor": -0.1}, "variance_floor=-0.1; give at least 0"),
        ({"batch_norm_epsilon": -0.1}, "batch_norm_epsilon=-0.1; give at least 0"),
        *(
            (
                {"generative_hidden_sizes": sizes},
                f"generative_hidden_sizes={sizes}: give integers of at least 1, one entry for each "
                "of the 1 layers",
            )
            for sizes in [(), (3, 2), (0,), ((3, 2.5),)]
        ),
    ],
)
def test_bad_fields_are_refused(model_class, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        model_class(**SMALL | fields)
    assert str(error.value) == message


def test_a_combination_that_there_is_not_is_refused():
    with pytest.raises(
        ValueError, match="combine='sum'; give one of precision_weighted, or a func"
    ):
        LadderVAE(**SMALL, combine="sum")


def test_the_base_class_is_not_a_model():
    with pytest.raises(TypeError, match="use LadderVAE or VAE"):
        shapes(HierarchicalVAE(4, (2,), (3,)))


# Parts that can be exchanged


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sizes_may_be_lists_and_numpy_integers(monkeypatch):
    # More is taken than the annotations say: what the fields hold afterwards.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = LadderVAE(np.int64(4), [3, np.int32(2)], [[5, 5], 4], condition_dim=np.int64(2))
    same = LadderVAE(4, (3, 2), ((5, 5), 4), condition_dim=2)
    assert model == same
    assert hash(model) == hash(same)
    assert type(model.condition_dim) is int


@all_variants
def test_hidden_sizes_may_be_given_one_by_one(variant):
    make = functools.partial(VARIANTS[variant], 4, (3, 2))
    assert_equal(
        *(
            jax.tree.map(lambda leaf: leaf.shape, variables_like(make(hidden)))
            for hidden in [(5, 6), ((5, 5), (6, 6))]
        )
    )
    variables = variables_like(make(((7,), (6, 5, 8))))
    for part in ("generative", "inference"):
        networks = variables["params"][part]
        kernels = [networks["mlps_0"]["Linear_0"]["Dense_0"]["kernel"].shape]
        kernels += [networks["mlps_1"][f"Linear_{i}"]["Dense_0"]["kernel"].shape for i in range(3)]
        below = {"generative": [3, 2], "inference": [4, 3 if variant != "ladder" else 7]}[part]
        below[1] = 7 if (part, variant) == ("inference", "own_top_down") else below[1]
        assert kernels == [(below[0], 7), (below[1], 6), (6, 5), (5, 8)]


def test_an_activation_may_be_any_function():
    named, given = (LadderVAE(4, (2,), (5,), activation=a) for a in ("tanh", jnp.tanh))
    variables, x = random_variables(named), jnp.float32(np.eye(4))
    key = jax.random.key(3)
    assert_equal(infer(named, variables, x, key), infer(given, variables, x, key))


@pytest.mark.parametrize("variant", ["own_top_down", "vae"])
def test_networks_come_from_factories_that_know_where_they_stand(variant):
    places = {"mlp": [], "head": []}

    def factory(which):
        def make(layer, direction):
            places[which].append((layer, direction))
            if which == "mlp" and (layer, direction) == (1, "up"):
                return MLP((6,), jax.nn.relu, batch_norm=False)
            return None

        return make

    model = VARIANTS[variant](4, (3, 2), (5, 4), mlp=factory("mlp"), head=factory("head"))
    variables, _ = shapes(model)
    top_down = variant == "own_top_down"
    up, down, aside = [(1, "up"), (2, "up")], [(0, "down"), (1, "down")], [(1, "top_down")]
    assert set(places["mlp"]) == {*up, *down, *(aside if top_down else [])}
    assert set(places["head"]) == set(places["mlp"])
    inference, generative = (variables["params"][part] for part in ("inference", "generative"))
    assert inference["mlps_0"]["Linear_0"]["Dense_0"]["kernel"].shape == (4, 6)
    assert set(inference["mlps_0"]) == {"Linear_0"}
    assert generative["mlps_0"]["Linear_1"]["Dense_0"]["kernel"].shape == (5, 5)


class Convolutional(nn.Module):
    """An encoder of one channel and a decoder of logits are the same here: what matters is that
    neither is an MLP of this library."""

    units: int

    @nn.compact
    def __call__(self, y, train):
        image = y.reshape(*y.shape[:-1], -1, 1)
        flat = nn.Conv(2, (3,))(image).reshape(*y.shape[:-1], -1)
        return nn.Dense(self.units)(flat)


def test_the_bottom_encoder_and_the_decoder_may_be_convolutional():
    def mlp(layer, direction):
        return Convolutional(5) if (layer, direction) == (1, "up") else None

    def head(layer, direction):
        return Convolutional(4) if (layer, direction) == (0, "down") else None

    model = LadderVAE(4, (3, 2), (5, 4), mlp=mlp, head=head)
    variables = random_variables(model)
    x = jnp.float32(np.eye(4))
    terms = infer(model, variables, x, jax.random.key(0), 2)
    logits = Convolutional(4).apply(
        {"params": variables["params"]["generative"]["observation_head"]},
        NumpyModel(model, variables).mlp("generative", "mlps_0", np.float64(terms.z[0])),
        False,
    )
    expected = stats.bernoulli.logpmf(np.eye(4, dtype=int), special.expit(np.float64(logits)))
    # Of logits that the layers before have rounded, a few dozen times their size.
    assert_close(terms.log_px, expected.sum(-1), 4 * ROUNDINGS, size=4 + np.abs(logits).sum(-1))


@pytest.mark.parametrize("variant", ["ladder", "own_top_down", "vae"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, "down"), "the observation's head returned shape [1, 7, 1] for an input of shape "),
        ((1, "down"), "a head returned shape [1, 7, 1] for an input of shape "),
        ((1, "up"), "a head returned shape [7, 1] for an input of shape "),
    ],
)
def test_a_head_of_your_own_with_too_few_units_is_refused_and_not_broadcast(
    variant, place, message
):
    def head(layer, direction):
        if (layer, direction) != place:
            return None
        return Convolutional(1) if layer == 0 else GaussianHead(1, False, 1e-5)

    model = VARIANTS[variant](4, (3, 2), (5, 4), head=head)
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes_of(model, jnp.zeros((7, 4)))


def test_a_head_of_the_separate_downward_inference_with_too_few_units_is_refused():
    def head(layer, direction):
        return GaussianHead(1, False, 1e-5) if direction == "top_down" else None

    model = LadderVAE(4, (3, 2), (5, 4), head=head, own_top_down=True)
    with pytest.raises(ValueError, match=re.escape("a head returned shape [1, 7, 1] for an input")):
        shapes_of(model, jnp.zeros((7, 4)))


class Flat(nn.Module):
    """An MLP that forgets the axis of samples."""

    @nn.compact
    def __call__(self, y, train):
        return nn.Dense(5)(y.reshape(-1, y.shape[-1]))


def test_an_mlp_of_your_own_that_drops_an_axis_is_refused():
    model = LadderVAE(4, (3, 2), (5, 4), mlp=lambda layer, direction: Flat())
    message = "an MLP returned shape [1, 5] for an input of shape [1, 1, 2]; return [1, 1, 5]"
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes(model)


class Averaged(nn.Module):
    """An MLP that takes the mean over examples, whose axis it keeps."""

    @nn.compact
    def __call__(self, y, train):
        return nn.Dense(5)(y.mean(-2, keepdims=True))


def test_an_mlp_of_your_own_that_mixes_examples_into_one_is_refused():
    model = LadderVAE(4, (3, 2), (5, 4), mlp=lambda layer, direction: Averaged())
    message = "an MLP returned shape [1, 5] for an input of shape [7, 4]; return [7, 5]"
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes_of(model, jnp.zeros((7, 4)))


def test_a_factory_that_makes_no_module_is_named():
    model = LadderVAE(4, (3, 2), (5, 4), mlp=lambda layer, direction: jnp.tanh)
    with pytest.raises(TypeError, match=r"mlp\(1, 'up'\) returned .*; return a flax.linen module"):
        shapes(model)


@dataclasses.dataclass(frozen=True)
class Laplace:
    """An observation of somebody's own."""

    head_size = 2

    def log_prob(self, head, x):
        mean, log_scale = head
        return jnp.sum(-jnp.abs(x - mean) / jnp.exp(log_scale) - log_scale - np.log(2), axis=-1)

    def mean(self, head):
        return head[0]


@pytest.mark.parametrize("variant", ["ladder", "vae"])
def test_an_observation_may_be_any_object(variant):
    model = VARIANTS[variant](4, (3, 2), (5, 4), batch_norm=False, observation=Laplace())
    variables = random_variables(model)
    x = np.random.default_rng(5).standard_normal((3, 4))
    terms = infer(model, variables, jnp.float32(x), jax.random.key(0), 2)
    by_hand = NumpyModel(model, variables)
    d = by_hand.mlp("generative", "mlps_0", np.float64(terms.z[0]))
    head = np_linear(by_hand.params["generative"]["observation_head"]["Linear_0"], {}, d)
    mean, log_scale = np.split(head, 2, axis=-1)
    each = np.abs(np.float32(x) - mean) / np.exp(log_scale) + np.abs(log_scale) + 1
    expected = stats.laplace.logpdf(np.float32(x), mean, np.exp(log_scale)).sum(-1)
    layers, size = 3, 1 + np.abs(mean) + np.abs(log_scale)
    tolerance = layers * ROUNDINGS * (each * size * (1 + 1 / np.exp(log_scale))).sum(-1)
    assert_close(terms.log_px, expected, roundings=1, size=tolerance)
    z = terms.z[0][0]
    pictures = generate(model, variables, z, layer=1)
    assert_close(pictures, mean[0], layers * ROUNDINGS, size=size[0])


class OfEachVariable(Laplace):
    """Forgets to sum over the variables."""

    def log_prob(self, head, x):
        mean, log_scale = head
        return -jnp.abs(x - mean) / jnp.exp(log_scale) - log_scale - np.log(2)


def test_an_observation_that_does_not_sum_over_x_is_refused():
    model = LadderVAE(4, (3, 2), (5, 4), batch_norm=False, observation=OfEachVariable())
    shape = (
        r"log_prob has shape \[1, (\d+), 4\]; return \[samples, batch\], here \[1, \1\]: the sum"
    )
    with pytest.raises(ValueError, match=shape):
        shapes(model)


@pytest.mark.parametrize("variant", ["vae", "own_top_down"])  # which has all MLPs of other ladders
def test_a_condition_reaches_every_mlp(variant):
    def assert_same(one, other):
        # Two programs, each of at most 8 layers: up, down, and p(x | z_1). No number here is the
        # difference of any that are larger than itself and 4.
        assert_close(one, other, 2 * 8 * ROUNDINGS, size=4 + np.abs(np.float64(other)))

    make = functools.partial(VARIANTS[variant], 4, (3, 2), ((5,), (4,)), batch_norm=False)
    model, plain = make(condition_dim=3), make()
    params = random_variables(model)["params"]
    x = jnp.float32(np.random.default_rng(6).random((5, 4)) > 0.5)
    y = np.float32([0.3, -2.0, 1.1])
    key, rngs = jax.random.key(8), {"sample": jax.random.key(7)}

    @functools.partial(jax.jit, static_argnames="model")
    def found(model, params, **condition):
        apply = functools.partial(model.apply, {"params": params}, **condition)
        terms = apply(x, 2, rngs=rngs)
        given = apply(x, terms.z, method="densities")
        pictures = apply(key, num_samples=5, method="generate")
        one_by_one = apply(1, terms.z[1], method="prior"), apply(terms.z[0], method="observe")
        return terms, given, pictures, apply(x, rngs=rngs, method="reconstruct"), one_by_one

    actual = found(model, params, condition=jnp.broadcast_to(y, (5, 3)))
    expected = found(plain, without_condition(params, y))
    for one, other in ((actual, expected), (actual[1], actual[0])):
        jax.tree.map(assert_same, one, other)


def test_examples_have_conditions_of_their_own():
    model = VAE(4, (3,), ((5,),), batch_norm=False, condition_dim=2)
    params = random_variables(model)["params"]
    z = jnp.float32(np.random.default_rng(9).standard_normal((1, 3)))
    picture = jax.jit(
        lambda z, condition: model.apply(
            {"params": params}, z, layer=1, condition=condition, method="generate"
        )
    )
    pictures = [
        picture(np.tile(z, (len(condition), 1)), np.float32(condition))
        for condition in (np.eye(2), [[1, 0]], [[0, 1]])
    ]
    expected = np.concatenate(pictures[1:])  # of another program, one image at a time
    assert_close(pictures[0], expected, 2 * 2 * ROUNDINGS, size=1)
    assert_different(*pictures[1:], float32_error(2 * 2 * ROUNDINGS, 1))


@pytest.mark.parametrize(
    ("condition_dim", "condition", "message"),
    [
        (2, None, "this model has condition_dim=2; give a condition of shape [5, 2]"),
        (0, np.zeros((5, 2)), "given to a model without one; set condition_dim"),
        (
            2,
            np.zeros((5,), int),
            "the condition has shape [5]; this model takes [5, 2]: one row of",
        ),
        (2, np.zeros((3, 2)), "such as jax.nn.one_hot(labels, 2)"),
    ],
)
def test_a_condition_that_is_missing_or_does_not_fit_is_refused(condition_dim, condition, message):
    model = LadderVAE(4, (2,), (3,), condition_dim=condition_dim)
    variables = variables_like(LadderVAE(4, (2,), (3,)))  # the fields are checked before them
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(
            lambda v: model.apply(
                v, jnp.zeros((5, 4)), condition=condition, rngs={"sample": jax.random.key(0)}
            ),
            variables,
        )


def test_likelihood_and_prior_may_be_combined_otherwise():
    model = LadderVAE(4, (3, 2), (5, 4), combine=lambda likelihood, prior: likelihood)
    variables = random_variables(model)
    x = jnp.float32(np.eye(4))
    terms = infer(model, variables, x, jax.random.key(0))
    expected = NumpyModel(model, variables).value_and_error(
        lambda by_hand, x: by_hand.likelihoods(x), np.eye(4), layers=5
    )
    for posterior, value, error in zip(terms.posterior, *expected, strict=True):
        check_gaussian(posterior, (value, error), posterior.mean.shape)


# What x may be


@both_models
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4,), "x has shape [4] and the model has data_dim=4: give [batch, 4]; give x[None] for"),
        ((5, 2, 2), "give [batch, 4]; flatten the images: x.reshape(len(x), -1)"),
        ((5, 1), "x has shape [5, 1] and the model has data_dim=4: give [batch, 4]"),
        ((5, 3), "x has shape [5, 3] and the model has data_dim=4: give [batch, 4]"),
        ((5, 1, 3), "x has shape [5, 1, 3] and the model has data_dim=4: give [batch, 4]"),
    ],
)
def test_an_x_of_another_shape_is_refused(model_class, shape, message):
    model = model_class(4, (2,), (3,))
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes_of(model, jax.ShapeDtypeStruct(shape, jnp.float32))


def shapes_of(model, x):
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    return jax.eval_shape(model.init, keys, x)


# Not float16, which XLA cannot convert on a processor without instructions for it.
@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.uint8, jnp.bfloat16, np.float64])
def test_zeros_and_ones_may_be_of_any_dtype(dtype):
    x = np.random.default_rng(3).random((5, 4)) > 0.5
    np.testing.assert_array_equal(as_examples(x.astype(dtype), 4), np.float32(x))
    assert as_examples(x.astype(dtype), 4).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_integers_that_may_be_grey_values_are_refused(dtype):
    message = re.escape(
        f"x has dtype {np.dtype(dtype)}: give grey values as x / 255, and zeros and ones or other "
        "numbers as x.astype(jnp.float32)"
    )
    with pytest.raises(ValueError, match=message):
        as_examples(np.full((5, 4), 255).astype(dtype), 4)
    with pytest.raises(ValueError, match=message):  # within jit nobody knows the values
        shapes_of(LadderVAE(4, (2,), (3,)), jax.ShapeDtypeStruct((5, 4), dtype))
    with pytest.raises(ValueError, match="x has dtype complex64"):
        as_examples(np.zeros((5, 4), np.complex64), 4)


def test_old_style_keys_generate_what_typed_ones_do():
    by_hand, *_ = forward("ladder")
    pictures = [
        generate(by_hand.model, variables_of(by_hand), key, num_samples=2)
        for key in (jax.random.key(5), jax.random.PRNGKey(5))
    ]
    np.testing.assert_array_equal(*pictures)


# Transformations


def test_jit_equals_eager():
    by_hand, x, terms = forward("ladder")
    variables = {"params": by_hand.params}
    eager = by_hand.model.apply(
        variables, jnp.float32(x), num_samples=6, rngs={"sample": jax.random.key(4)}
    )
    assert_same_draws(terms, eager, by_hand.model, variables, jnp.float32(x), train=False)


def test_vmap_over_examples_equals_a_loop():
    by_hand, x, _ = forward("ladder")
    model, variables = by_hand.model, {"params": by_hand.params}
    keys = jax.random.split(jax.random.key(6), len(x))

    def of_one(x, key):
        return model.apply(variables, x[None], num_samples=2, rngs={"sample": key})

    vmapped = jax.tree.map(np.asarray, jax.jit(jax.vmap(of_one))(jnp.float32(x), keys))
    by_itself = jax.jit(of_one)
    for i, row in enumerate(np.float32(x)):
        one, other = jax.tree.map(lambda leaf, i=i: leaf[i], vmapped), by_itself(row, keys[i])
        assert_same_draws(one, other, model, variables, row[None], train=False)


GRADIENTS = {
    "vae": {"batch_norm": True, "observation": "bernoulli"},
    "ladder": {"batch_norm": False, "observation": "gaussian", "activation": "tanh"},
    "own_top_down": {"batch_norm": True, "observation": "gaussian"},
    "mean_upward": {"batch_norm": False, "observation": "bernoulli"},
}


@all_variants
def test_gradients_of_fresh_parameters_are_finite_and_reach_every_parameter(variant):
    model = VARIANTS[variant](4, (2, 2), ((3,), (3,)), **GRADIENTS[variant])
    x = jnp.float32(np.random.default_rng(8).random((6, 4)) > 0.5)

    def bound(params):
        rngs = {"sample": jax.random.key(9)}
        terms = model.apply({"params": params}, x, num_samples=2, train=True, rngs=rngs)
        return jnp.mean(bounds.elbo(terms))

    gradient = jax.jit(lambda: jax.grad(bound)(init(model, 7)["params"]))()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), name
        assert np.any(leaf), name


# Batch norm


@functools.cache
def in_training():
    model = LadderVAE(4, (3, 2), ((5,), (3,)))
    variables = random_variables(model)
    x = jnp.float32(np.random.default_rng(10).random((6, 4)))
    call = jax.jit(
        functools.partial(model.apply, num_samples=7, train=True, mutable=["batch_stats"])
    )
    terms, updates = call(variables, x, rngs={"sample": jax.random.key(11)})
    return model, variables, x, terms, updates["batch_stats"]


def test_batch_statistics_run_over_samples_and_batch_together():
    _, variables, x, terms, batch_stats = in_training()
    for part, network, inputs in (
        ("inference", "mlps_0", np.float64(x)),
        ("generative", "mlps_0", np.float64(terms.z[0]).reshape(7 * 6, 3)),
        ("generative", "mlps_1", np.float64(terms.z[1]).reshape(7 * 6, 2)),
    ):
        kernel = variables["params"][part][network]["Linear_0"]["Dense_0"]["kernel"]

        def moments_of(inputs, kernel):
            y = inputs @ kernel
            return {"mean": y.mean(0), "variance": y.var(0)}

        expected, errors = value_and_error(moments_of, inputs, kernel, roundings=ROUNDINGS)
        moments = batch_stats[part][network]["Linear_0"]["BatchNorm_0"]
        for name, value in expected.items():
            assert_within(moments[name], value, errors[name])


def test_training_takes_the_moments_of_the_batch_whatever_is_stored():
    model, variables, x, terms, _ = in_training()
    without_statistics = {"params": variables["params"]}
    again = infer(model, without_statistics, x, jax.random.key(11), 7, train=True)
    assert_same_draws(terms, again, model, without_statistics, x, train=True)


# Generation and reconstruction

SAMPLES = 20_000


@functools.cache
def linear_ladder():
    return lg.model_and_variables(LadderVAE, lg.LADDER, lg.perfectly(lg.LADDER, LadderVAE))


def test_generated_means_of_x_follow_the_prior():
    model, variables = linear_ladder()
    samples = generate(model, variables, jax.random.key(12), num_samples=SAMPLES)
    assert samples.shape == (SAMPLES, 3)
    marginal = lg.marginal_of_x(lg.LADDER)
    # The means of p(x | z_1) lack the variance of x around them.
    check_moments(samples, marginal.mean, marginal.covariance - np.diag(lg.LADDER[0].variance))


@pytest.mark.parametrize("layer", [2, 3])
def test_generation_from_a_layer_draws_the_layers_below_it(layer):
    model, variables = linear_ladder()
    z = np.array([0.7])
    samples = generate(
        model, variables, jnp.full((SAMPLES, 1), 0.7, jnp.float32), jax.random.key(13), layer=layer
    )
    below = lg.chain(lg.Dense(z, np.zeros((1, 1))), lg.LADDER[:layer][::-1])
    covariance = below.covariance[-3:, -3:] - np.diag(lg.LADDER[0].variance)
    check_moments(samples, below.mean[-3:], covariance)


def test_generation_from_the_lowest_layer_draws_nothing():
    model, variables = linear_ladder()
    z = np.array([[0.3, -1.2], [2.0, 0.1]])
    decoder = lg.LADDER[0]
    samples = generate(model, variables, jnp.float32(z), layer=1)
    size = np.abs(z) @ np.abs(decoder.weight.T) + np.abs(decoder.offset)
    assert_close(samples, z @ decoder.weight.T + decoder.offset, 2 * ROUNDINGS, size)


def test_generation_is_from_the_top_unless_a_layer_is_given():
    model, variables = linear_ladder()
    z, key = jnp.float32([[0.5], [-1.0]]), jax.random.key(14)
    default = generate(model, variables, z, key)
    np.testing.assert_array_equal(default, generate(model, variables, z, key, layer=3))
    assert np.all(default != generate(model, variables, z, key, layer=2))


def test_generation_is_reproducible_from_its_key():
    model, variables = linear_ladder()
    one, again, other = (
        generate(model, variables, jax.random.key(seed), num_samples=3) for seed in (15, 15, 16)
    )
    np.testing.assert_array_equal(one, again)
    assert np.all(one != other)
    assert len(np.unique(one[:, 0])) == 3


def test_generation_of_binary_data_gives_probabilities():
    by_hand, _, _ = forward("ladder")
    z = np.random.default_rng(17).standard_normal((4, 3)).astype("float32")
    samples = generate(by_hand.model, {"params": by_hand.params}, jnp.asarray(z), layer=1)

    def probabilities(by_hand, z):
        # log p(x | z) of one pixel at a time: with the others at zero, by differences.
        nothing = by_hand.log_px(np.zeros((1, 4)), z)
        logits = [by_hand.log_px(one[None], z) - nothing for one in np.eye(4)]
        return special.expit(np.stack(logits, axis=1))

    expected, error = by_hand.value_and_error(probabilities, z, layers=3)
    assert_within(samples, expected, error)


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((2, 1), 0, "layer=0; this model has layers 1 to 3"),
        ((2, 1), 4, "layer=4; this model has layers 1 to 3"),
        ((2, 2), None, "z has shape (2, 2); layer 3 takes [samples, 1]"),
        ((2, 1), 1, "z has shape (2, 1); layer 1 takes [samples, 2]"),
        ((1,), 2, "z has shape (1,); layer 2 takes [samples, 1]"),
    ],
)
def test_generation_refuses_what_no_layer_takes(shape, layer, message):
    model, variables = linear_ladder()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        generate(model, variables, jnp.zeros(shape, jnp.float32), jax.random.key(18), layer=layer)
    assert str(error.value) == message


def test_generation_refuses_arguments_of_the_other_kind():
    model, variables = linear_ladder()
    z = jnp.zeros((2, 1), jnp.float32)
    with pytest.raises(ValueError, match="num_samples=4, but each row of z gives one sample"):
        generate(model, variables, z, jax.random.key(18), num_samples=4)
    with pytest.raises(ValueError, match="layer=1, but a key draws all layers; give z of that"):
        generate(model, variables, jax.random.key(18), layer=1)


@pytest.mark.parametrize("num_samples", [0, -1, 2.0])
def test_fewer_than_one_sample_is_refused(num_samples):
    model, variables = linear_ladder()
    x = jnp.zeros((2, model.data_dim), jnp.float32)
    message = f"^num_samples={num_samples}; give a whole number of at least 1"
    with pytest.raises(ValueError, match=message):
        infer(model, variables, x, jax.random.key(18), num_samples=num_samples)
    with pytest.raises(ValueError, match=message):
        generate(model, variables, jax.random.key(18), num_samples=num_samples)


def test_generation_takes_z_as_lists_of_numbers(monkeypatch):
    # More is taken than the annotations say.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model, variables = linear_ladder()
    decoder = lg.LADDER[0]
    z = [[1, -2], [3, 4]]

    @jax.jit
    def of_lists():
        rngs = {"sample": jax.random.key(18)}
        from_the_top = model.apply(variables, [[0.0], [1.0]], method="generate", rngs=rngs)
        return model.apply(variables, z, 1, method="generate"), from_the_top

    samples, from_the_top = of_lists()
    size = np.abs(z) @ np.abs(decoder.weight.T) + np.abs(decoder.offset)
    assert_close(samples, z @ decoder.weight.T + decoder.offset, 2 * ROUNDINGS, size)
    assert from_the_top.shape == (2, 3)


@pytest.mark.parametrize("layer", [0, -1, 3, 4])
def test_a_prior_of_a_layer_that_has_none_given_the_one_above_is_refused(layer):
    model, variables = linear_ladder()
    message = (
        f"layer={layer}; this model has priors of layers 1 to 2 given the layer above, and "
        "N(0, I) for layer 3"
    )
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        model.apply(variables, layer, jnp.zeros((1, 1)), method="prior")
    assert str(error.value) == message


@pytest.mark.parametrize("layer", [0, 1])
def test_the_only_layer_has_no_prior_given_another(layer):
    message = f"layer={layer}; this model has one layer, and its prior is N(0, I)"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        LadderVAE(4, (2,), (3,)).apply({}, layer, jnp.zeros((1, 2)), method="prior")
    assert str(error.value) == message


def test_reconstruction_is_close_to_data_that_hardly_varies_around_the_decoder():
    decoder = lg.LADDER[0]._replace(variance=1e-4 * lg.LADDER[0].variance)
    generative = (decoder, *lg.LADDER[1:])
    model, variables = lg.model_and_variables(
        LadderVAE, generative, lg.perfectly(generative, LadderVAE)
    )
    z = np.random.default_rng(19).standard_normal((50, 2))
    x = z @ decoder.weight.T + decoder.offset
    reconstruction = jax.jit(functools.partial(model.apply, method="reconstruct"))(
        variables, jnp.float32(x), rngs={"sample": jax.random.key(20)}
    )
    # The posterior's deviation is smaller than the decoder's.
    assert np.all(np.abs(reconstruction - x) < threshold(x.size) * np.sqrt(decoder.variance))
    assert not np.any(reconstruction == np.float32(x))  # from a sample, not from the mean


def test_models_are_values():
    fields = {"data_dim": 4, "latent_sizes": (2,), "hidden_sizes": (3,)}
    assert LadderVAE(**fields) == LadderVAE(**fields)
    assert hash(LadderVAE(**fields)) == hash(LadderVAE(**fields))
    assert LadderVAE(**fields) != dataclasses.replace(LadderVAE(**fields), mean_upward=True)
