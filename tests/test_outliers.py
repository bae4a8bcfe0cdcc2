"""The likelihood ratio against its expectation in linear-Gaussian models."""

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from tolerances import assert_close, assert_mean

from lvae_jax import VAE, LadderVAE, evaluation

GENERATIVE = {VAE: lg.ONE_UNIT_LAYERS, LadderVAE: lg.LADDER}


def expected_above(model_class, generative, inference, x, above):
    """L^{>k} of one x: every expectation of a quadratic form, in float64."""
    sizes = [one.weight.shape[1] for one in generative]
    upper = sum(sizes[above:])
    joint = lg.joint_posterior(model_class, generative, inference, x)
    q = lg.Dense(joint.mean[:upper], joint.covariance[:upper, :upper])
    p = lg.prior(generative)
    p = lg.Dense(p.mean[:upper], p.covariance[:upper, :upper])

    # The layers k .. 1 from their priors, and the mean of x from z_1.
    below = generative[above::-1]
    weight, offset, variance = below[-1]
    last = lg.Layer(weight, offset, np.zeros_like(variance))
    x_mean = chain_from(q, sizes[above], [*below[:-1], last])
    log_px = -0.5 * np.sum(
        np.log(2 * np.pi * variance)
        + ((x - x_mean.mean) ** 2 + np.diag(x_mean.covariance)) / variance
    )
    # E log p(z_{>k}) - E log q(z_{>k} | what it is drawn from).
    difference = q.mean - p.mean
    log_p = -0.5 * (
        upper * np.log(2 * np.pi)
        + np.linalg.slogdet(p.covariance)[1]
        + np.trace(np.linalg.solve(p.covariance, q.covariance))
        + difference @ np.linalg.solve(p.covariance, difference)
    )
    if model_class is LadderVAE:
        entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * q.covariance)[1]
    else:
        variances = np.concatenate([one.variance for one in inference[above:]])
        entropy = 0.5 * np.sum(np.log(2 * np.pi * np.e * variances))
    return log_px + log_p + entropy


def chain_from(q, last_size, layers):
    """The last of `layers`, applied to the last units of q one after the other."""
    mean, covariance = q.mean[-last_size:], q.covariance[-last_size:, -last_size:]
    for weight, offset, variance in layers:
        mean = weight @ mean + offset
        covariance = weight @ covariance @ weight.T + np.diag(variance)
    return lg.Dense(mean, covariance)


@pytest.mark.parametrize("above", [1, 2])
@pytest.mark.parametrize("model_class", [VAE, LadderVAE])
def test_both_bounds_have_their_expectation(model_class, above):
    generative = GENERATIVE[model_class]
    inference = lg.worsened(lg.perfectly(generative, model_class))
    model, variables = lg.model_and_variables(model_class, generative, inference)
    copies = 2000
    x = jnp.float32(np.tile(lg.X, (copies, 1)))
    result = evaluation.likelihood_ratio(
        model, variables, x, jax.random.key(0), above=above, num_samples=2, batch_size=100
    )
    elbo = lg.expected_elbo(model_class, generative, inference, lg.X)
    bound = np.array(
        [expected_above(model_class, generative, inference, one, above) for one in lg.X]
    )
    assert np.all(bound < lg.log_evidence(generative, lg.X))
    comparisons = 4 * len(lg.X)  # three bounds here, and the standard error
    for found, expected in (
        (result.elbo, elbo),
        (result.elbo_above, bound),
        (result.ratio, elbo - bound),
    ):
        assert_mean(np.float64(found).reshape(copies, -1), expected, comparisons=comparisons)
    # The standard error it states is, in the mean of squares, the deviation over the copies.
    stated = np.float64(result.standard_error).reshape(copies, -1)
    ratio = np.float64(result.ratio).reshape(copies, -1)
    squares = (ratio - ratio.mean(0)) ** 2 * copies / (copies - 1)
    assert_mean(squares - stated**2, np.zeros(len(lg.X)), comparisons=comparisons)


def test_the_ratio_of_an_image_is_the_same_in_any_batch_whatever_the_generator():
    generative = lg.LADDER[:2]
    model, variables = lg.model_and_variables(
        LadderVAE, generative, lg.perfectly(generative, LadderVAE)
    )
    x, key = jnp.float32(lg.X), jax.random.key(1, impl="rbg")
    one, all_at_once = (
        evaluation.likelihood_ratio(
            model, variables, x, key, above=1, num_samples=2, batch_size=batch_size
        )
        for batch_size in (1, 4)
    )
    # Of two programs, at most 8 linear layers each, with products over at most 12 numbers.
    size = np.abs(np.float64(one.elbo)) + np.abs(np.float64(one.elbo_above))
    assert_close(one.ratio, all_at_once.ratio, 2 * 8 * 6, size)


def test_layers_and_samples_that_do_not_exist_are_refused():
    generative = lg.LADDER
    inference = lg.perfectly(generative, LadderVAE)
    model, variables = lg.model_and_variables(LadderVAE, generative, inference)
    x, key = jnp.float32(lg.X), jax.random.key(0)
    for above in (0, 3):
        with pytest.raises(ValueError, match=f"above={above}"):
            evaluation.likelihood_ratio(model, variables, x, key, above=above)
    with pytest.raises(ValueError, match="num_samples=1"):
        evaluation.likelihood_ratio(model, variables, x, key, above=1, num_samples=1)
    one = LadderVAE(4, (3,), (4,), batch_norm=False, observation="gaussian")
    with pytest.raises(ValueError, match="a model of one layer has no layers above another"):
        evaluation.likelihood_ratio(one, variables, x, key, above=1)
