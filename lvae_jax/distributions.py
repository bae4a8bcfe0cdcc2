"""Diagonal Gaussian and Bernoulli distributions: the ladder's layers, (1)-(3) and (16)-(18).

Pure functions over named tuples of arrays. Every function but `sum_log_prob` returns one number per
unit, so that the caller decides which axes a density or a divergence sums over. All results are in
nats.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Shaped

from lvae_jax import _bernoulli


class Gaussian(NamedTuple):
    """A diagonal Gaussian. Fields share one shape; `variance` is sigma squared."""

    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


class Bernoulli(NamedTuple):
    """Independent Bernoulli variables, P(x = 1) = sigmoid(logits)."""

    logits: Float[Array, "*shape"]


def standard_gaussian(shape: tuple[int, ...]) -> Gaussian:
    """N(0, I), the prior of the top layer.

    Args:
      shape: shape of both fields.

    Returns:
      A float32 Gaussian with zero means and unit variances.
    """
    return Gaussian(jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32))


def mean(p: Gaussian | Bernoulli) -> Float[Array, "*shape"]:
    """The mean of each unit: `mean` of a Gaussian, the probability of a one of a Bernoulli.

    Example:
      >>> float(mean(Bernoulli(jnp.float32(0.0))))
      0.5
    """
    return p.mean if isinstance(p, Gaussian) else jax.nn.sigmoid(p.logits)


def reparameterize(
    p: Gaussian, noise: Float[ArrayLike, "*#samples_and_shape"]
) -> Float[Array, "*#samples_and_shape"]:
    """A sample as a differentiable function of standard normal noise: mean + sigma * noise.

    Args:
      p: a Gaussian.
      noise: standard normal draws, of p's shape or broadcastable with it.

    Returns:
      Samples of the broadcast shape.

    Example:
      >>> float(reparameterize(Gaussian(jnp.float32(1.0), jnp.float32(4.0)), jnp.float32(0.5)))
      2.0
    """
    return p.mean + jnp.sqrt(p.variance) * noise


def sample(key: Key[Array, ""], p: Gaussian | Bernoulli) -> Float[Array, "*shape"]:
    """One draw of every unit; differentiable in the parameters of a Gaussian.

    Args:
      key: a PRNG key.
      p: the distribution.

    Returns:
      A draw of the distribution's shape; zeros and ones for a Bernoulli.

    Example:
      >>> draws = sample(jax.random.key(0), Gaussian(jnp.full(10_000, 3.0), jnp.full(10_000, 4.0)))
      >>> bool(abs(draws.mean() - 3) < 0.1), bool(abs(draws.std() - 2) < 0.1)
      (True, True)
    """
    if isinstance(p, Gaussian):
        noise_shape = jnp.broadcast_shapes(p.mean.shape, p.variance.shape)
        return reparameterize(p, jax.random.normal(key, noise_shape, p.mean.dtype))
    return jax.random.bernoulli(key, jax.nn.sigmoid(p.logits)).astype(p.logits.dtype)


def log_prob(p: Gaussian | Bernoulli, x: Shaped[ArrayLike, "*#shape"]) -> Float[Array, "*#shape"]:
    """Log density, or log probability, of each unit, in nats.

    A Gaussian's is -1/2 (log(2 pi var) + (x - mean)^2 / var). A Bernoulli's, x l - softplus(l) with
    l the logit, is written x log sigmoid(l) + (1 - x) log sigmoid(-l), so that it keeps its
    relative accuracy at any logit.

    Args:
      p: the distribution.
      x: values, of p's shape or broadcastable with it; between 0 and 1 for a Bernoulli.

    Returns:
      Log probabilities of the broadcast shape.

    Example:
      >>> round(float(log_prob(Bernoulli(jnp.float32(0.0)), jnp.float32(1.0))), 6)
      -0.693147
    """
    if isinstance(p, Gaussian):
        return -0.5 * (jnp.log(2 * jnp.pi * p.variance) + (x - p.mean) ** 2 / p.variance)
    x = jnp.asarray(x, jnp.result_type(x, p.logits))
    return x * jax.nn.log_sigmoid(p.logits) + (1 - x) * jax.nn.log_sigmoid(-p.logits)


def sum_log_prob(
    p: Gaussian | Bernoulli, x: Shaped[ArrayLike, "*#shape #units"]
) -> Float[Array, "*#shape"]:
    """Log density, or log probability, of all units together: the sum over the last axis, in nats.

    Args:
      p: the distribution.
      x: values, of p's shape or broadcastable with it.

    Returns:
      Log probabilities of the broadcast shape without its last axis.

    Example:
      >>> float(sum_log_prob(Bernoulli(jnp.float32([0.0, 0.0])), jnp.float32([0.0, 1.0])))
      -1.3862943649291992
    """
    if isinstance(p, Gaussian):
        return jnp.sum(log_prob(p, x), axis=-1)
    units = jnp.broadcast_shapes(p.logits.shape[-1:], jnp.shape(x)[-1:])
    logits = jnp.broadcast_to(p.logits, (*p.logits.shape[:-1], *units))
    x = jnp.asarray(x, jnp.result_type(x, logits))
    return _bernoulli.sum_log_prob(logits, x)  # the same sum, in less time


def kl(q: Gaussian, p: Gaussian) -> Float[Array, "*shape"]:
    """KL(q || p) of each unit, in nats; nothing is summed.

    Closed form for two Gaussians, the term that section 3.2 of the paper splits by unit:
    1/2 ((mean_q - mean_p)^2 / var_p + r - 1 - log r) with r = var_q / var_p. The ratio is formed
    once, so that its rounding cancels between r and log r where the two variances nearly agree.

    Args:
      q: the Gaussian that the expectation is over (the posterior).
      p: the other one (the prior). Variances are positive and finite, and so is their ratio in
        float32.

    Returns:
      Divergences of the broadcast shape.

    Example:
      >>> one = jnp.float32(1.0)
      >>> float(kl(Gaussian(2 * one, one), Gaussian(one, one)))
      0.5
    """
    ratio = q.variance / p.variance
    return 0.5 * ((q.mean - p.mean) ** 2 / p.variance + (ratio - 1.0 - jnp.log(ratio)))


def precision_weighted(likelihood: Gaussian, prior: Gaussian) -> Gaussian:
    """The normalised product of two Gaussian densities: the ladder's posterior, (16)-(18).

    Its precision is the sum of the two precisions and its mean their precision-weighted mean.
    Written with the weights w = var_prior / (var_likelihood + var_prior) and 1 - w instead of
    reciprocals of small numbers: variance = w var_likelihood,
    mean = w mean_likelihood + (1 - w) mean_prior. (Equation 17 prints sigma; it is the variance.)

    Args:
      likelihood: the approximate likelihood N(mu_hat, var_hat) of the deterministic upward pass.
      prior: p(z_i | z_{i+1}). Variances are positive and finite.

    Returns:
      The posterior, of the broadcast shape.

    Example:
      >>> likelihood = Gaussian(jnp.float32(0.0), jnp.float32(1.0))
      >>> prior = Gaussian(jnp.float32(4.0), jnp.float32(3.0))
      >>> posterior = precision_weighted(likelihood, prior)
      >>> float(posterior.mean), float(posterior.variance)
      (1.0, 0.75)
    """
    total = likelihood.variance + prior.variance
    likelihood_weight = prior.variance / total
    prior_weight = likelihood.variance / total
    return Gaussian(
        mean=likelihood_weight * likelihood.mean + prior_weight * prior.mean,
        variance=likelihood_weight * likelihood.variance,
    )
