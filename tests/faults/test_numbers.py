"""Numbers that can be trusted: float32 against float64, extreme weights, and the error they claim.

The float64 evaluations run the model itself with x64 enabled: parameters, data and noise are the
same values, every operation after them is in float64, and what is averaged is averaged by NumPy.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from flax import linen as nn
from random_parameters import random_params
from scipy import special, stats
from tolerances import (
    assert_close,
    assert_plausible,
    assert_within,
    standard_error,
    threshold,
    value_and_error,
)

from lvae_jax import VAE, LadderVAE, bounds, evaluation, training
from lvae_jax.data import as_stored, digits
from lvae_jax.distributions import standard_gaussian

# The paper's five-layer model of MNIST.
SIZES = {"latent_sizes": (64, 32, 16, 8, 4), "hidden_sizes": (512, 256, 128, 64, 32)}
DATA_DIM = 784
IMAGES = 8
SAMPLES = 6
BATCH_SIZE = 64
TRAINED_STEPS = 40


def images_of_784() -> np.ndarray:
    """The digits as 28×28 grey values: every pixel three times as high and wide, with a margin."""
    grey = digits.load().train_images.reshape(-1, 8, 8)[: IMAGES + BATCH_SIZE * TRAINED_STEPS // 2]
    large = np.kron(grey, np.ones((1, 3, 3), np.float32))
    return np.pad(large, ((0, 0), (2, 2), (2, 2))).reshape(len(large), DATA_DIM)


def binary(grey: np.ndarray) -> np.ndarray:
    return np.float32(np.random.default_rng(0).random(grey.shape) < grey)


def trained(model):
    """Parameters after a few steps at a high learning rate, with statistics of the data."""
    x = jnp.asarray(binary(images_of_784()))
    optimizer = training.make_optimizer(3e-3)
    state = training.init_state(model, optimizer, jax.random.key(0))
    for step in range(TRAINED_STEPS):
        rows = (jnp.arange(BATCH_SIZE) + step * BATCH_SIZE) % len(x)
        key = jax.random.fold_in(jax.random.key(1), step)
        state, _ = training.train_step(model, optimizer, state, x[rows], key)
    return statistics_of_the_data(model, state.params, x)


def large(model):
    """Random parameters, of a few times the size of fresh ones."""
    fan_in = {784: 40.0, 512: 20.0}
    params = jax.tree.map(
        lambda leaf: 2 * leaf / fan_in.get(leaf.shape[0], 5.0) if leaf.ndim == 2 else leaf,
        jax.tree.map(np.asarray, random_params(model, seed=4, scale=1.0)),
    )
    return statistics_of_the_data(model, params, binary(images_of_784())[: 2 * BATCH_SIZE])


def statistics_of_the_data(model, params, x):
    return evaluation.reestimate_batch_stats(
        model, params, as_stored, x, jax.random.key(2), batch_size=BATCH_SIZE
    )


@functools.cache
def case(model_class, parameters):
    """A model, its variables, images as x."""
    model = model_class(DATA_DIM, **SIZES)
    return model, parameters(model), jnp.asarray(binary(images_of_784())[:IMAGES])


def named(key, name):
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), 0)


ROUNDINGS = 8
"""Of every parameter of about thirty layers. A product over n inputs, whose weights have errors of
their own, has sqrt(n) times that of one, as it has by its own roundings."""


@functools.cache
def in_float64(model_class, parameters, samples_have_keys):
    """Log weights and bounds in float64, from the noise that `evaluation` draws in float32.

    Args:
      model_class: of the case.
      parameters: of the case.
      samples_have_keys: as in `log_likelihood`; else the samples of an image share one, as in
        `elbo`.

    Returns:
      By name, the number, and what float32 may make of it.
    """
    model, variables, x = case(model_class, parameters)
    root = jax.random.key(3)

    def estimate(variables, x, key, num_samples):
        terms = model.apply(variables, x[None], num_samples, rngs={"sample": key})
        kl = bounds.sum_layers(bounds.kl_per_unit(terms))
        return terms.log_px, kl, bounds.log_weights(terms)

    def estimates_of(variables, x, i):
        key = jax.random.fold_in(root, i)
        if not samples_have_keys:
            return estimate(variables, x, named(key, "sample"), SAMPLES)
        sample = lambda k: estimate(variables, x, jax.random.fold_in(key, k), 1)  # noqa: E731
        return jax.vmap(sample)(jnp.arange(SAMPLES, dtype=jnp.int32))

    @jax.jit
    def arrays(variables, x):
        indices = jnp.arange(IMAGES, dtype=jnp.int32)
        found = jax.vmap(estimates_of, (None, 0, 0))(variables, x, indices)
        return [a.reshape(IMAGES, SAMPLES) for a in found]

    def numbers(variables):
        found = arrays(variables, np.float64(x))
        assert {a.dtype for a in found} == {jnp.dtype("float64")}
        log_px, kl, log_w = map(np.asarray, found)
        return {
            "elbo": (log_px - kl).mean(),
            "log_px": log_px.mean(),
            "kl": kl.mean(),
            "log_w": log_w,
            "log_likelihood": special.logsumexp(log_w, axis=1) - np.log(SAMPLES),
            "effective_sample_size": 1 / (special.softmax(log_w, axis=1) ** 2).sum(1),
        }

    with jax.enable_x64(True):
        return value_and_error(numbers, variables, roundings=ROUNDINGS, draws=4)


CASES = [
    pytest.param(LadderVAE, trained, marks=pytest.mark.slow),
    (LadderVAE, large),
    pytest.param(VAE, large, marks=pytest.mark.slow),
]
LEAST_SPREAD = {(LadderVAE, trained): 10, (LadderVAE, large): 100, (VAE, large): 1000}
"""Nats between the largest and the smallest log weight of an image, the image of the most."""
LARGEST_ERROR = 2e-5
"""That float32 may make, relative to a bound of a thousand nats and more."""


@pytest.mark.parametrize(("model_class", "parameters"), CASES)
def test_the_elbo_of_five_layers_is_that_of_float64(model_class, parameters):
    model, variables, x = case(model_class, parameters)
    expected, error = in_float64(model_class, parameters, samples_have_keys=False)
    result = evaluation.elbo(
        model, variables, as_stored, x, jax.random.key(3), num_samples=SAMPLES, batch_size=IMAGES
    )
    kl = sum(np.float64(layer).sum() for layer in result.kl_per_unit)
    assert error["elbo"] < LARGEST_ERROR * max(1000, abs(expected["elbo"]))
    for name, found in (("elbo", result.elbo), ("log_px", result.log_px), ("kl", kl)):
        assert_within(found, expected[name], error[name])


@pytest.mark.parametrize(("model_class", "parameters"), CASES)
def test_the_log_likelihood_of_five_layers_is_that_of_float64(model_class, parameters):
    model, variables, x = case(model_class, parameters)
    expected, error = in_float64(model_class, parameters, samples_have_keys=True)
    result = evaluation.log_likelihood(
        model, variables, x, jax.random.key(3), num_samples=SAMPLES, chunk_size=4
    )
    assert np.ptp(expected["log_w"], axis=1).max() > LEAST_SPREAD[model_class, parameters]
    size = np.maximum(1000, np.abs(expected["log_likelihood"]))
    assert np.all(error["log_likelihood"] < LARGEST_ERROR * size)
    for name in ("log_likelihood", "effective_sample_size"):
        assert_within(getattr(result, name), expected[name], error[name])


# Importance weights that differ by more than any float can hold.


@pytest.mark.parametrize("spread", [0.1, 100, 1000])
@pytest.mark.parametrize("offset", [0, -10_000])
def test_weights_of_any_spread_are_averaged_in_log_space(spread, offset):
    log_w = np.float32(offset + spread * np.random.default_rng(1).random((50, 20)))
    expected = special.logsumexp(np.float64(log_w), axis=0) - np.log(50)
    w = special.softmax(np.float64(log_w), axis=0)
    value, gradient = jax.vmap(jax.value_and_grad(bounds.log_mean_exp), 1, (0, 1))(log_w)
    assert_close(value, expected, roundings=1, size=np.abs(expected) + 16)
    # exp makes of an absolute error of its argument, up to the spread, a relative one.
    exponent = 1 + spread
    assert_close(gradient, w, roundings=16, size=w * exponent)
    size = bounds.effective_sample_size(jnp.asarray(log_w))
    assert_close(size, 1 / (w**2).sum(0), roundings=16, size=exponent / (w**2).sum(0))


class Weights(nn.Module):
    """A model of nothing but log weights, uniform between -3,000 and as much more as its parameter.

    In steps of that by 1024, so that no rounding depends on how a program is compiled.
    """

    data_dim: int = 1
    depth: int = 1

    def setup(self):
        self.spread = self.param("spread", nn.initializers.zeros, ())

    def __call__(self, x):
        return self.infer(x, self.encode(x))

    def encode(self, x):
        return x

    def infer(self, x, encoded):
        steps = jax.random.randint(self.make_rng("sample"), (1, len(x)), 0, 1024)
        log_w = -3000 + self.spread * steps / 1024
        nothing = standard_gaussian((1, len(x), 1))
        return bounds.Terms(log_w, (nothing.mean,), (nothing,), (nothing,), (True,))


@jax.jit
def weights_one_by_one(variables, key):
    """Log weights of 9 images and 60 samples of each, from a key of each."""
    x = jnp.zeros((1, 1))

    def log_weight(i, k):
        rngs = {"sample": jax.random.fold_in(jax.random.fold_in(key, i), k)}
        return Weights().apply(variables, x, x, rngs=rngs, method="infer").log_px[0, 0]

    return jax.vmap(jax.vmap(log_weight, (None, 0)), (0, None))(jnp.arange(9), jnp.arange(60))


@pytest.mark.parametrize("spread", [100.0, 1000.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 60])
def test_weights_of_any_spread_are_added_up_chunk_by_chunk(spread, chunk_size):
    variables, key = {"params": {"spread": np.float32(spread)}}, jax.random.key(5)
    result = evaluation.log_likelihood(
        Weights(), variables, jnp.zeros((9, 1)), key, num_samples=60, chunk_size=chunk_size
    )
    log_w = np.float64(weights_one_by_one(variables, key))
    assert np.ptp(log_w, axis=1).min() > 0.8 * spread
    expected = special.logsumexp(log_w, axis=1) - np.log(60)
    # The weights themselves are exact; a logarithm of up to 60 is added to the largest.
    assert_close(result.log_likelihood, expected, roundings=1, size=np.abs(expected) + 16)
    sizes = 1 / (special.softmax(log_w, axis=1) ** 2).sum(1)
    exponent = 1 + spread
    assert_close(result.effective_sample_size, sizes, roundings=16, size=sizes * exponent)


# What the estimate says of itself, where the truth is known.


def estimates(num_samples, seeds):
    """L_K and effective sample sizes of `lg.X`, [seeds, images], of a posterior that is off."""
    inference = lg.worsened(lg.perfectly(lg.LADDER, LadderVAE))
    model, variables = lg.model_and_variables(LadderVAE, lg.LADDER, inference)
    roots = jax.vmap(jax.random.key)(jnp.arange(seeds))
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(
        roots, jnp.arange(len(lg.X))
    )
    result = evaluation.log_likelihood(
        model,
        variables,
        jnp.float32(np.tile(lg.X, (seeds, 1))),
        keys.reshape(-1),
        num_samples=num_samples,
        chunk_size=50,
    )
    return tuple(np.float64(field).reshape(seeds, -1) for field in result)


def test_estimates_rise_with_the_number_of_samples_towards_the_truth():
    truth = lg.log_evidence(lg.LADDER, lg.X).mean()
    of_seeds = [estimates(k, seeds=400)[0].mean(1) for k in (1, 5, 25)]
    means = [values.mean() for values in of_seeds]
    errors = [standard_error(values) for values in of_seeds]
    # Every step up is more than noise, and so is what is missing of the truth, a fifth each time.
    for lower, higher in ((0, 1), (1, 2)):
        gain = means[higher] - means[lower]
        assert gain > threshold(2) * np.hypot(errors[lower], errors[higher])
    missing = truth - np.array(means)
    assert np.all(missing > 0)
    assert missing[2] < missing[1] / 2


def test_the_standard_error_over_samples_covers_the_truth():
    num_samples = 1000  # for a bias, half the squared error, that is small beside the error
    log_likelihood, sizes = estimates(num_samples, seeds=100)
    error = np.float64(bounds.importance_standard_error(jnp.float32(sizes), num_samples))
    error_of_mean = np.sqrt((error**2).sum(1)) / len(lg.X)
    off = log_likelihood.mean(1) - lg.log_evidence(lg.LADDER, lg.X).mean()
    distance = np.abs(off) / error_of_mean
    # Were the error claimed too small, too few seeds would have the truth within it, and were it
    # too large, too many: 68.3% within one standard error and 99.7% within three.
    for width in (1, 3):
        covers = stats.norm.cdf(width) - stats.norm.cdf(-width)
        within = int(np.sum(distance < width))
        assert_plausible(stats.binomtest(within, len(distance), covers).pvalue)
