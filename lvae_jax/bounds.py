"""Bounds on the log-likelihood, equations (6) and (20): KL, ELBO, importance weights.

Also methods newer than the paper: free bits, and gradients of the bounds with less variance.

All functions take the `Terms` of a model: a log density, and one posterior and one prior per layer,
for every sample of every example. Arrays are [samples, batch], or [samples, batch, units] per
layer, in nats; tuples run from the bottom layer to the top.
"""

import dataclasses
import functools
import math
import typing
from numbers import Integral

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvae_jax import distributions
from lvae_jax.distributions import Gaussian

PerLayer = tuple[Float[Array, "samples batch _units"], ...]
"""An array per layer, from the bottom to the top; each layer has its own number of units."""


@typing.no_type_check  # as a pytree it also holds shapes, and whatever JAX puts in place of arrays
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_px", "z", "posterior", "prior"],
    meta_fields=["closed_form_kl"],
)
@dataclasses.dataclass(frozen=True)
class Terms:
    """A model's terms for a batch, before any of them is summed or averaged.

    A pytree; `closed_form_kl` is part of its structure, not a leaf.
    """

    log_px: Float[Array, "samples batch"]
    """log p(x | z_1), summed over x."""

    z: PerLayer
    """A sample of every layer, drawn from `posterior`."""

    posterior: tuple[Gaussian, ...]
    """q(z_i | ...) of every layer, given the samples it is conditioned on."""

    prior: tuple[Gaussian, ...]
    """p(z_i | z_{i+1}) of every layer; N(0, I) at the top."""

    closed_form_kl: tuple[bool, ...]
    """Per layer, whether KL(q || p) given z_{i+1} has a closed form.

    It does if q(z_i | ...) depends on nothing drawn after z_{i+1}. If inference runs downward, as
    generation does, this holds for every layer. If it runs upward, it holds only for the top layer,
    because p(z_i | z_{i+1}) then depends on a z_{i+1} that was drawn after z_i.
    """


def log_ratio_per_unit(terms: Terms) -> PerLayer:
    """log q(z_i | ...) - log p(z_i | z_{i+1}) of every unit at the sample drawn, in nats.

    Its expectation under q is the KL divergence. An importance-weighted bound needs this form.
    """
    return tuple(
        distributions.log_prob(q, z) - distributions.log_prob(p, z)
        for q, p, z in zip(terms.posterior, terms.prior, terms.z, strict=True)
    )


def kl_per_unit(terms: Terms) -> PerLayer:
    """KL(q || p) of every unit, in nats: closed form if there is one, else a one-sample estimate.

    Args:
      terms: of a model.

    Returns:
      A tuple over layers of [samples, batch, units]. A closed form is never negative; a one-sample
      estimate (the lower layers of bottom-up inference) can be.

    Example:
      >>> one = jnp.ones((1, 1, 1))
      >>> terms = Terms(
      ...     log_px=jnp.full((1, 1), -3.0), z=(one,), posterior=(Gaussian(one, one),),
      ...     prior=(Gaussian(0 * one, one),), closed_form_kl=(True,)
      ... )
      >>> float(kl_per_unit(terms)[0].squeeze())
      0.5
    """
    return tuple(
        distributions.kl(q, p) if closed_form else log_ratio
        for q, p, closed_form, log_ratio in zip(
            terms.posterior,
            terms.prior,
            terms.closed_form_kl,
            log_ratio_per_unit(terms),
            strict=True,
        )
    )


def sum_units(per_unit: PerLayer) -> tuple[Float[Array, "samples batch"], ...]:
    """The sum over units of every layer, as a tuple over layers."""
    return tuple(jnp.sum(layer, axis=-1) for layer in per_unit)


def sum_layers(per_unit: PerLayer) -> Float[Array, "samples batch"]:
    """The sum over the units of all layers, [samples, batch]."""
    return functools.reduce(jnp.add, sum_units(per_unit))


def elbo(terms: Terms, beta: float | Float[Array, ""] = 1.0) -> Float[Array, " batch"]:
    """E_q[log p(x | z)] - beta KL(q || p), equation (20), averaged over the samples, in nats.

    A lower bound on log p(x) for beta = 1; during warm-up beta is smaller.

    Args:
      terms: of a model, with any number of samples.
      beta: weight of the KL terms.

    Returns:
      [batch].

    Example:
      >>> one = jnp.ones((1, 1, 1))
      >>> terms = Terms(
      ...     log_px=jnp.full((1, 1), -3.0), z=(one,), posterior=(Gaussian(one, one),),
      ...     prior=(Gaussian(0 * one, one),), closed_form_kl=(True,)
      ... )
      >>> elbo(terms).tolist(), elbo(terms, beta=0.0).tolist()
      ([-3.5], [-3.0])
    """
    return jnp.mean(terms.log_px - beta * sum_layers(kl_per_unit(terms)), axis=0)


