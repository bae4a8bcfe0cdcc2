"""Evaluation: the numbers after an epoch, and those at the end of a run."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import processes
from experiments.errors import NonFiniteError
from experiments.progress import Progress
from experiments.results import EpochRecord, ReplicaEpoch, ReplicaResults
from experiments.run import devices
from experiments.run.program import scheduled
from experiments.run.setup import Experiment
from lvae_jax import evaluation
from lvae_jax.data import as_stored
from lvae_jax.keys import image_keys
from lvae_jax.training import MESH_AXES, Metrics, Preprocess, TrainState

EVAL_BATCH_SIZE = 250
"""Images per batch in evaluation; no result depends on it."""


def measure_epoch(
    experiment: Experiment, state: TrainState, metrics: Metrics, step: int, started: float
) -> EpochRecord:
    """The numbers of an epoch: its means in training and, every few epochs, an evaluation.

    Args:
      experiment: the run.
      state: after the epoch.
      metrics: the means in training.
      step: number of steps taken so far.
      started: when the epoch began, by `time.monotonic`.
    """
    settings, mesh = experiment.settings, experiment.mesh
    epochs = step // experiment.steps_per_epoch
    due = settings.eval_every and epochs % settings.eval_every == 0
    replicas = trained_replicas(experiment, metrics, epochs - 1)
    if due or epochs == settings.epochs:
        for i, trained in enumerate(replicas):
            params = devices.replica_of(state.evaluated, i, mesh)
            variables = evaluation_variables(experiment, params, epochs, i)
            replicas[i] = dataclasses.replace(
                trained,
                validation_elbo=evaluate_validation_set(experiment, variables, epochs, i),
                **evaluate_test_set(experiment, variables, epochs, i),
            )
    skipped = None
    if settings.on_nonfinite == "skip":
        skipped = int(np.sum(devices.fetch(state.nonfinite, mesh)))
    return EpochRecord(
        epoch=epochs - 1,
        step=step,
        replicas=tuple(replicas),
        seconds=time.monotonic() - started,
        skipped_updates=skipped,
    )


def trained_replicas(experiment: Experiment, metrics: Metrics, epoch: int) -> list[ReplicaEpoch]:
    """The means of an epoch's training steps, per replica."""
    host = devices.fetch(metrics, experiment.mesh)
    beta, learning_rate = scheduled(experiment.settings, epoch)

    def number(mean: np.ndarray) -> float | None:
        return None if np.isnan(mean) else float(mean)  # no update was made

    return [
        ReplicaEpoch(
            beta=beta[i],
            learning_rate=learning_rate[i],
            train_elbo=number(host.train_elbo[i]),
            log_px=number(host.log_px[i]),
            kl_per_layer=tuple(map(number, host.kl_per_layer[i])),
        )
        for i in range(experiment.settings.replicas)
    ]


def evaluation_variables(
    experiment: Experiment, params: Any, epoch: int, replica: int = 0
) -> dict[str, Any]:
    """Parameters with batch-norm statistics re-estimated on the training set.

    Args:
      experiment: the run.
      params: one replica's parameters, on the devices.
      epoch: the number of epochs they were trained for.
      replica: the replica's index.
    """
    with jax.set_mesh(experiment.mesh):
        return evaluation.reestimate_batch_stats(
            experiment.model,
            params,
            experiment.preprocess,
            experiment.train_images,
            devices.put(experiment.key(replica, "batch_stats", epoch), experiment.mesh),
            batch_size=experiment.settings.batch_size,
        )


def _elbo(
    experiment: Experiment,
    variables: dict[str, Any],
    preprocess: Preprocess,
    images: Any,
    key: jax.Array,
) -> evaluation.ElboResult:
    """L_1 of images."""
    mesh = experiment.mesh
    with jax.set_mesh(mesh):
        result = evaluation.elbo(
            experiment.model,
            variables,
            preprocess,
            images if isinstance(images, jax.Array) else devices.put(images, mesh),
            devices.put(key, mesh),
            batch_size=eval_batch_size(mesh),
        )
        return devices.fetch(result, mesh)


