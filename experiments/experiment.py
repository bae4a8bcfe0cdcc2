"""An experiment: its settings, its model, its data on the device, and how it is evaluated."""

import functools
import hashlib
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.progress import Progress
from experiments.settings import Settings, SettingsError
from lvae_jax import VAE, LadderVAE, evaluation, training
from lvae_jax.data import Dataset, as_stored
from lvae_jax.data.validation import hold_out
from lvae_jax.models import HierarchicalVAE
from lvae_jax.training import Preprocess, named_key

EVAL_BATCH_SIZE = 250
"""Images at a time in evaluation; no result depends on it."""

EVAL_CHUNK_SIZE = {"cpu": 10, "gpu": 100, "tpu": 100}
"""Importance samples an image at a time: few stay in a CPU's caches, many fill an accelerator."""


class Experiment(NamedTuple):
    """What stays the same over a run: its settings, its model, and its data on the device."""

    settings: Settings
    dataset: Dataset
    """Without the training images that are held out."""
    model: HierarchicalVAE
    optimizer: optax.GradientTransformation
    key: jax.Array
    """The root key; every draw is derived from it."""
    preprocess: Preprocess
    train_images: jax.Array
    test_x: jax.Array
    validation_x: jax.Array | None
    """Of training images held out, where some are."""


def make_experiment(settings: Settings, dataset: Dataset) -> Experiment:
    """The model and the data of a run, the data on the device from here on.

    Raises:
      SettingsError: settings that do not fit the data set.
      DataError: more images are to be held out than there are.
    """
    validation = None
    if settings.validation:
        dataset, validation = hold_out(dataset, settings.validation)
    if settings.batch_size > len(dataset.train_images):
        raise SettingsError(
            f"--batch_size={settings.batch_size}: {dataset.name} has {len(dataset.train_images)} "
            "training images; give at most that"
        )
    return Experiment(
        settings=settings,
        dataset=dataset,
        model=make_model(settings, dataset.data_dim, dataset.observation),
        optimizer=training.make_optimizer(
            max_gradient_norm=settings.max_gradient_norm or None,
            max_gradient=settings.max_gradient or None,
            adam_epsilon=settings.adam_epsilon,
        ),
        key=jax.random.key(settings.seed),
        preprocess=dataset.preprocess,
        train_images=jnp.asarray(dataset.train_images),
        test_x=jnp.asarray(dataset.test_x()),
        validation_x=None if validation is None else jnp.asarray(validation.test_x()),
    )


def steps_per_epoch(experiment: Experiment) -> int:
    """Full batches in the training set."""
    return len(experiment.train_images) // experiment.settings.batch_size


def make_model(settings: Settings, data_dim: int, observation: str) -> HierarchicalVAE:
    """The model of the settings, for a data set's dimension and observation."""
    latent_sizes, hidden_sizes = settings.layers()
    ladder = functools.partial(
        LadderVAE, own_top_down=settings.own_top_down, mean_upward=settings.mean_upward
    )
    model_class: Any = {"lvae": ladder, "vae": VAE}[settings.model]
    return model_class(
        data_dim=data_dim,
        latent_sizes=latent_sizes,
        hidden_sizes=hidden_sizes,
        observation=observation,
        activation=settings.activation,
        batch_norm=settings.batch_norm,
        variance_floor=settings.variance_floor,
    )


def evaluation_variables(experiment: Experiment, params: Any, epoch: int) -> dict[str, Any]:
    """The parameters after `epoch` epochs with batch-norm statistics of the training set."""
    return evaluation.reestimate_batch_stats(
        experiment.model,
        params,
        experiment.preprocess,
        experiment.train_images,
        named_key(experiment.key, "batch_stats", epoch),
        batch_size=experiment.settings.batch_size,
    )


def evaluate(experiment: Experiment, variables: dict[str, Any], epoch: int) -> dict[str, Any]:
    """What is evaluated every few epochs: L_1 of the test set, KL and activity of every unit."""
    results: dict[str, Any] = {}
    if experiment.validation_x is not None:
        key = named_key(experiment.key, "validation_elbo", epoch)
        validation = evaluation.elbo(
            experiment.model,
            variables,
            as_stored,
            experiment.validation_x,
            key,
            batch_size=EVAL_BATCH_SIZE,
        )
        results["validation_elbo"] = float(validation.elbo)
    test = evaluation.elbo(
        experiment.model,
        variables,
        as_stored,
        experiment.test_x,
        named_key(experiment.key, "test_elbo", epoch),
        batch_size=EVAL_BATCH_SIZE,
    )
    return results | {
        "test_elbo": float(test.elbo),
        "active_units": [int(jnp.sum(active)) for active in test.active],
        "kl_per_unit": [kl.tolist() for kl in test.kl_per_unit],
    }


def evaluate_fully(experiment: Experiment, variables: dict[str, Any], epoch: int) -> dict[str, Any]:
    """What is evaluated at the end, the test log-likelihood and the training set's L_1 included.

    The validation ELBO is left out: what has been chosen by is no result.
    """
    experiment = experiment._replace(validation_x=None)
    test = evaluate(experiment, variables, epoch)
    train = evaluation.elbo(
        experiment.model,
        variables,
        experiment.preprocess,
        experiment.train_images,
        named_key(experiment.key, "train_elbo", epoch),
        batch_size=EVAL_BATCH_SIZE,
    )
    log_likelihood, effective_sample_size = test_log_likelihood(experiment, variables)
    return {
        "test_log_likelihood": float(np.mean(log_likelihood)),
        "test_log_likelihood_standard_error": float(
            np.std(log_likelihood, ddof=1) / math.sqrt(len(log_likelihood))
        ),
        "eval_samples": experiment.settings.eval_samples,
        "effective_sample_size": float(np.mean(effective_sample_size)),
        "train_elbo": float(train.elbo),
        "kl_per_layer": [sum(layer) for layer in test["kl_per_unit"]],
        **test,
    }


def test_log_likelihood(
    experiment: Experiment, variables: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """L_K and the effective sample size of every test image, with progress."""
    num_samples, n = experiment.settings.eval_samples, len(experiment.test_x)
    key = named_key(experiment.key, "log_likelihood")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
    chunk_size = EVAL_CHUNK_SIZE[jax.default_backend()]
    estimates, sizes = [], []
    with Progress(f"test log-likelihood, K = {num_samples}, image", n) as progress:
        for start in range(0, n, EVAL_BATCH_SIZE):
            # A smaller last batch is filled up with the first images: one program serves all.
            rows = np.arange(start, start + EVAL_BATCH_SIZE) % n
            result = evaluation.log_likelihood(
                experiment.model,
                variables,
                experiment.test_x[rows],
                keys[rows],
                num_samples,
                chunk_size,
            )
            estimates.append(np.asarray(result.log_likelihood))
            sizes.append(np.asarray(result.effective_sample_size))
            done = min(start + EVAL_BATCH_SIZE, n)
            progress.update(done, f"{np.mean(np.concatenate(estimates)[:done]):.2f} nats")
    return np.concatenate(estimates)[:n], np.concatenate(sizes)[:n]


def data_sha256(dataset: Dataset) -> str:
    """A checksum of the images, those that are held out included."""
    data = hashlib.sha256()
    for images in (dataset.train_images, dataset.test_images):
        data.update(images.tobytes())
    return data.hexdigest()


def device() -> str:
    """The devices in words: how many of which kind."""
    devices = jax.devices()
    cores = f" ({os.cpu_count()} cores)" if devices[0].platform == "cpu" else ""
    return f"{len(devices)} x {devices[0].device_kind}{cores}"
