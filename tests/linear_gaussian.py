"""Hierarchical models that are linear and Gaussian, so that all about them is known exactly.

Dense linear algebra in float64 gives log p(x), the posterior and the expected ELBO;
`model_and_variables` sets a model's parameters by hand so that its networks are the same linear
maps. An MLP of leaky ReLUs with slope 0.1 is linear in pairs of units:
leaky(u) - leaky(-u) = 1.1 u.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats
from tolerances import EPSILON_64, assert_close

from lvae_jax import VAE, LadderVAE

VARIANCE_FLOOR = 1e-5
PAIR_GAIN = 1.1


class Layer(NamedTuple):
    """N(weight @ input + offset, diag(variance))."""

    weight: np.ndarray
    offset: np.ndarray
    variance: np.ndarray


class Dense(NamedTuple):
    """A Gaussian with a full covariance."""

    mean: np.ndarray
    covariance: np.ndarray


def layer(weight, offset, variance):
    """A `Layer` of nested lists."""
    return Layer(*(np.asarray(field, np.float64) for field in (weight, offset, variance)))


def chain(first: Dense, layers) -> Dense:
    """The joint Gaussian of y_0 ~ first, y_1 | y_0, y_2 | y_1, ..., concatenated in that order."""
    mean, covariance, last = first.mean, first.covariance, len(first.mean)
    for weight, offset, variance in layers:
        cross = covariance[:, -last:] @ weight.T
        own = weight @ covariance[-last:, -last:] @ weight.T + np.diag(variance)
        mean = np.concatenate([mean, weight @ mean[-last:] + offset])
        covariance = np.block([[covariance, cross], [cross.T, own]])
        last = len(offset)
    return Dense(mean, covariance)


def prior(generative) -> Dense:
    """The joint of z_L, ..., z_1, x in that order; `generative` is x | z_1, z_1 | z_2, ..."""
    top = generative[-1].weight.shape[1]
    return chain(Dense(np.zeros(top), np.eye(top)), generative[::-1])


def marginal_of_x(generative) -> Dense:
    """p(x)."""
    data_dim = len(generative[0].offset)
    joint = prior(generative)
    return Dense(joint.mean[-data_dim:], joint.covariance[-data_dim:, -data_dim:])


def log_evidence(generative, x):
    """log p(x) of every row of x, in nats."""
    return np.atleast_1d(stats.multivariate_normal.logpdf(x, *marginal_of_x(generative)))


def exact_posterior(generative, x) -> Dense:
    """p(z_L, ..., z_1 | x) of one x."""
    data_dim = len(generative[0].offset)
    joint = prior(generative)
    zz, zx = joint.covariance[:-data_dim, :-data_dim], joint.covariance[:-data_dim, -data_dim:]
    gain = np.linalg.solve(joint.covariance[-data_dim:, -data_dim:], zx.T).T
    mean = joint.mean[:-data_dim] + gain @ (x - joint.mean[-data_dim:])
    return Dense(mean, zz - gain @ zx.T)


def ladder_posterior(generative, likelihoods, x) -> Dense:
    """q(z_L, ..., z_1 | x) of the ladder, from its likelihoods, which are layers on x."""
    *lower, top = likelihoods
    products = []
    for (weight, offset, variance), p in zip(lower, generative[1:], strict=True):
        precision = 1 / variance + 1 / p.variance
        share = 1 / p.variance / precision
        mean_from_x = (weight @ x + offset) / variance / precision
        products.append(
            Layer(share[:, None] * p.weight, share * p.offset + mean_from_x, 1 / precision)
        )
    first = Dense(top.weight @ x + top.offset, np.diag(top.variance))
    return chain(first, products[::-1])


def bottom_up_posterior(inference, x) -> Dense:
    """q(z_L, ..., z_1 | x) of bottom-up inference, from z_1 | x, z_2 | z_1, ..."""
    first, *rest = inference
    joint = chain(Dense(first.weight @ x + first.offset, np.diag(first.variance)), rest)
    ends = np.cumsum([0] + [len(one.offset) for one in inference])
    order = np.concatenate([np.arange(a, b) for a, b in itertools.pairwise(ends)][::-1])
    return Dense(joint.mean[order], joint.covariance[np.ix_(order, order)])


def kl(q: Dense, p: Dense) -> float:
    """KL(q || p) in nats."""
    difference = p.mean - q.mean
    return 0.5 * (
        np.trace(np.linalg.solve(p.covariance, q.covariance))
        + difference @ np.linalg.solve(p.covariance, difference)
        - len(difference)
        + np.linalg.slogdet(p.covariance)[1]
        - np.linalg.slogdet(q.covariance)[1]
    )


def exact_likelihoods(generative):
    """The ladder's likelihoods that make its posterior exact: p(x | z_i) as a function of z_i.

    Exact where the precision of every one is diagonal. The top layer's includes the prior N(0, I).
    """
    weight, offset, variance = generative[0]
    covariance = np.diag(variance)
    likelihoods = []
    for i in range(len(generative)):
        precision = weight.T @ np.linalg.solve(covariance, weight)
        precision = precision + np.eye(len(precision)) * (i == len(generative) - 1)
        gain = np.linalg.solve(precision, np.linalg.solve(covariance, weight).T)
        # Of sums over at most three units, after a solution.
        size = np.linalg.cond(covariance) * np.abs(precision).max()
        assert_close(precision, np.diag(np.diag(precision)), 16, size, epsilon=EPSILON_64)
        likelihoods.append(Layer(gain, -gain @ offset, 1 / np.diag(precision)))
        if i + 1 < len(generative):
            above = generative[i + 1]
            offset = weight @ above.offset + offset
            covariance = weight @ np.diag(above.variance) @ weight.T + covariance
            weight = weight @ above.weight
    return tuple(likelihoods)


def exact_bottom_up(generative):
    """The exact p(z_1 | x), p(z_2 | z_1), ... for layers of one unit, or for a single layer."""
    top = generative[-1].weight.shape[1]
    marginal = Dense(np.zeros(top), np.eye(top))
    inference = []
    for weight, offset, variance in generative[::-1]:
        mean = weight @ marginal.mean + offset
        covariance = weight @ marginal.covariance @ weight.T + np.diag(variance)
        gain = np.linalg.solve(covariance, weight @ marginal.covariance).T
        conditional = marginal.covariance - gain @ weight @ marginal.covariance
        inference.append(Layer(gain, marginal.mean - gain @ mean, np.diag(conditional)))
        marginal = Dense(mean, covariance)
    return tuple(inference[::-1])


def worsened(inference):
    """An inference model that is off: its means are shifted and its variances wrong."""
    return tuple(Layer(one.weight, one.offset + 0.3, 1.4 * one.variance) for one in inference)


# A model's parameters.


def _linear_mlp(read, hidden):
    """Parameters of an MLP whose output carries input @ read, and how to read it from there."""
    carried = read.shape[1]
    pair = np.zeros((carried, hidden))
    pair[:, : 2 * carried] = np.hstack([np.eye(carried), -np.eye(carried)])
    return {"Linear_0": _dense(read @ pair)}, pair.T / PAIR_GAIN


def _dense(kernel, bias=None):
    bias = np.zeros(kernel.shape[1]) if bias is None else bias
    return {
        "Dense_0": {"kernel": jnp.asarray(kernel, "float32"), "bias": jnp.asarray(bias, "float32")}
    }


def _head(read, one: Layer):
    kernel = read @ one.weight.T
    raw_variance = np.log(np.expm1(one.variance - VARIANCE_FLOOR))
    bias = np.concatenate([one.offset, raw_variance])
    return {"Linear_0": _dense(np.hstack([kernel, np.zeros_like(kernel)]), bias)}


def _generative_params(generative, hidden):
    params = {}
    for i, one in enumerate(generative):
        params[f"mlps_{i}"], read = _linear_mlp(np.eye(one.weight.shape[1]), hidden)
        params["observation_head" if i == 0 else f"heads_{i - 1}"] = _head(read, one)
    return params


def _bottom_up_params(inference, hidden):
    params = {}
    for i, one in enumerate(inference):
        params[f"mlps_{i}"], read = _linear_mlp(np.eye(one.weight.shape[1]), hidden)
        params[f"heads_{i}"] = _head(read, one)
    return params


def _ladder_params(likelihoods, hidden):
    params = {}
    read = np.eye(likelihoods[0].weight.shape[1])
    for i, one in enumerate(likelihoods):
        params[f"mlps_{i}"], read = _linear_mlp(read, hidden)
        params[f"heads_{i}"] = _head(read, one)
    return params


def model_and_variables(model_class, generative, inference):
    """A `VAE` or `LadderVAE` and its variables, equal to the linear-Gaussian model given."""
    data_dim = len(generative[0].offset)
    latent_sizes = tuple(one.weight.shape[1] for one in generative)
    hidden = 2 * max(data_dim, *latent_sizes)
    model = model_class(
        data_dim,
        latent_sizes,
        ((hidden,),) * len(latent_sizes),
        observation="gaussian",
        batch_norm=False,
        variance_floor=VARIANCE_FLOOR,
    )
    inference_params = {LadderVAE: _ladder_params, VAE: _bottom_up_params}[model_class]
    params = {
        "generative": _generative_params(generative, hidden),
        "inference": inference_params(inference, hidden),
    }
    return model, {"params": params}


# Examples. The columns of the first weight are orthogonal in the metric of 1 / variance, so that
# p(x | z_1) has a diagonal precision and the ladder can be exact with two units.

LADDER = (
    layer([[1.0, -0.2], [0.5, 0.8], [0.0, 0.7]], [0.3, -0.4, 0.1], [0.2, 0.4, 0.5]),
    layer([[0.9], [-0.7]], [0.2, -0.1], [0.5, 0.3]),
    layer([[1.2]], [-0.3], [0.6]),
)
ONE_UNIT_LAYERS = (
    layer([[1.0], [0.5], [-0.8]], [0.3, -0.4, 0.1], [0.2, 0.4, 0.5]),
    layer([[0.9]], [0.2], [0.5]),
    layer([[1.2]], [-0.3], [0.6]),
)
X = np.array([[0.5, -0.2, 0.9], [-1.0, 0.4, 0.0], [1.6, 0.8, -0.7], [0.1, -0.1, 0.2]])


def perfectly(generative, model_class):
    """The inference model of that class that equals the exact posterior."""
    exact = {LadderVAE: exact_likelihoods, VAE: exact_bottom_up}[model_class]
    return exact(generative)


def joint_posterior(model_class, generative, inference, x) -> Dense:
    """q(z_L, ..., z_1 | x) of one x."""
    if model_class is LadderVAE:
        return ladder_posterior(generative, inference, x)
    return bottom_up_posterior(inference, x)


def expected_elbo(model_class, generative, inference, x):
    """E_q[log p(x, z) - log q(z | x)] of every row of x: log p(x) - KL(q || exact posterior)."""
    gaps = [
        kl(
            joint_posterior(model_class, generative, inference, one),
            exact_posterior(generative, one),
        )
        for one in x
    ]
    return log_evidence(generative, x) - np.array(gaps)