def log_weights(
    terms: Terms, beta: float | Float[Array, ""] = 1.0
) -> Float[Array, "samples batch"]:
    """log p(x | z) + beta (log p(z) - log q(z | x)) of each sample, in nats.

    For beta = 1 this is the logarithm of the importance weight p(x, z) / q(z | x).

    Example:
      >>> one = jnp.ones((1, 1, 1))
      >>> terms = Terms(
      ...     log_px=jnp.full((1, 1), -3.0), z=(one,), posterior=(Gaussian(one, one),),
      ...     prior=(Gaussian(0 * one, one),), closed_form_kl=(True,)
      ... )
      >>> log_weights(terms).tolist()  # log N(1; 0, 1) - log N(1; 1, 1) is -1/2
      [[-3.5]]
    """
    return terms.log_px - beta * sum_layers(log_ratio_per_unit(terms))


def log_mean_exp(log_values: Float[Array, " samples *rest"]) -> Float[Array, "*rest"]:
    """The logarithm of the mean over the first axis of values given by their logarithms."""
    return jax.nn.logsumexp(log_values, axis=0) - math.log(log_values.shape[0])


def importance_weighted(
    terms: Terms, beta: float | Float[Array, ""] = 1.0, importance_samples: int | None = None
) -> Float[Array, " batch"]:
    """The importance-weighted bound L_K, equation (6) with its 1/K, in nats.

    Args:
      terms: of a model, with K samples, or a multiple of K.
      beta: weight of the KL terms within each log weight; 1 for a bound on log p(x).
      importance_samples: K; the mean is taken over groups of K samples. None for one group of all.
        K = 1 gives the ELBO without closed forms.

    Returns:
      [batch]: log 1/K sum_k p(x, z_k) / q(z_k | x).

    Raises:
      ValueError: importance_samples is not a whole number of at least 1, or the number of samples
        is not a multiple of it.

    Example:
      >>> zero = jnp.zeros((2, 1, 1))
      >>> standard = (Gaussian(zero, zero + 1),)  # q = p, so that the weights are p(x | z)
      >>> log_px = jnp.log(jnp.float32([[0.2], [0.6]]))
      >>> terms = Terms(log_px, (zero,), standard, standard, closed_form_kl=(True,))
      >>> round(float(jnp.exp(importance_weighted(terms)[0])), 6)
      0.4
    """
    log_w = log_weights(terms, beta)
    if importance_samples is None:
        return log_mean_exp(log_w)
    return jnp.mean(jax.vmap(log_mean_exp)(_in_groups(log_w, importance_samples)), axis=0)


def _in_groups(
    log_weights: Float[Array, "samples batch"], importance_samples: int
) -> Float[Array, "groups K batch"]:
    """Splits the samples into groups of K."""
    if not isinstance(importance_samples, Integral) or importance_samples < 1:
        raise ValueError(
            f"importance_samples={importance_samples!r}; give a whole number of at least 1"
        )
    samples = log_weights.shape[0]
    if samples % importance_samples:
        raise ValueError(
            f"{samples} samples do not split into groups of importance_samples="
            f"{importance_samples}; give a multiple"
        )
    return log_weights.reshape(-1, importance_samples, *log_weights.shape[1:])


