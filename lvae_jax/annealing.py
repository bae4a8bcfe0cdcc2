"""Bounds the error of an estimate of log p(x): bidirectional Monte Carlo (Grosse et al., 2015).

Chains move in the space of the standardised noise of all layers, eps ~ N(0, I) with z_L = eps_L
and z_i = mean(z_{i+1}) + sigma(z_{i+1}) eps_i. There the prior has the same scale everywhere, so
one step size fits all layers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

from lvae_jax import bounds, distributions
from lvae_jax.checks import check_rows, check_whole, warns_of_values
from lvae_jax.keys import threefry
from lvae_jax.mesh import vary_alike, whole
from lvae_jax.models import HierarchicalVAE, given

ACCEPTANCE = 0.65
"""Target fraction of accepted Hamiltonian proposals, optimal in high dimensions (Beskos, 2013)."""


class Bidirectional(NamedTuple):
    """Bounds of log p(x) for images drawn from the model, one per key."""

    x: Float[Array, "images data_dim"]
    """The images."""

    lower: Float[Array, " images"]
    """From the prior up; its expectation is at most log p(x). In nats."""

    upper: Float[Array, " images"]
    """From an exact posterior sample down; its expectation is at least log p(x). In nats."""

    acceptance: Float[Array, " images"]
    """Fraction of accepted proposals; far from `ACCEPTANCE`, the bounds are needlessly loose."""


class _State(NamedTuple):
    """A chain's noise, and log p(x | eps) with its gradient there."""

    eps: Float[Array, " units"]
    log_px: Float[Array, ""]
    gradient: Float[Array, " units"]


@warns_of_values
@functools.partial(jax.jit, static_argnames=("model", "temperatures", "chains", "leapfrog_steps"))
def bidirectional(
    model: HierarchicalVAE,
    variables: Any,
    keys: Key[Array, " images"] | UInt32[Array, "images words"],
    *,
    temperatures: int = 500,
    chains: int = 1,
    leapfrog_steps: int = 10,
    condition: Float[Array, "images features"] | None = None,
) -> Bidirectional:
    """A lower and an upper bound of log p(x) for images drawn from the model.

    Annealed importance sampling (Neal, 2001) goes through f_t(eps) = N(eps; 0, I) p(x | eps)^beta_t
    from beta_0 = 0, the prior, to beta_T = 1, the posterior, with a Hamiltonian step at each
    temperature in between. Upward, w = prod_t p(x | eps_{t-1})^(beta_t - beta_{t-1}) has the
    expectation p(x), so E log w <= log p(x). An image drawn from the model comes with its own eps,
    an exact sample of its posterior. Downward from that eps, through the same steps in reverse
    order, the same product has E 1/w = 1/p(x), so E log w >= log p(x). With several chains the mean
    of w, or of 1/w, is taken before the logarithm, so both remain bounds.

    A step's proposal must not depend on its own chain's past. Step sizes are therefore first
    adapted towards `ACCEPTANCE` on separate chains, for every image and temperature, and then held
    fixed. Temperatures are sigmoid-spaced (Wu et al., 2017).

    Source: Grosse, Ghahramani, Adams 2015, Sandwiching the marginal likelihood using bidirectional
    Monte Carlo, arXiv:1511.02543; Wu, Burda, Salakhutdinov, Grosse 2017, On the Quantitative
    Analysis of Decoder-Based Generative Models, arXiv:1611.04273.

    Args:
      model: a trained model.
      variables: its variables, batch-norm statistics included.
      keys: one for every image.
      temperatures: T; both bounds get tighter with it.
      chains: chains per image and direction.
      leapfrog_steps: leapfrog steps per Hamiltonian step.
      condition: of every image, for a model with a `condition_dim`.

    Returns:
      The images, and the bounds of each. Only their means over images bound the mean log p(x).

    Raises:
      ValueError: keys or conditions are not one per image, temperatures is less than 2, chains or
        leapfrog_steps are less than 1, or the observation is neither Bernoulli nor Gaussian.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model = LadderVAE(4, (3,), (8,), batch_norm=False)
      >>> key = jax.random.key(0)
      >>> variables = jax.jit(model.init)({"params": key, "sample": key}, jnp.ones((1, 4)))
      >>> keys = jax.random.split(key, 5)
      >>> bounds = bidirectional(model, variables, keys, temperatures=10, leapfrog_steps=2)
      >>> bounds.x.shape, bounds.lower.shape, bounds.upper.shape
      ((5, 4), (5,), (5,))
    """
    check_whole(temperatures=temperatures, chains=chains, leapfrog_steps=leapfrog_steps)
    if temperatures < 2:
        raise ValueError(f"temperatures={temperatures}; give at least 2")
    keys = threefry(keys)
    if keys.ndim != 1:
        raise ValueError(
            f"keys has shape {list(keys.shape)}; give one key per image, such as "
            "jax.random.split(key, 100)"
        )
    check_rows(condition, keys)
    keys, condition = jax.tree.map(whole, (keys, condition))
    # Within `jax.shard_map` a gradient by noise that all devices share would be a sum over devices.
    keys = vary_alike(keys, variables, condition)
    betas = _sigmoid_spaced(temperatures)
    units = sum(model.latent_sizes)

    def of_image(key: Key[Array, ""], condition: Any) -> Bidirectional:
        apply = functools.partial(model.apply, variables, **given(condition))
        observe = functools.partial(_observe, apply, model.latent_sizes)
        eps_key, x_key, pilot_key, up_key, down_key = jax.random.split(key, 5)
        exact = jax.random.normal(eps_key, (units,), jnp.float32)
        x = distributions.sample(x_key, observe(exact))

        def log_px(eps: Array) -> Array:
            return distributions.sum_log_prob(observe(eps), x).astype(jnp.float32)

        @jax.jit  # traced once for all its uses
        def state_at(eps: Array) -> _State:
            return _State(eps, *jax.value_and_grad(log_px)(eps))

        def noise(key: Key[Array, ""]) -> Array:
            return jax.random.normal(jax.random.fold_in(key, 0), (chains, units), jnp.float32)

        # The pilot and the way up start from the prior, the way down from the exact sample.
        exacts = jnp.broadcast_to(exact, (chains, units))
        starts = jax.vmap(jax.vmap(state_at))(jnp.stack([noise(pilot_key), noise(up_key), exacts]))
        pilots = jax.tree.map(lambda a: a[0], starts)
        up_and_down = jax.tree.map(lambda a: a[1:], starts)

        over_chains = jax.vmap(
            functools.partial(_step, state_at, leapfrog_steps), (0, 0, None, None)
        )

        def step(key: Array, t: Array, state: _State, size: Array) -> tuple[_State, Array]:
            keys = jax.random.split(jax.random.fold_in(key, t), chains)
            return over_chains(keys, state, betas[t], size)

        def pilot(carry: tuple[_State, Array], t: Array) -> tuple[tuple[_State, Array], Array]:
            state, size = carry
            state, accepted = step(pilot_key, t, state, size)
            larger = jnp.exp(0.2 * (jnp.mean(accepted) - ACCEPTANCE))
            return (state, size * larger), size

        between = jnp.arange(1, temperatures)
        first = vary_alike((pilots, jnp.float32(0.2)))
        _, sizes = jax.lax.scan(pilot, first, between)

        def anneal(
            key: Array, state: _State, order: Array, exponents: Array
        ) -> tuple[Array, Array]:
            """log w and the fraction of accepted proposals, of every chain."""

            def next_factor(
                carry: tuple[_State, Array], at: tuple[Array, Array]
            ) -> tuple[tuple[_State, Array], Array]:
                (state, log_w), (t, exponent) = carry, at
                state, accepted = step(key, t, state, sizes[t - 1])
                return (state, log_w + exponent * state.log_px), accepted

            carry = (state, exponents[0] * state.log_px)
            (_, log_w), accepted = jax.lax.scan(next_factor, carry, (order, exponents[1:]))
            return log_w, accepted

        # Both directions side by side.
        exponents = jnp.diff(betas)
        (up, down), accepted = jax.vmap(anneal)(
            jnp.stack([up_key, down_key]),
            up_and_down,
            jnp.stack([between, between[::-1]]),
            jnp.stack([exponents, exponents[::-1]]),
        )
        return Bidirectional(
            x,
            lower=bounds.log_mean_exp(up),
            upper=-bounds.log_mean_exp(-down),
            acceptance=jnp.mean(accepted),
        )

    return jax.vmap(of_image)(keys, condition)


