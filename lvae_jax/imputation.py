"""A trained model conditioned on a part of an image: imputes the rest and its likelihood.

x = (x_o, x_m), observed and missing. p(z | x_o) is sampled by importance sampling from q(z | x'),
where x' has its missing values filled in; Metropolis-within-Gibbs improves the fillings.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from lvae_jax import bounds, distributions
from lvae_jax.bounds import Terms
from lvae_jax.checks import check_whole, per_image, warns_of_values
from lvae_jax.distributions import Bernoulli, Gaussian
from lvae_jax.mesh import whole
from lvae_jax.models import HierarchicalVAE, given

Layers = tuple[Float[Array, "samples _units"], ...]

Apply = Callable[..., Any]
"""`model.apply` of a model's variables, and of one image's condition if it takes one."""


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The amount of computation for the posterior of each image.

    Fields:
      num_samples: K importance samples, a multiple of `chains`.
      chains: Markov chains of fillings; each filling's encoding gives K / chains samples.
      steps: Metropolis-within-Gibbs steps per chain and round.
      rounds: the largest number of rounds, each with steps and new importance samples; 0 uses only
        the given filling.
      effective_sample_size: rounds end once the importance samples reach it.

    Raises:
      ValueError: they do not fit together.
    """

    num_samples: int = 1024
    chains: int = 32
    steps: int = 10
    rounds: int = 5
    effective_sample_size: float = 100.0

    def __post_init__(self) -> None:
        check_whole(num_samples=self.num_samples, chains=self.chains, steps=self.steps)
        if self.num_samples % self.chains:
            raise ValueError(
                f"num_samples={self.num_samples}, chains={self.chains}; give a multiple of chains "
                "as num_samples"
            )
        if self.rounds < 0 or not self.effective_sample_size >= 0:
            raise ValueError(
                f"rounds={self.rounds}, effective_sample_size={self.effective_sample_size}; give "
                "at least 0 of each"
            )


class Imputation(NamedTuple):
    """The model's values for missing entries; observed entries are unchanged."""

    draws: Float[Array, "draws batch data_dim"]
    """Draws from p(x_m | x_o)."""

    mean: Float[Array, "batch data_dim"]
    """E[x_m | x_o]: probabilities for Bernoulli observations."""

    effective_sample_size: Float[Array, " batch"]
    """(sum w)^2 / sum w^2 of the importance samples behind both."""

    rounds: Float[Array, " batch"]
    """The number of rounds of Metropolis-within-Gibbs."""


class ConditionalLogLikelihood(NamedTuple):
    """Of every image, in nats."""

    log_likelihood: Float[Array, " batch"]
    """log p(x_m | x_o) = log p(x) - log p(x_o), both importance-sampled."""

    standard_error: Float[Array, " batch"]
    """Standard error of the difference, over samples: see `bounds.importance_standard_error`."""

    effective_sample_size: Float[Array, " batch"]
    """The smaller of the two effective sample sizes."""


class _Posterior(NamedTuple):
    """Weighted samples of p(z | x_o)."""

    z: Layers
    log_w: Float[Array, " samples"]
    """log p(x_o, z) - log q(z)."""


def masked_log_prob(
    p: Gaussian | Bernoulli,
    x: Float[Array, "*#shape units"],
    observed: Bool[Array, "*#shape units"],
) -> Float[Array, "*#shape"]:
    """The joint log p of the observed entries; the missing ones are summed out.

    Args:
      p: a distribution of independent units.
      x: values; at missing entries they may be anything, NaN included.
      observed: True where x is observed.

    Returns:
      The log density, in nats, without the last axis.

    Example:
      >>> p = Bernoulli(jnp.zeros(2))
      >>> float(masked_log_prob(p, jnp.float32([1.0, jnp.nan]), jnp.array([True, False])))
      -0.6931471824645996
    """
    # A NaN that only the result leaves out would still make gradients NaN, as 0 times NaN.
    known = jnp.where(observed, x, 0.0)
    return jnp.sum(jnp.where(observed, distributions.log_prob(p, known), 0.0), axis=-1)


