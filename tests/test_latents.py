"""Latents by layer against dense linear algebra, and their activity against its definition."""

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from tolerances import assert_close, assert_mean, assert_within, float32_error, threshold

from lvae_jax import VAE, LadderVAE, latents

GENERATIVE = {VAE: lg.ONE_UNIT_LAYERS, LadderVAE: lg.LADDER}


def linear(model_class, depth=3):
    generative = GENERATIVE[model_class][:depth]
    inference = lg.worsened(lg.perfectly(generative, model_class))
    return generative, inference, *lg.model_and_variables(model_class, generative, inference)


ROUNDINGS = 8 * 6
"""At most 8 linear layers up the ladder and down again, each a product over at most 12 numbers."""


def by_layer(joint, sizes):
    """The parts of (z_L, ..., z_1), bottom to top."""
    ends = np.cumsum(sizes[::-1])[:-1]
    return np.split(joint, ends)[::-1]


@pytest.mark.parametrize("model_class", [VAE, LadderVAE])
def test_the_means_are_those_of_the_joint_posterior(model_class):
    # In a linear model the mean of a layer given the means of the others is its marginal mean.
    generative, inference, model, variables = linear(model_class)
    found = latents.encode(model, variables, jnp.float32(lg.X), batch_size=3)
    for number, x in enumerate(lg.X):
        joint = lg.joint_posterior(model_class, generative, inference, x)
        for q, z, mean in zip(
            found.posterior, found.z, by_layer(joint.mean, model.latent_sizes), strict=True
        ):
            assert_close(q.mean[number], mean, ROUNDINGS, size=np.abs(x).max() + np.abs(mean))
            np.testing.assert_array_equal(z[number], q.mean[number])


@pytest.mark.parametrize("model_class", [VAE, LadderVAE])
def test_the_means_take_one_pass_through_every_network(model_class):
    model = model_class(7, (3, 2, 2), (6, 5, 4), batch_norm=False)
    x = jnp.zeros((4, 7))
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    variables = jax.eval_shape(model.init, keys, x)
    encode = jax.jit(latents.encode, static_argnums=0)

    def products(key):
        return encode.lower(model, variables, x, key).as_text().count("stablehlo.dot_general")

    # Along samples it is one pass, and the means need no network more.
    assert products(None) == products(jax.random.key(2))


@pytest.mark.parametrize("model_class", [VAE, LadderVAE])
def test_samples_have_the_joint_posterior(model_class):
    generative, inference, model, variables = linear(model_class)
    copies = 4000
    x = jnp.float32(np.repeat(lg.X[:1], copies, axis=0))
    found = latents.encode(model, variables, x, jax.random.key(0))
    z = np.concatenate([np.float64(layer) for layer in found.z[::-1]], axis=1)
    joint = lg.joint_posterior(model_class, generative, inference, lg.X[0])
    deviations = np.sqrt(np.diag(joint.covariance))
    units = len(deviations)
    comparisons = units + units * (units + 1) // 2  # means, and covariances
    rounding = float32_error(ROUNDINGS, np.abs(lg.X[0]).max() + np.abs(joint.mean))
    assert_mean(z, joint.mean, rounding, comparisons)
    scale = np.outer(deviations, deviations)
    error = threshold(comparisons) * np.sqrt((scale**2 + joint.covariance**2) / copies)
    assert_within(np.cov(z.T), joint.covariance, error + float32_error(2 * ROUNDINGS, scale))


@pytest.mark.parametrize("key", [None, jax.random.key(1)], ids=["means", "samples"])
def test_a_unit_is_active_if_the_image_moves_its_mean(key):
    # z_1 has two units; the second one's likelihood is made to ignore the image, and its posterior
    # wide, so that its mean moves with z_2 alone, by about 0.002.
    generative = lg.LADDER[:1]
    weight, offset, variance = lg.exact_likelihoods(generative)[0]
    likelihood = lg.Layer(weight * [[1.0], [1e-3]], offset, variance)
    model, variables = lg.model_and_variables(LadderVAE, generative, (likelihood,))
    found = latents.encode(model, variables, jnp.float32(lg.X), key)
    spread = np.var(lg.X @ likelihood.weight.T, axis=0)
    assert spread[0] > 0.1
    assert spread[1] < 1e-4
    assert found.active[0].tolist() == [True, False]


def test_an_image_is_encoded_alike_in_any_batch():
    _, _, model, variables = linear(LadderVAE, depth=2)
    x = jnp.float32(lg.X)
    for key in (None, jax.random.key(2, impl="rbg")):  # whose own draws depend on the batch
        one = latents.encode(model, variables, x, key, batch_size=1)
        all_at_once = latents.encode(model, variables, x, key, batch_size=4)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(all_at_once), strict=True):
            size = np.abs(lg.X).max() + np.abs(np.float64(b))
            assert_close(a, b, 2 * ROUNDINGS, size)  # of two programs


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_of_no_image_are_refused(batch_size):
    *_, model, variables = linear(LadderVAE)
    with pytest.raises(ValueError, match=f"batch_size={batch_size}; give a whole number"):
        latents.encode(model, variables, jnp.float32(lg.X), batch_size=batch_size)
