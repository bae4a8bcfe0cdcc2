"""A whole run: settings, data, model, training, evaluation, results."""

import functools
import hashlib
import math
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tensorboardX import SummaryWriter

import lvae_jax
from experiments import figures
from experiments.progress import Progress
from experiments.settings import Settings, SettingsError
from experiments.workdir import Workdir, read_trained, remove_tensorboard
from lvae_jax import VAE, LadderVAE, bounds, evaluation, training
from lvae_jax.data import Dataset, as_stored
from lvae_jax.data.validation import hold_out
from lvae_jax.models import HierarchicalVAE
from lvae_jax.training import Preprocess, TrainState, named_key

EVAL_BATCH_SIZE = 250
"""Images at a time in evaluation; no result depends on it."""

EVAL_CHUNK_SIZE = {"cpu": 10, "gpu": 100, "tpu": 100}
"""Importance samples an image at a time: few stay in a CPU's caches, many fill an accelerator."""


USED_KL = 0.01
"""Nats. A unit of a lower layer can be active, by the variance of its posterior mean, only because
its prior follows the layer above; its KL says how much it adds of its own."""


class NonFiniteError(ArithmeticError):
    """Training arrived at a number that is not finite; the message is one line."""


class Experiment(NamedTuple):
    """What stays the same over a run: its settings, its model, and its data on the device."""

    settings: Settings
    model: HierarchicalVAE
    optimizer: optax.GradientTransformation
    key: jax.Array
    """The root key; every draw is derived from it."""
    preprocess: Preprocess
    train_images: jax.Array
    test_x: jax.Array
    validation_x: jax.Array | None
    """Of training images held out, where some are."""
    image_shape: tuple[int, ...]


def run(settings: Settings, dataset: Dataset, paper_log_likelihood: float | None = None) -> None:
    """Trains and evaluates one model, from the beginning or from where an earlier start got to.

    Args:
      settings: checked settings.
      dataset: what to train and test on.
      paper_log_likelihood: the paper's number for this data set and model, where it has one.

    Raises:
      SettingsError: settings that do not fit the data set.
      WorkdirError: a workdir that cannot be used.
      NonFiniteError: training diverged.
    """
    started = time.monotonic()
    config = make_config(settings, dataset)
    validation = None
    if settings.validation:
        dataset, validation = hold_out(dataset, settings.validation)
    if settings.batch_size > len(dataset.train_images):
        raise SettingsError(
            f"--batch_size={settings.batch_size}: {dataset.name} has {len(dataset.train_images)} "
            "training images; give at most that"
        )

    # The run's folder. It is created only once nothing is left that could be refused.
    name = f"{dataset.name}-{settings.model}{settings.depth}"
    workdir = Workdir(Path(settings.workdir or f"runs/{name}"), config)
    results = workdir.results()
    if results is not None:
        print(f"{workdir.path} is finished.")
        print(describe(results, paper_log_likelihood))
        return
    experiment = make_experiment(settings, dataset, validation)
    state = initial_state(experiment, dataset.name)
    workdir.create()

    # Train, going on from the newest checkpoint if there is one.
    state, epoch = workdir.restore(state)
    print(
        f"{name}: {len(experiment.train_images)} training images, "
        f"{len(experiment.test_x)} test images, "
        f"{sum(p.size for p in jax.tree.leaves(state.params)):,} parameters, "
        f"{settings.epochs} epochs of {steps_per_epoch(experiment)} steps, on {device()}"
        + (f"; going on after epoch {epoch}" if epoch else ""),
        file=sys.stderr,
    )
    state, training_seconds = train(experiment, workdir, state, epoch)

    # Evaluate, the epoch with the best validation ELBO if there is one.
    evaluation_started = time.monotonic()
    chosen_epoch = settings.epochs
    if validation is not None:
        state, chosen_epoch = workdir.restore_chosen(state)
    variables = evaluation_variables(experiment, state.params, chosen_epoch)
    draw_figures(experiment, variables, workdir.path)
    results = {
        "dataset": dataset.name,
        "model": settings.model,
        "epochs": settings.epochs,
        "chosen_epoch": chosen_epoch,
        "seed": settings.seed,
        **evaluate_fully(experiment, variables, chosen_epoch),
        "training_seconds": training_seconds,
        "wall_seconds": training_seconds + time.monotonic() - evaluation_started,
        "device": device(),
    }
    workdir.write_results(results)
    workdir.close()
    print(describe(results, paper_log_likelihood))
    print(f"{workdir.path} is finished, {time.monotonic() - started:.0f} s after this start.")