def metropolis_within_gibbs(
    apply: Apply,
    x: Float[Array, "chains data_dim"],
    z: tuple[Float[Array, "chains _units"], ...],
    observed: Bool[Array, "*#kept data_dim"],
    key: Key[Array, ""],
) -> tuple[Float[Array, "chains data_dim"], tuple[Float[Array, "chains _units"], ...]]:
    """A step of parallel chains that leaves p(x_m, z | x_o) invariant.

    z' ~ q(z | x) is accepted with the probability min(1, w(z') / w(z)), w(z) = p(x, z) / q(z | x),
    as an independence sampler of p(z | x); then x_m ~ p(x_m | z).

    Source: Mattei, Frellsen 2018, Leveraging the Exact Likelihood of Deep Latent Variable Models,
    arXiv:1802.04826, algorithm 1.

    Args:
      apply: of a trained model, with its variables: `functools.partial(model.apply, variables)`.
      x: the images with the current fillings.
      z: the current latents, bottom to top.
      observed: True where x is kept.
      key: a key.

    Returns:
      x with new fillings, and the latents that they were drawn from.

    Raises:
      ValueError: the observation is neither Bernoulli nor Gaussian.
    """
    proposal_key, accept_key, x_key = jax.random.split(key, 3)
    proposed = cast(Terms, apply(x, rngs={"sample": proposal_key}))
    at_z = tuple(layer[None] for layer in z)
    current = cast(Terms, apply(x, at_z, method="densities"))
    log_ratio = (bounds.log_weights(proposed) - bounds.log_weights(current))[0]
    accept = jnp.log(jax.random.uniform(accept_key, log_ratio.shape)) < log_ratio
    z = tuple(
        jnp.where(accept[:, None], new[0], old) for new, old in zip(proposed.z, z, strict=True)
    )
    p: Any = apply(z[0], method="observe")
    return jnp.where(observed, x, distributions.sample(x_key, p)), z


def _weighted(
    apply: Apply,
    x: Float[Array, " data_dim"],
    observed: Bool[Array, " data_dim"],
    fillings: Float[Array, "chains data_dim"],
    num_samples: int,
    key: Key[Array, ""],
) -> _Posterior:
    """Samples of p(z | x_o) from the mixture of the q(z | x') of all fillings x'.

    Each filling gives the same number of samples. The weights use the mixture's density: p(x_o, z)
    over 1/S sum_s q(z | x_s), which covers regions that a single q(z | x_s) is too narrow for.
    """
    chains = len(fillings)
    rngs = {"sample": key}
    terms = cast(Terms, apply(fillings, num_samples // chains, rngs=rngs))
    z = tuple(layer.reshape(-1, layer.shape[-1]) for layer in terms.z)
    prior = tuple(jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), p) for p in terms.prior)

    def log_density(layers: tuple[Gaussian, ...], z: Layers) -> Float[Array, " samples"]:
        return functools.reduce(
            jnp.add,
            (distributions.sum_log_prob(p, layer) for p, layer in zip(layers, z, strict=True)),
        )

    def log_q(filling: Array) -> Float[Array, " samples"]:
        at_z = tuple(layer[:, None] for layer in z)
        terms = cast(Terms, apply(filling[None], at_z, method="densities"))
        return log_density(jax.tree.map(lambda a: a[:, 0], terms.posterior), z)

    p: Any = apply(z[0], method="observe")
    log_px = masked_log_prob(p, x[None], observed[None])
    mixture = bounds.log_mean_exp(jax.vmap(log_q)(fillings))
    return _Posterior(z, log_px + log_density(prior, z) - mixture)