def eval_batch_size(mesh: Mesh) -> int:
    """`EVAL_BATCH_SIZE`, rounded up to a multiple of the number of devices."""
    return -(-EVAL_BATCH_SIZE // mesh.size) * mesh.size


def evaluate_validation_set(
    experiment: Experiment, variables: dict[str, Any], epoch: int, replica: int
) -> float | None:
    """L_1 of the held-out images; None without --validation.

    Raises:
      NonFiniteError: it is not finite.
    """
    if experiment.validation_x is None:
        return None
    key = experiment.key(replica, "validation_elbo", epoch)
    elbo = float(_elbo(experiment, variables, as_stored, experiment.validation_x, key).elbo)
    _refuse_nonfinite(experiment, {"validation_elbo": elbo}, epoch, replica)
    return elbo


def evaluate_test_set(
    experiment: Experiment, variables: dict[str, Any], epoch: int, replica: int
) -> dict[str, Any]:
    """L_1 of the test set, KL and activity of every unit, by the names of a record's fields.

    Raises:
      NonFiniteError: one of these is not finite.
    """
    key = experiment.key(replica, "test_elbo", epoch)
    test = _elbo(experiment, variables, as_stored, experiment.test_x, key)
    results = {
        "test_elbo": float(test.elbo),
        "active_units": tuple(int(np.sum(active)) for active in test.active),
        "kl_per_unit": tuple(tuple(kl.tolist()) for kl in test.kl_per_unit),
    }
    _refuse_nonfinite(experiment, results, epoch, replica)
    return results


def _refuse_nonfinite(
    experiment: Experiment, found: dict[str, Any], epoch: int, replica: int
) -> None:
    for name, value in found.items():
        if np.isfinite(np.hstack([0.0, *jax.tree.leaves(value)])).all():
            continue  # an absent value, None, has no leaves
        epochs = f"{epoch} epoch{'s' * (epoch != 1)}{experiment.of_seed(replica)}"
        raise NonFiniteError(
            f"evaluated after {epochs}: the "
            f"{name.replace('_', ' ').replace('elbo', 'ELBO')} is not finite. Try a "
            "smaller --learning_rate or --max_gradient_norm=4 in a new --workdir, and look for "
            "extreme values in the test images"
        )


def evaluate_fully(
    experiment: Experiment,
    variables: dict[str, Any],
    epoch: int,
    replica: int,
    between_batches: Callable[[], None],
) -> ReplicaResults:
    """The evaluation at the end: the test set, its log-likelihood, and the training set's L_1.

    There is no validation ELBO, because the parameters were chosen by it.

    Args:
      experiment: the run.
      variables: one replica's variables.
      epoch: the number of epochs they were trained for.
      replica: the replica's index.
      between_batches: called after every batch; may raise.

    Raises:
      NonFiniteError: a number is not finite.
    """
    test = evaluate_test_set(experiment, variables, epoch, replica)
    key = experiment.key(replica, "train_elbo", epoch)
    train = _elbo(experiment, variables, experiment.preprocess, experiment.train_images, key)
    subset_elbo = None
    if subset := experiment.settings.eval_subset:
        # Of each image the same draws as among all of them.
        key = experiment.key(replica, "test_elbo", epoch)
        images = experiment.test_x[:subset]
        subset_elbo = float(_elbo(experiment, variables, as_stored, images, key).elbo)
    log_likelihood, effective_sample_size = test_log_likelihood(
        experiment, variables, replica, between_batches
    )
    results = ReplicaResults(
        chosen_epoch=epoch,
        test_log_likelihood=float(np.mean(log_likelihood)),
        test_log_likelihood_standard_error=standard_error(log_likelihood),
        effective_sample_size=float(np.mean(effective_sample_size)),
        train_elbo=float(train.elbo),
        kl_per_layer=tuple(sum(layer) for layer in test["kl_per_unit"]),
        seed=experiment.settings.seed + replica,
        subset_elbo=subset_elbo,
        **test,
    )
    _refuse_nonfinite(experiment, dataclasses.asdict(results), epoch, replica)
    return results


def standard_error(values: np.ndarray) -> float | None:
    """The standard error of a mean over images; a single image has none, null in JSON."""
    if len(values) == 1:
        return None
    return float(np.std(np.float64(values), ddof=1) / math.sqrt(len(values)))


def test_log_likelihood(
    experiment: Experiment,
    variables: dict[str, Any],
    replica: int,
    between_batches: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """L_K and the effective sample size of each test image; shows progress."""
    settings, mesh = experiment.settings, experiment.mesh
    test_x = experiment.test_x[: settings.eval_subset or None]
    num_samples, n = settings.eval_samples, len(test_x)
    key = experiment.key(replica, "log_likelihood")
    batch_size = eval_batch_size(mesh)
    # All processes run one program, so take the smallest chunk that any of them has memory for.
    chunk_size = evaluation.default_chunk_size(experiment.model, batch_size // mesh.size)
    chunk_size = -int(processes.agree(-chunk_size)[0])
    program = evaluation.log_likelihood_program()
    estimates, sizes = [], []
    description = f"test log-likelihood{experiment.of_seed(replica)}, K = {num_samples}, image"
    with jax.set_mesh(mesh), Progress(description, n, shown=processes.is_first()) as progress:
        for start in range(0, n, batch_size):
            # Fill the last batch up with the first images, so that one program serves all batches.
            rows = np.arange(start, start + batch_size) % n
            result = program(
                experiment.model,
                variables,
                devices.put(test_x[rows], mesh, MESH_AXES),
                devices.put(image_keys(key, rows), mesh, MESH_AXES),
                num_samples,
                chunk_size,
            )
            result = devices.fetch(result, mesh)
            estimates.append(result.log_likelihood)
            sizes.append(result.effective_sample_size)
            done = min(start + batch_size, n)
            progress.update(done, f"{np.mean(np.concatenate(estimates)[:done]):.2f} nats")
            between_batches()
    return np.concatenate(estimates)[:n], np.concatenate(sizes)[:n]
