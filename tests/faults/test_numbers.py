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
from scipy import special

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
        random_params(model, seed=4, scale=1.0),
    )
    return statistics_of_the_data(model, params, jnp.asarray(binary(images_of_784())))


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


@functools.cache
def float64_terms(model_class, parameters, samples_have_keys):
    """The terms of every image in float64, from the noise that `evaluation` draws in float32.

    Args:
      model_class: of the case.
      parameters: of the case.
      samples_have_keys: as in `log_likelihood`; else the samples of an image share one, as in
        `elbo`.
    """
    model, variables, x = case(model_class, parameters)
    root = jax.random.key(3)

    def terms_of(variables, x, i):
        key = jax.random.fold_in(root, i)
        if not samples_have_keys:
            rngs = {"sample": named(key, "sample")}
            return model.apply(variables, x[None], SAMPLES, rngs=rngs)
        sample = lambda k: model.apply(  # noqa: E731
            variables, x[None], rngs={"sample": jax.random.fold_in(key, k)}
        )
        return jax.vmap(sample)(jnp.arange(SAMPLES, dtype=jnp.int32))

    with jax.enable_x64(True):
        variables, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (variables, x))
        indices = jnp.arange(IMAGES, dtype=jnp.int32)
        terms = jax.jit(jax.vmap(terms_of, (None, 0, 0)))(variables, x, indices)
        assert {leaf.dtype for leaf in jax.tree.leaves(terms)} >= {jnp.dtype("float64")}
        assert terms.log_px.dtype == jnp.float64
        log_w = jax.jit(bounds.log_weights)(terms)
        kl = jax.jit(lambda terms: bounds.sum_layers(bounds.kl_per_unit(terms)))(terms)
        assert log_w.dtype == kl.dtype == jnp.float64
        shape = (IMAGES, SAMPLES)
        return tuple(np.asarray(a).reshape(shape) for a in (terms.log_px, kl, log_w))


CASES = [(LadderVAE, trained), (LadderVAE, large), (VAE, large)]
LEAST_SPREAD = {(LadderVAE, trained): 10, (LadderVAE, large): 100, (VAE, large): 1000}
"""Nats between the largest and the smallest log weight of an image, the image of the most."""


@pytest.mark.parametrize(("model_class", "parameters"), CASES)
def test_the_elbo_of_five_layers_is_that_of_float64_within_a_thousandth_nat(
    model_class, parameters
):
    model, variables, x = case(model_class, parameters)
    log_px, kl, _ = float64_terms(model_class, parameters, samples_have_keys=False)
    result = evaluation.elbo(
        model, variables, as_stored, x, jax.random.key(3), num_samples=SAMPLES, batch_size=IMAGES
    )
    # The mean over all images, and every image by itself.
    assert float(result.elbo) == pytest.approx((log_px - kl).mean(), abs=1e-3)
    assert float(result.log_px) == pytest.approx(log_px.mean(), abs=1e-3)
    assert sum(float(k.sum()) for k in result.kl_per_unit) == pytest.approx(kl.mean(), abs=1e-3)


@pytest.mark.parametrize(("model_class", "parameters"), CASES)
def test_the_log_likelihood_of_five_layers_is_that_of_float64_within_a_thousandth_nat(
    model_class, parameters
):
    model, variables, x = case(model_class, parameters)
    _, _, log_w = float64_terms(model_class, parameters, samples_have_keys=True)
    result = evaluation.log_likelihood(
        model, variables, x, jax.random.key(3), num_samples=SAMPLES, chunk_size=4
    )
    expected = special.logsumexp(log_w, axis=1) - np.log(SAMPLES)
    assert np.ptp(log_w, axis=1).max() > LEAST_SPREAD[model_class, parameters]
    np.testing.assert_allclose(np.float64(result.log_likelihood), expected, rtol=0, atol=1e-3)
    w = special.softmax(log_w, axis=1)
    np.testing.assert_allclose(
        np.float64(result.effective_sample_size), 1 / (w**2).sum(1), rtol=2e-3
    )


# Importance weights that differ by more than any float can hold.


@pytest.mark.parametrize("spread", [0.1, 100, 1000])
@pytest.mark.parametrize("offset", [0, -10_000])
def test_weights_of_any_spread_are_averaged_in_log_space(spread, offset):
    log_w = np.float32(offset + spread * np.random.default_rng(1).random((50, 20)))
    expected = special.logsumexp(np.float64(log_w), axis=0) - np.log(50)
    w = special.softmax(np.float64(log_w), axis=0)
    value, gradient = jax.vmap(jax.value_and_grad(bounds.log_mean_exp), 1, (0, 1))(log_w)
    np.testing.assert_allclose(value, expected, rtol=2e-7, atol=2e-6)
    np.testing.assert_allclose(gradient, w, rtol=1e-5, atol=1e-30)
    size = np.float64(bounds.effective_sample_size(jnp.asarray(log_w)))
    np.testing.assert_allclose(size, 1 / (w**2).sum(0), rtol=1e-5)