def make_experiment(settings: Settings, dataset: Dataset, validation: Dataset | None) -> Experiment:
    """The model and the data of a run, the data on the device from here on."""
    return Experiment(
        settings=settings,
        model=make_model(settings, dataset),
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
        image_shape=dataset.image_shape,
    )


def steps_per_epoch(experiment: Experiment) -> int:
    """Full batches in the training set."""
    return len(experiment.train_images) // experiment.settings.batch_size


def train(
    experiment: Experiment, workdir: Workdir, state: TrainState, epoch: int
) -> tuple[TrainState, float]:
    """Trains to the last epoch, writing metrics and checkpoints on the way.

    Args:
      experiment: what to train.
      workdir: where to write.
      state: after the epochs finished so far; its buffers are donated.
      epoch: the number of epochs finished so far.

    Returns:
      The final state, and the seconds that all epochs took, those of earlier starts included.

    Raises:
      NonFiniteError: the training ELBO of an epoch is not finite.
    """
    settings = experiment.settings
    lines = workdir.truncate_metrics(epoch)
    remove_tensorboard(workdir.path)
    with (
        SummaryWriter(str(workdir.path / "tensorboard")) as tensorboard,
        Progress("epoch", settings.epochs, done=epoch) as progress,
    ):
        for line in lines:
            write_scalars(tensorboard, line)
        saved = time.monotonic()
        while epoch < settings.epochs:
            epoch_started = time.monotonic()
            state, line = train_epoch(experiment, state, epoch)
            if not math.isfinite(line["train_elbo"]):
                raise NonFiniteError(
                    f"epoch {epoch}: the training ELBO is {line['train_elbo']}; the last "
                    f"checkpoint in {workdir.path} is kept. Try a smaller --learning_rate or "
                    "--max_gradient_norm=4 in a new --workdir"
                )
            epoch += 1
            last = epoch == settings.epochs
            if last or (settings.eval_every and epoch % settings.eval_every == 0):
                variables = evaluation_variables(experiment, state.params, epoch)
                line |= evaluate(experiment, variables, epoch)
            line["seconds"] = time.monotonic() - epoch_started
            lines.append(line)
            if line.get("validation_elbo", -math.inf) == best_validation_elbo(lines):
                workdir.save_chosen(state, epoch)
            workdir.append_metrics(line)
            write_scalars(tensorboard, line)
            if last or time.monotonic() - saved >= settings.checkpoint_seconds:
                workdir.save(state, epoch)
                saved = time.monotonic()
            progress.update(epoch, f"beta {line['beta']:.2f}  ELBO {line['train_elbo']:.2f}")
    return state, sum(line["seconds"] for line in lines)


def best_validation_elbo(lines: list[dict[str, Any]]) -> float | None:
    """The best of the metrics so far; None if there is no validation."""
    return max(
        (line["validation_elbo"] for line in lines if "validation_elbo" in line), default=None
    )


def train_epoch(
    experiment: Experiment, state: TrainState, epoch: int
) -> tuple[TrainState, dict[str, Any]]:
    """One epoch, and its line of metrics.jsonl."""
    settings = experiment.settings
    beta = bounds.warm_up(epoch, settings.warmup_epochs)
    learning_rate = training.scheduled_learning_rate(
        settings.schedule, settings.learning_rate, epoch, settings.epochs
    )
    state, metrics = training.train_epoch(
        experiment.model,
        experiment.optimizer,
        experiment.preprocess,
        state,
        experiment.train_images,
        experiment.key,
        jnp.float32(beta),
        jnp.float32(learning_rate),
        batch_size=settings.batch_size,
        mc_samples=settings.mc_samples,
        importance_samples=settings.iw_samples,
    )
    return state, {
        "epoch": epoch,
        "step": int(state.step),
        "beta": beta,
        "learning_rate": learning_rate,
        "train_elbo": float(metrics.train_elbo),
        "log_px": float(metrics.log_px),
        "kl_per_layer": metrics.kl_per_layer.tolist(),
    }


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


def draw_figures(experiment: Experiment, variables: dict[str, Any], path: Path) -> None:
    """Writes figures/*.png, and the same pictures to TensorBoard."""
    pictures = figures.draw(
        experiment.model,
        variables,
        experiment.test_x,
        experiment.image_shape,
        named_key(experiment.key, "figures"),
    )
    with SummaryWriter(str(path / "tensorboard")) as tensorboard:
        for name, picture in pictures.items():
            figures.write_png(path / "figures" / f"{name}.png", picture)
            dataformats = "HW" if picture.ndim == 2 else "HWC"
            tensorboard.add_image(
                name, picture, experiment.settings.epochs, dataformats=dataformats
            )


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


