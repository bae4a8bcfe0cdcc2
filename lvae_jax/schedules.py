"""Schedules over epochs: the warm-up of beta, and learning rates.

Python numbers give a Python float, computed in float64; arrays and values traced by `jax.jit` give
a float32 array.
"""

import math
from numbers import Real

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Number = float | Int[Array, ""] | Float[Array, ""]

SCHEDULES = ("constant", "staircase", "cosine")


def warm_up(epoch: Number, warmup_epochs: Number) -> float | Float[Array, ""]:
    """beta of an epoch: linear from 0 to 1 over the first N_t epochs (section 2.3 of the paper).

    Args:
      epoch: counted from 0.
      warmup_epochs: N_t; 0 means no warm-up, beta = 1 from the start.

    Returns:
      min(1, epoch / warmup_epochs).

    Example:
      >>> [warm_up(epoch, 4) for epoch in (0, 1, 4, 9)], warm_up(0, 0)
      ([0.0, 0.25, 1.0, 1.0], 1.0)
    """
    if isinstance(epoch, Real) and isinstance(warmup_epochs, Real):
        return min(1.0, float(epoch) / float(warmup_epochs)) if warmup_epochs > 0 else 1.0
    length = jnp.asarray(warmup_epochs, jnp.float32)
    rising = jnp.asarray(epoch, jnp.float32) / jnp.where(length > 0, length, 1)
    return jnp.where(length > 0, jnp.minimum(rising, 1), 1)


def learning_rate(
    schedule: str, initial: Number, epoch: Number, epochs: Number
) -> float | Float[Array, ""]:
    """The learning rate of an epoch.

    Args:
      schedule: "constant"; "staircase", the paper's for fine-tuning: times 0.75 after every tenth
        of the epochs (200 of its 2,000); or "cosine", half a cosine from `initial` to 0 at the end,
        and 0 from then on.
      initial: learning rate of the first epoch.
      epoch: counted from 0.
      epochs: length of the run.

    Returns:
      The learning rate.

    Raises:
      ValueError: there is no such schedule.

    Example:
      >>> [learning_rate("staircase", 1.0, epoch, 2000) for epoch in (0, 199, 200, 400)]
      [1.0, 1.0, 0.75, 0.5625]

      As a schedule of optax, which counts steps, here 234 per epoch:

      >>> import optax
      >>> optimizer = optax.adam(lambda step: learning_rate("cosine", 1e-3, step // 234, 100))
    """
    rate = initial * _factor(schedule, epoch, epochs)
    if all(isinstance(number, Real) for number in (initial, epoch, epochs)):
        return float(rate)
    return jnp.asarray(rate, jnp.float32)  # float64 until here under jax_enable_x64


def _factor(schedule: str, epoch: Number, epochs: Number) -> float | Array:
    """The learning rate of an epoch for an initial one of 1."""
    if schedule == "constant":
        return 1.0
    if schedule == "staircase":
        return 0.75 ** (10 * epoch // epochs)
    if schedule == "cosine":
        if isinstance(epoch, Real) and isinstance(epochs, Real):
            return 0.5 * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))
        return 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(epoch, epochs) / epochs))
    raise ValueError(f"schedule={schedule!r}; give {', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}")
