"""Stops a run that diverges, and reports the first quantity that is not finite."""

import jax.numpy as jnp
import numpy as np

from experiments.errors import NonFiniteError
from experiments.run import devices
from experiments.run.program import most_nonfinite, scheduled
from experiments.run.setup import Experiment, objective_of, training_key
from experiments.store.workdir import Workdir
from lvae_jax import diagnosis, training
from lvae_jax.training import TrainState


def check_finite(experiment: Experiment, workdir: Workdir, state: TrainState, epoch: int) -> None:
    """Stops a run with more non-finite updates than the settings allow.

    Raises:
      NonFiniteError: the message names the step and the first quantity that is not finite.
    """
    settings, mesh = experiment.settings, experiment.mesh
    limit = most_nonfinite(settings)
    too_many = np.flatnonzero(devices.fetch(state.nonfinite, mesh) > limit)
    if not too_many.size:
        return
    replica = int(too_many[0])
    stopped = devices.fetch(devices.replica_of(state, replica, mesh), mesh)
    key = training_key(settings, replica)
    images, step = experiment.dataset.train_images, int(stopped.step)
    position, batches = training.epoch_batches(key, step, len(images), settings.batch_size)
    batch = jnp.asarray(images[np.asarray(batches[position])])
    of_this_run = epoch * experiment.steps_per_epoch + int(position)
    x, sample_key = training.step_inputs(experiment.preprocess, batch, key, step)
    quantity = diagnosis.first_nonfinite(
        experiment.model,
        stopped.params,
        x,
        sample_key,
        scheduled(settings, epoch)[0][replica],
        objective_of(settings),
    )
    raise NonFiniteError(
        f"epoch {epoch}, step {of_this_run}{experiment.of_seed(replica)}: "
        f"{quantity or 'the loss or a gradient is not finite'}"
        + (f", after {limit} skipped updates" if limit else "")
        + (f"; the last checkpoint in {workdir.path} is kept" if workdir.has_checkpoint() else "")
        + ". Try a smaller --learning_rate or "
        "--max_gradient_norm=4 in a new --workdir" + ("" if limit else ", or --on_nonfinite=skip")
    )
