"""Chooses each replica's parameters with the best held-out ELBO."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import WorkdirError
from experiments.results import EpochRecord
from experiments.run import devices
from experiments.run.setup import Experiment
from experiments.store.workdir import Workdir
from lvae_jax.training import TrainState


class Chosen(NamedTuple):
    """The parameters to evaluate in the end."""

    params: Any
    epoch: jax.Array
    """[replicas]: the number of epochs they were trained for."""


def after(experiment: Experiment, params: Any, epochs: int) -> Chosen:
    """The parameters of all replicas after the same number of epochs."""
    epoch = np.full((experiment.settings.replicas,), epochs, np.int32)
    return Chosen(params, devices.put(epoch, experiment.mesh, "replica"))


def restore(
    experiment: Experiment, workdir: Workdir, state: TrainState, before: Sequence[EpochRecord]
) -> Chosen | None:
    """The choice so far, initially the current parameters; None without validation.

    Raises:
      WorkdirError: a choice was made in an epoch before, and is lost.
    """
    if not experiment.settings.validation:
        return None
    first = after(experiment, _copy(state.evaluated), epochs=0)
    restored = workdir.chosen.restore(first)
    if restored is None and any(one.evaluated for one in before):
        raise WorkdirError(
            f"{workdir.path} has chosen parameters by --validation, but its chosen/ is missing; "
            "restore it, or start again with --overwrite"
        )
    return first if restored is None else restored[0]


def choose(
    experiment: Experiment,
    workdir: Workdir,
    chosen: Chosen | None,
    state: TrainState,
    before: Sequence[EpochRecord],
    epoch: EpochRecord,
) -> Chosen | None:
    """Chooses and saves the replicas whose held-out ELBO is the best so far.

    A resumed run passes through the same states, so choices made after the last checkpoint are
    made again.
    """
    if chosen is None or not epoch.evaluated:
        return chosen
    earlier = [one.each("validation_elbo") for one in before if one.evaluated]
    now = epoch.each("validation_elbo")
    better = np.array([all(now[i] > then[i] for then in earlier) for i in range(len(now))])
    if not better.any():
        return chosen
    new = Chosen(state.evaluated, jnp.int32(epoch.epoch + 1))
    chosen = _take(devices.put(better, experiment.mesh, "replica"), new, chosen)
    workdir.chosen.save(chosen, epoch.step)
    return chosen


@jax.jit
def _copy(params: Any) -> Any:
    return jax.tree.map(jnp.copy, params)


@jax.jit
def _take(better: jax.Array, new: Chosen, old: Chosen) -> Chosen:
    """The new choice for replicas that are better, the old one for the others."""

    def take(n: jax.Array, o: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *(1,) * (o.ndim - 1)), n, o)

    return Chosen(jax.tree.map(take, new.params, old.params), take(new.epoch, old.epoch))
