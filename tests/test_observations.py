"""Observations against scipy's distributions, sums over every value, and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from tolerances import assert_close, assert_within, float32_error

from lvae_jax.observations import (
    BernoulliObservation,
    DiscretizedLogistic,
    GaussianObservation,
    named,
)

ALL = [BernoulliObservation(), GaussianObservation(), DiscretizedLogistic(), DiscretizedLogistic(3)]


def head_of(observation, shape=(6, 5, 4), spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.float32(spread * rng.standard_normal(shape)) for _ in range(observation.head_size)
    )


def logistic(head):
    """The logistic's mean and scale in float64."""
    mean, raw_scale = np.float64(head)
    return mean, np.logaddexp(0, raw_scale) + np.exp(-7) / 2


def log_masses(head, values=256):
    """Of every grey value, by scipy's distribution function in float64; the values come first."""
    mean, scale = logistic(head)
    edges = (np.arange(1, values) - 0.5) / (values - 1)
    shape = (-1,) + (1,) * mean.ndim
    edges = np.concatenate([[-np.inf], edges, [np.inf]]).reshape(shape)
    upper_half = edges[:-1] > mean  # where 1 - cdf has the digits
    cdf, survival = (f(edges, mean, scale) for f in (stats.logistic.cdf, stats.logistic.sf))
    return np.log(np.where(upper_half, survival[:-1] - survival[1:], cdf[1:] - cdf[:-1]))


def size_of_log_masses(head, x):
    """What a log mass adds up: its bin's edges in units of the scale, and a logarithm."""
    mean, scale = logistic(head)
    return 1 + 2 * (np.abs(x) + np.abs(mean) + 1) / scale + np.abs(np.log(scale))


def test_bernoulli_and_gaussian_are_those_of_scipy():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 5, 4))
    (logits,) = head = head_of(BernoulliObservation())
    expected = stats.bernoulli.logpmf((x > 0).astype(int), special.expit(np.float64(logits)))
    actual = BernoulliObservation().log_prob(head, jnp.float32(x > 0))
    assert_close(actual, expected.sum(-1), 8, size=(1 + np.abs(np.float64(logits))).sum(-1))
    mean, raw_variance = head = head_of(GaussianObservation())
    std = np.sqrt(np.logaddexp(0, np.float64(raw_variance)) + 0.25)
    x, mean = np.float32(x), np.float64(mean)
    expected = stats.norm.logpdf(x, mean, std).sum(-1)
    actual = GaussianObservation(0.25).log_prob(head, jnp.float32(x))
    # The logarithm, and a deviation with the roundings of what it is the difference of.
    deviation = np.abs(x - mean) * (np.abs(x) + np.abs(mean)) / std**2
    size = (np.abs(np.log(2 * np.pi * std**2)) + deviation).sum(-1)
    assert_close(actual, expected, 8, size)


@pytest.mark.parametrize("values", [3, 256])
def test_discretized_logistic_has_the_mass_of_each_bin(values):
    head = head_of(DiscretizedLogistic(), shape=(values, 7))
    x = np.arange(values, dtype=np.float32)[:, None] / np.float32(values - 1)
    actual = jax.jit(jax.vmap(DiscretizedLogistic(values).log_prob))(
        tuple(np.asarray(h)[..., None] for h in head), np.broadcast_to(x, (values, 7))[..., None]
    )
    expected = np.stack(
        [log_masses([np.asarray(h)[k] for h in head], values)[k] for k in range(values)]
    )
    assert_close(actual, expected, 8, size_of_log_masses(head, x) + np.abs(expected))


@pytest.mark.parametrize("values", [2, 256])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_discretized_logistic_sums_to_one(values, spread):
    head = head_of(DiscretizedLogistic(), shape=(1, 1, 8), spread=spread)
    x = np.arange(values, dtype=np.float32)[:, None, None] / np.float32(values - 1)
    of_pixels = jax.jit(jax.vmap(DiscretizedLogistic(values).log_prob, (2, None), 1))
    of_all = tuple(np.broadcast_to(np.asarray(h)[..., None], (values, 1, 8, 1)) for h in head)
    log_p = of_pixels(of_all, x)
    mass, size = np.exp(np.float64(log_p)), size_of_log_masses(head, x)
    error = float32_error(8, mass * (size.swapaxes(1, 2) + np.abs(log_p))).sum(0)
    assert_within(mass.sum(0), np.ones(mass.shape[1:]), error)


def test_the_mean_of_a_discretized_logistic_is_that_of_its_masses():
    head = head_of(DiscretizedLogistic(), shape=(3, 4))
    grey = np.arange(256).reshape(-1, 1, 1) / 255
    expected = np.sum(grey * np.exp(log_masses(head)), axis=0)
    # A sum of 255 sigmoids, each at most 1.
    assert_close(DiscretizedLogistic().mean(head), expected, np.sqrt(255) + 8, size=1)


def test_the_mean_of_other_observations_is_the_distributions():
    (logits,) = head = head_of(BernoulliObservation())
    expected = special.expit(np.float64(logits))
    assert_close(BernoulliObservation().mean(head), expected, 8, size=1)
    head = head_of(GaussianObservation())
    np.testing.assert_array_equal(GaussianObservation().mean(head), head[0])


@functools.partial(jax.jit, static_argnums=0)
def value_gradient_and_mean(observation, head, x):
    value_and_gradient = jax.value_and_grad(lambda h: jnp.sum(observation.log_prob(h, x)))
    return *value_and_gradient(head), observation.mean(head)


@pytest.mark.parametrize("observation", ALL, ids=repr)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_densities_and_gradients_are_finite_at_extremes(observation, scale):
    head = head_of(observation, spread=scale)
    values = getattr(observation, "values", 2)
    x = np.float32(np.random.default_rng(2).integers(0, values, (1, 5, 4)) / (values - 1))
    for found in jax.tree.leaves(value_gradient_and_mean(observation, head, x)):
        assert np.all(np.isfinite(found))


@pytest.mark.parametrize("observation", ALL, ids=repr)
def test_shapes_and_dtypes(observation, strict_dtypes):
    head, x = head_of(observation), jnp.zeros((1, 5, 4), jnp.float32)
    log_prob = jax.jit(observation.log_prob)(head, x)
    assert (log_prob.shape, log_prob.dtype) == ((6, 5), jnp.float32)
    mean = jax.jit(observation.mean)(head)
    assert (mean.shape, mean.dtype) == ((6, 5, 4), jnp.float32)
    assert hash(observation) == hash(type(observation)(**vars(observation)))


def test_observations_have_names():
    assert named("bernoulli", 0.5) == BernoulliObservation()
    assert named("gaussian", 0.5) == GaussianObservation(0.5)
    assert named("discretized_logistic", 0.5) == DiscretizedLogistic(256)
    assert named(DiscretizedLogistic(16), 0.5) == DiscretizedLogistic(16)
    with pytest.raises(ValueError, match="observation=3; give one of bernoulli, gaussian"):
        named(3, 0.5)


@pytest.mark.parametrize("observation", [type(of) for of in ALL[:3]])
def test_a_class_in_place_of_an_observation_is_refused(observation):
    name = observation.__name__
    message = rf"^observation={name} is a class; give an object of it, such as {name}\(\)$"
    with pytest.raises(ValueError, match=message):
        named(observation, 0.5)