def free_bits(
    terms: Terms, beta: float | Float[Array, ""], minimum: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The ELBO of a mini-batch with free bits: lowering a unit's KL below `minimum` gains nothing.

    E_x E_q[log p(x | z)] - beta sum_j max(lambda, E_x KL_j), where E_x is the mean over the
    mini-batch and j runs over the units of all layers. The gradient of a unit's KL is zero while
    its mean is below lambda. If the KL is a one-sample estimate (see `kl_per_unit`), the maximum is
    taken of its mean.

    Source: Kingma et al. 2016, Improving Variational Inference with Inverse Autoregressive Flow,
    arXiv:1606.04934, (15)-(16), with a unit as the group.

    Args:
      terms: of a model, with any number of samples; their mean is taken.
      beta: weight of the KL terms.
      minimum: lambda, in nats per unit.

    Returns:
      A scalar, in nats: the mean over the mini-batch. It does not split into terms per example.
    """
    kl = jnp.concatenate([jnp.mean(layer, axis=(0, 1)) for layer in kl_per_unit(terms)])
    return jnp.mean(terms.log_px) - beta * jnp.sum(jnp.maximum(kl, minimum))


# The parameters of the inference model enter a log weight in two ways: through the samples z that
# they produce, which is the path, and as they stand in log q(z | x), which is the score. With
# weights w_k that sum to one, and beta as in `log_weights`,
#
#     gradient of log 1/K sum_k exp(log w_k) = sum_k w_k (path_k - beta score_k).
#
# The two functions below keep the path and leave out the score, a source of variance. They take
# terms that contain only the path: the samples depend on the parameters, and the densities at these
# samples have constant parameters. (It is not enough to hold the fields of `Terms.posterior`
# constant, because they also depend on samples of other layers.)
#
# The generative parameters keep the bound's own gradient. In the ladder they take part in inference
# as well, but their contributions to log p(z) and to log q(z | x) mostly cancel; without the latter
# their gradient would vary much more.


def sticking_the_landing(
    path: Terms, beta: float | Float[Array, ""] = 1.0, importance_samples: int = 1
) -> Float[Array, " batch"]:
    """The bound without closed forms, whose gradient is sum_k w_k path_k: the score is left out.

    With K = 1 the score's mean is zero, so the gradient is unbiased; for beta = 1 it is zero for
    every sample if q(z | x) equals p(z | x). With K > 1 the weights also depend on the samples, and
    the gradient is biased; see `doubly_reparameterized`.

    Source: Roeder, Wu, Duvenaud 2017, Sticking the Landing, arXiv:1703.09194.

    Args:
      path: terms of constant densities at samples that depend on the inference model's parameters.
      beta: weight of the KL terms within each log weight.
      importance_samples: K; the mean is taken over groups of K samples.

    Returns:
      [batch], in nats.

    Raises:
      ValueError: importance_samples is not a whole number of at least 1, or the number of samples
        is not a multiple of it.
    """
    return importance_weighted(path, beta, importance_samples)


def doubly_reparameterized(
    path: Terms, beta: float | Float[Array, ""] = 1.0, importance_samples: int = 1
) -> Float[Array, " batch"]:
    """Has the gradient sum_k ((1 - beta) w_k + beta w_k^2) path_k; only the gradient is meaningful.

    The score is reparameterised too: sum_k w_k score_k has the same mean as
    sum_k (w_k - w_k^2) path_k. For beta = 1, w_k^2 path_k remains. The gradient is unbiased for any
    K and beta if a log weight depends on no other sample. Batch norm over samples makes it depend
    on all of them, so for K > 1 there is a bias. With K = 1 it is the gradient of
    `sticking_the_landing`.

    Source: Tucker, Lawson, Gu, Maddison 2018, Doubly Reparameterized Gradient Estimators for Monte
    Carlo Objectives, arXiv:1810.04152, where beta = 1; for layers of latents Bauer, Mnih 2021,
    Generalized Doubly Reparameterized Gradient Estimators.

    Args:
      path: terms of constant densities at samples that depend on the inference model's parameters.
      beta: weight of the KL terms within each log weight.
      importance_samples: K; the mean is taken over groups of K samples.

    Returns:
      [batch]; only its gradient is meaningful.

    Raises:
      ValueError: importance_samples is not a whole number of at least 1, or the number of samples
        is not a multiple of it.
    """
    log_w = _in_groups(log_weights(path, beta), importance_samples)
    w = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=1))
    return jnp.mean(jnp.sum(((1 - beta) * w + beta * w**2) * log_w, axis=1), axis=0)


def effective_sample_size(log_weights: Float[Array, " samples *rest"]) -> Float[Array, "*rest"]:
    """(sum w)^2 / sum w^2 of importance weights given by their logarithms; between 1 and K."""
    # Normalise first: logarithms of sums as large as log p(x) have few digits left.
    return 1 / jnp.sum(jax.nn.softmax(log_weights, axis=0) ** 2, axis=0)


def importance_standard_error(
    effective_sample_size: Float[Array, "*shape"], num_samples: int
) -> Float[Array, "*shape"]:
    """The standard error of L_K as an estimate of log p(x), over the K importance samples.

    By the delta method it is the relative standard error of the mean weight, sqrt(1/ESS - 1/K). It
    is reliable only for a large ESS: with a small one, the weights that would show the error are
    missing. For the mean over n independent images, take the root of the sum of squares, over n.

    Args:
      effective_sample_size: (sum w)^2 / sum w^2 of every image.
      num_samples: K.

    Returns:
      The standard error of every image, in nats.

    Example:
      >>> round(float(importance_standard_error(jnp.float32(80.0), 100)), 6)
      0.05
    """
    return jnp.sqrt(jnp.maximum(1 / effective_sample_size - 1 / num_samples, 0.0))