def _given_observed(
    apply: Apply,
    x: Float[Array, " data_dim"],
    observed: Bool[Array, " data_dim"],
    filling: Float[Array, " data_dim"],
    key: Key[Array, ""],
    effort: Conditioning,
) -> tuple[_Posterior, Float[Array, ""]]:
    """Weighted samples of p(z | x_o), and the number of rounds.

    A round resamples the chains from the weighted samples (sampling importance resampling), moves
    them by Metropolis-within-Gibbs, and draws new importance samples from their fillings. The mean
    weight of these is unbiased for p(x_o), whatever the fillings. Stopping at the first round with
    a sufficient effective sample size selects among rounds, which adds a bias of the order of the
    square of the stated standard error.
    """
    x = jnp.where(observed, x, filling)  # a missing value may be NaN

    @jax.jit  # traced once for both of its uses
    def weigh(key: Array, fillings: Array) -> _Posterior:
        return _weighted(apply, x, observed, fillings, effort.num_samples, key)

    def unfinished(carry: tuple[Array, _Posterior]) -> Array:
        done, posterior = carry
        size = bounds.effective_sample_size(posterior.log_w)
        return (done < effort.rounds) & (size < effort.effective_sample_size)

    def one_round(carry: tuple[Array, _Posterior]) -> tuple[Array, _Posterior]:
        done, posterior = carry
        start_key, x_key, step_key, weigh_key = jax.random.split(
            jax.random.fold_in(key, done + 1), 4
        )
        chosen = jax.random.categorical(start_key, posterior.log_w, shape=(effort.chains,))
        z = tuple(layer[chosen] for layer in posterior.z)
        p: Any = apply(z[0], method="observe")
        fillings = jnp.where(observed[None], x[None], distributions.sample(x_key, p))

        def step(i: Array, chain: tuple[Array, Layers]) -> tuple[Array, Layers]:
            step_i = jax.random.fold_in(step_key, i)
            return metropolis_within_gibbs(apply, *chain, observed[None], step_i)

        fillings, _ = jax.lax.fori_loop(0, effort.steps, step, (fillings, z))
        return done + 1, weigh(weigh_key, fillings)

    stated = jnp.broadcast_to(x, (effort.chains, *x.shape))
    start = (jnp.int32(0), weigh(jax.random.fold_in(key, 0), stated))
    rounds, posterior = jax.lax.while_loop(unfinished, one_round, start) if effort.rounds else start
    return posterior, rounds.astype(jnp.float32)


@warns_of_values
@functools.partial(jax.jit, static_argnames=("model", "num_draws", "effort"))
def impute(
    model: HierarchicalVAE,
    variables: Any,
    x: Float[Array, "batch data_dim"],
    observed: Bool[Array, "batch data_dim"],
    filling: Float[Array, " data_dim"],
    key: Key[Array, ""] | UInt32[Array, " words"],
    *,
    num_draws: int = 8,
    effort: Conditioning = Conditioning(),
    condition: Float[Array, "batch features"] | None = None,
) -> Imputation:
    """Draws and means of the missing values, given the observed ones.

    p(x_m | x_o) = E[p(x_m | z)] over p(z | x_o), by importance resampling; see `Conditioning`.

    Args:
      model: a trained model.
      variables: its variables, batch-norm statistics included.
      x: the images; a missing value may be anything, NaN included.
      observed: True where x is observed.
      filling: what the encoder is first fed for missing values: the training images' mean, say.
      key: a key, from which image i takes `fold_in(key, i)`.
      num_draws: per image.
      effort: how many samples, chains and steps.
      condition: of every image, for a model with a `condition_dim`.

    Returns:
      The imputation. If the effective sample size stays small, the draws repeat a few latents.

    Raises:
      ValueError: x or the condition is not of the model's shape, the shapes do not fit together, or
        the observation is neither Bernoulli nor Gaussian.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model = LadderVAE(4, (3,), (8,), batch_norm=False)
      >>> x, key = jnp.ones((5, 4)), jax.random.key(0)
      >>> variables = jax.jit(model.init)({"params": key, "sample": key}, x)
      >>> observed = jnp.arange(4) < 2  # the first half
      >>> effort = Conditioning(num_samples=8, chains=2, rounds=0)
      >>> filled = impute(
      ...     model, variables, x, jnp.broadcast_to(observed, x.shape), jnp.full(4, 0.5), key,
      ...     effort=effort,
      ... )
      >>> filled.draws.shape, filled.mean.shape
      ((8, 5, 4), (5, 4))
    """
    x, keys, condition = per_image(x, key, condition, model.data_dim)
    observed, filling = _checked(x, observed, filling)

    def of_image(image: tuple[Array, Array, Any, Any]) -> tuple[Array, ...]:
        x, observed, key, condition = image
        apply = _apply(model, variables, condition)
        posterior_key, choice_key, x_key = jax.random.split(key, 3)
        posterior, rounds = _given_observed(apply, x, observed, filling, posterior_key, effort)
        p: Any = apply(posterior.z[0], method="observe")
        weights = jax.nn.softmax(posterior.log_w)
        mean = weights @ distributions.mean(p)
        chosen = jax.random.categorical(choice_key, posterior.log_w, shape=(num_draws,))
        drawn = distributions.sample(x_key, jax.tree.map(lambda a: a[chosen], p))
        size = bounds.effective_sample_size(posterior.log_w)
        draws = jnp.where(observed[None], x[None], drawn)
        return draws, jnp.where(observed, x, mean), size, rounds

    draws, *rest = jax.lax.map(of_image, (x, observed, keys, condition))
    return Imputation(jnp.swapaxes(draws, 0, 1), *rest)