def _sigmoid_spaced(temperatures: int) -> Float[Array, " temperatures_and_one"]:
    """0 = beta_0 < ... < beta_T = 1, close together at both ends."""
    spaced = jax.nn.sigmoid(jnp.linspace(-4.0, 4.0, temperatures + 1, dtype=jnp.float32))
    betas = (spaced - spaced[0]) / (spaced[-1] - spaced[0])
    return betas.at[-1].set(1.0)


def _observe(
    apply: Callable[..., Any], latent_sizes: tuple[int, ...], eps: Float[Array, " units"]
) -> Any:
    """p(x | eps): the layers from the top down as functions of their noise."""
    depth = len(latent_sizes)
    *lower, z = jnp.split(eps, [sum(latent_sizes[:i]) for i in range(1, depth)])
    for layer in range(depth - 1, 0, -1):
        z = distributions.reparameterize(apply(layer, z, method="prior"), lower[layer - 1])
    return apply(z, method="observe")


def _step(
    state_at: Callable[[Array], _State],
    leapfrog_steps: int,
    key: Key[Array, ""],
    state: _State,
    beta: Float[Array, ""],
    size: Float[Array, ""],
) -> tuple[_State, Float[Array, ""]]:
    """A Hamiltonian step that leaves N(eps; 0, I) p(x | eps)^beta invariant.

    Returns:
      The state after it, and the acceptance probability of the proposal.
    """
    momentum_key, accept_key = jax.random.split(key)
    momentum = jax.random.normal(momentum_key, state.eps.shape, jnp.float32)

    def force(state: _State) -> Array:
        return beta * state.gradient - state.eps

    def energy(state: _State, momentum: Array) -> Array:
        return 0.5 * jnp.sum(state.eps**2 + momentum**2) - beta * state.log_px

    def leapfrog(_: Array, carry: tuple[_State, Array]) -> tuple[_State, Array]:
        state, momentum = carry
        momentum = momentum + 0.5 * size * force(state)
        eps = state.eps + size * momentum
        state = state_at(eps)
        return state, momentum + 0.5 * size * force(state)

    proposal, last = jax.lax.fori_loop(0, leapfrog_steps, leapfrog, (state, momentum))
    change = energy(state, momentum) - energy(proposal, last)
    # A trajectory that diverged is not finite and is rejected.
    accepted = jnp.where(jnp.isfinite(change), jnp.exp(jnp.minimum(change, 0.0)), 0.0)
    accept = jax.random.uniform(accept_key) < accepted
    return jax.tree.map(lambda a, b: jnp.where(accept, a, b), proposal, state), accepted
