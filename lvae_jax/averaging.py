"""A moving average of the parameters over the updates of training, as an optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class Average(NamedTuple):
    """The state of `average_parameters`."""

    average: Any
    """The average of the parameters; before the first update, the parameters themselves."""

    updates: Int[Array, ""]
    """Updates averaged so far."""


def average_parameters(decay: float) -> optax.GradientTransformationExtraArgs:
    """Keeps an exponential moving average of the parameters and leaves the updates as they are.

    After update t the average a_t moves towards the parameters p_t:

        a_t = a_{t-1} + max(1 - decay, 1 / t) (p_t - a_{t-1})

    It is the plain mean of all p_t for the first 1 / (1 - decay) updates: the initial parameters
    have no weight in it.

    Args:
      decay: weight of the past, at least 0 and less than 1. The average is over about
        1 / (1 - decay) updates.

    Returns:
      A transformation for the end of a chain, whose state is an `Average`. If a multiple of the
      updates is added to the parameters, pass the factor to `update` as `update_scale`.

    Raises:
      ValueError: decay is out of range.

    Example:
      >>> optimizer = optax.chain(optax.sgd(1.0), average_parameters(0.9))
      >>> params = {"w": jnp.float32(3.0)}
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update({"w": jnp.float32(1.0)}, state, params)
      >>> float(averaged(state)["w"])  # of one update, after which w is 2
      2.0
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay}; give at least 0 and less than 1")

    def init(params: Any) -> Average:
        return Average(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: Average,
        params: Any = None,
        *,
        update_scale: float | Float[Array, ""] = 1.0,
        **_: Any,
    ) -> tuple[Any, Average]:
        if params is None:
            raise ValueError(
                "params=None, but they are what is averaged; give update(updates, state, params)"
            )
        count = state.updates + 1
        weight = jnp.maximum(jnp.float32(1 - decay), 1 / count.astype(jnp.float32))
        average = jax.tree.map(
            lambda a, p, u: (a + weight * (p + update_scale * u - a)).astype(a.dtype),
            state.average,
            params,
            updates,
        )
        return updates, Average(average, count)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged(opt_state: Any) -> Any:
    """The average in an optimiser's state; None if it keeps none."""
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, Average))
    found = [part.average for part in parts if isinstance(part, Average)]
    return found[0] if found else None