@warns_of_values
@functools.partial(jax.jit, static_argnames=("model", "effort"))
def conditional_log_likelihood(
    model: HierarchicalVAE,
    variables: Any,
    x: Float[Array, "batch data_dim"],
    observed: Bool[Array, "batch data_dim"],
    filling: Float[Array, " data_dim"],
    key: Key[Array, ""] | UInt32[Array, " words"],
    *,
    effort: Conditioning = Conditioning(),
    condition: Float[Array, "batch features"] | None = None,
) -> ConditionalLogLikelihood:
    """log p(x_m | x_o) = log p(x) - log p(x_o): nats of the missing values given the observed.

    log p(x) is L_K, equation (6). log p(x_o) is estimated in the same way, with the missing values
    summed out of p(x | z), from the encodings of `impute`. Each is a lower bound, close for a large
    effective sample size. Their difference is not a bound: with a small effective sample size it is
    mostly too high, since log p(x_o), which is harder to estimate, is subtracted.

    Args:
      model: a trained model.
      variables: its variables, batch-norm statistics included.
      x: the complete images, including the values that count as missing.
      observed: True where x is given.
      filling: what the encoder is first fed for missing values: the training images' mean, say.
      key: a key, from which image i takes `fold_in(key, i)`.
      effort: how many samples, chains and steps.
      condition: of every image, for a model with a `condition_dim`.

    Returns:
      The estimates of every image.

    Raises:
      ValueError: x or the condition is not of the model's shape, the shapes do not fit together, or
        the observation is neither Bernoulli nor Gaussian.

    Example:
      See `impute`.
    """
    x, keys, condition = per_image(x, key, condition, model.data_dim)
    observed, filling = _checked(x, observed, filling)
    samples = effort.num_samples

    def of_image(image: tuple[Array, Array, Any, Any]) -> tuple[Array, ...]:
        x, observed, key, condition = image
        apply = _apply(model, variables, condition)
        complete_key, part_key = jax.random.split(key)
        everything = jnp.ones_like(observed)
        complete = _weighted(apply, x, everything, x[None], samples, complete_key).log_w
        part = _given_observed(apply, x, observed, filling, part_key, effort)[0].log_w
        sizes = jnp.stack([bounds.effective_sample_size(w) for w in (complete, part)])
        errors = bounds.importance_standard_error(sizes, samples)
        difference = bounds.log_mean_exp(complete) - bounds.log_mean_exp(part)
        return difference, jnp.sqrt(jnp.sum(errors**2)), jnp.min(sizes)

    images = (x, observed, keys, condition)
    return ConditionalLogLikelihood(*jax.lax.map(of_image, images))


def _apply(model: HierarchicalVAE, variables: Any, condition: Any) -> Apply:
    """`model.apply` for one image, with its condition if there is one."""
    condition = None if condition is None else condition[None]
    return functools.partial(model.apply, variables, **given(condition))


def _checked(x: Array, observed: Array, filling: Array) -> tuple[Array, Array]:
    """Where x is observed, and the filling, each whole on every device."""
    if observed.shape != x.shape or filling.shape != x.shape[1:]:
        raise ValueError(
            f"x has shape {x.shape}, observed {observed.shape}, filling {filling.shape}; give "
            "observed for every value of x, and filling for one image"
        )
    return whole(observed), whole(jnp.asarray(filling, x.dtype))