def make_model(settings: Settings, dataset: Dataset) -> HierarchicalVAE:
    """The model of the settings, for the data set's dimension and observation."""
    latent_sizes, hidden_sizes = settings.layers()
    ladder = functools.partial(
        LadderVAE, own_top_down=settings.own_top_down, mean_upward=settings.mean_upward
    )
    model_class: Any = {"lvae": ladder, "vae": VAE}[settings.model]
    return model_class(
        data_dim=dataset.data_dim,
        latent_sizes=latent_sizes,
        hidden_sizes=hidden_sizes,
        observation=dataset.observation,
        activation=settings.activation,
        batch_norm=settings.batch_norm,
        variance_floor=settings.variance_floor,
    )


def initial_state(experiment: Experiment, dataset_name: str) -> TrainState:
    """Fresh parameters, or with --init_from those of another run; the optimiser starts afresh.

    Raises:
      SettingsError: the other run's model is not this one.
      WorkdirError: there is no such run.
    """
    settings = experiment.settings
    state = training.init_state(experiment.model, experiment.optimizer, experiment.key)
    if not settings.init_from:
        return state
    config, params = read_trained(Path(settings.init_from))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, state.params):
        was, now = config["settings"], settings.changing_results()
        names = (
            "model",
            "latent_sizes",
            "hidden_sizes",
            "batch_norm",
            "own_top_down",
            "mean_upward",
        )
        differences = [f"{n} {was[n]} there, {now[n]} here" for n in names if was[n] != now[n]]
        if config["dataset"] != dataset_name:
            differences.append(f"trained on {config['dataset']}, not on {dataset_name}")
        raise SettingsError(
            f"--init_from={settings.init_from}: its model is another one "
            f"({'; '.join(differences)}); give the same model settings"
        )
    return state._replace(params=jax.tree.map(jnp.asarray, params))


def make_config(settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """What config.json says: every setting, and the versions and device of the first start."""
    data = hashlib.sha256()
    for images in (dataset.train_images, dataset.test_images):
        data.update(images.tobytes())
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "dataset": dataset.name,
        "data_sha256": data.hexdigest(),
        "settings": settings.changing_results(),
        "versions": {
            "python": platform.python_version(),
            "lvae_jax": lvae_jax.__version__,
            **{package: metadata.version(package) for package in packages},
        },
        "device": device(),
    }


def device() -> str:
    """The devices in words: how many of which kind."""
    devices = jax.devices()
    cores = f" ({os.cpu_count()} cores)" if devices[0].platform == "cpu" else ""
    return f"{len(devices)} x {devices[0].device_kind}{cores}"


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


def write_scalars(tensorboard: SummaryWriter, line: dict[str, Any]) -> None:
    """Writes a line of metrics.jsonl to TensorBoard, a scalar a number, a layer a curve."""
    for name, value in line.items():
        if name in ("kl_per_layer", "active_units"):
            for i, layer_value in enumerate(value, start=1):
                tensorboard.add_scalar(f"{name}/z_{i}", layer_value, line["epoch"])
        elif isinstance(value, float):
            tensorboard.add_scalar(name, value, line["epoch"])


def describe(results: dict[str, Any], paper_log_likelihood: float | None) -> str:
    """results.json for a person."""
    paper = (
        f"   (the paper, after 2,000 epochs: {paper_log_likelihood})"
        if paper_log_likelihood
        else ""
    )
    chosen = (
        f", epoch {results['chosen_epoch']} chosen by validation"
        if results["chosen_epoch"] != results["epochs"]
        else ""
    )
    layers = "\n".join(
        f"  z_{i}: KL {kl:6.2f} nats; of {len(per_unit)} units {active} active, "
        f"{sum(unit > USED_KL for unit in per_unit)} with KL > {USED_KL}"
        for i, (kl, active, per_unit) in enumerate(
            zip(
                results["kl_per_layer"],
                results["active_units"],
                results["kl_per_unit"],
                strict=True,
            ),
            start=1,
        )
    )
    return (
        f"{results['dataset']}, {results['model']} with {len(results['active_units'])} layers, "
        f"{results['epochs']} epochs{chosen}, seed {results['seed']}\n"
        f"test log-likelihood {results['test_log_likelihood']:.2f} "
        f"± {results['test_log_likelihood_standard_error']:.2f} nats "
        f"(L_{results['eval_samples']}; the standard error is over the test images){paper}\n"
        f"test ELBO {results['test_elbo']:.2f} nats, train ELBO {results['train_elbo']:.2f} nats\n"
        f"effective sample size {results['effective_sample_size']:.0f} "
        f"of {results['eval_samples']}\n"
        f"{layers}\n"
        f"{results['training_seconds']:.0f} s of training, {results['wall_seconds']:.0f} s in all, "
        f"on {results['device']}"
    )