class Weights(nn.Module):
    """A model of nothing but log weights, uniform between offset and offset + spread.

    In steps of spread / 1024, so that no rounding depends on how a program is compiled.
    """

    offset: float
    spread: float

    def encode(self, x):
        return x

    def infer(self, x, encoded):
        steps = jax.random.randint(self.make_rng("sample"), (1, len(x)), 0, 1024)
        log_w = self.offset + self.spread * steps / 1024
        nothing = standard_gaussian((1, len(x), 1))
        return bounds.Terms(log_w, (nothing.mean,), (nothing,), (nothing,), (True,))


@pytest.mark.parametrize("spread", [100.0, 1000.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 60])
def test_weights_of_any_spread_are_added_up_chunk_by_chunk(spread, chunk_size):
    model, key, x = Weights(-3000.0, spread), jax.random.key(5), jnp.zeros((9, 1))
    result = evaluation.log_likelihood(model, {}, x, key, num_samples=60, chunk_size=chunk_size)

    def log_weight(i, k):
        key_of_sample = jax.random.fold_in(jax.random.fold_in(key, i), k)
        rngs = {"sample": key_of_sample}
        return model.apply({}, x[:1], x[:1], rngs=rngs, method="infer").log_px[0, 0]

    images, samples = jnp.arange(9), jnp.arange(60)
    log_w = np.float64(jax.vmap(jax.vmap(log_weight, (None, 0)), (0, None))(images, samples))
    assert np.ptp(log_w, axis=1).min() > 0.8 * spread
    expected = special.logsumexp(log_w, axis=1) - np.log(60)
    np.testing.assert_allclose(result.log_likelihood, expected, rtol=2e-7)
    w = special.softmax(log_w, axis=1)
    np.testing.assert_allclose(result.effective_sample_size, 1 / (w**2).sum(1), rtol=1e-5)


# What the estimate says of itself, where the truth is known.


def estimates(model_class, generative, num_samples, seeds):
    """L_K and effective sample sizes of `lg.X`, [seeds, images], of a posterior that is off."""
    inference = lg.worsened(lg.perfectly(generative, model_class))
    model, variables = lg.model_and_variables(model_class, generative, inference)
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


LINEAR = [(LadderVAE, lg.LADDER), (VAE, lg.ONE_UNIT_LAYERS)]


@pytest.mark.parametrize(("model_class", "generative"), LINEAR)
def test_estimates_rise_with_the_number_of_samples_towards_the_truth(model_class, generative):
    truth = lg.log_evidence(generative, lg.X).mean()
    of_seeds = [estimates(model_class, generative, k, seeds=400)[0].mean(1) for k in (1, 5, 25)]
    means = [values.mean() for values in of_seeds]
    errors = [values.std(ddof=1) / np.sqrt(400) for values in of_seeds]
    # Every step up is more than noise, and so is what is missing of the truth, a fifth each time.
    for lower, higher in ((0, 1), (1, 2)):
        gain = means[higher] - means[lower]
        assert gain > 4 * np.hypot(errors[lower], errors[higher])
    missing = truth - np.array(means)
    assert np.all(missing > 0)
    assert missing[2] < missing[1] / 2


@pytest.mark.parametrize(("model_class", "generative"), LINEAR)
def test_the_standard_error_over_samples_covers_the_truth(model_class, generative):
    num_samples = 1000  # for a bias, half the squared error, that is small beside the error
    log_likelihood, sizes = estimates(model_class, generative, num_samples, seeds=100)
    error = np.float64(bounds.importance_standard_error(jnp.float32(sizes), num_samples))
    error_of_mean = np.sqrt((error**2).sum(1)) / len(lg.X)
    off = log_likelihood.mean(1) - lg.log_evidence(generative, lg.X).mean()
    distance = np.abs(off) / error_of_mean
    # Three standard errors hold the truth in 99.7 of 100 seeds, one in 68.3: were the error claimed
    # too small, the former would fail, and were it too large, the latter (whose own deviation
    # is 4.7 seeds).
    assert np.sum(distance < 3) >= 95
    assert 54 <= np.sum(distance < 1) <= 82
