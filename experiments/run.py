"""A whole run: settings, data, model, training, evaluation, results."""

import math
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

import lvae_jax
from experiments import drawing, page, published, registry
from experiments.experiment import (
    Experiment,
    data_sha256,
    device,
    evaluate,
    evaluate_fully,
    evaluation_variables,
    make_experiment,
    steps_per_epoch,
)
from experiments.figures import USED_KL
from experiments.progress import Progress
from experiments.settings import Settings, SettingsError
from experiments.workdir import Workdir, read_config, read_trained, remove_tensorboard
from lvae_jax import bounds, training
from lvae_jax.data import Dataset
from lvae_jax.training import TrainState


class NonFiniteError(ArithmeticError):
    """Training arrived at a number that is not finite; the message is one line."""


def run(settings: Settings, dataset: Dataset, experiment_name: str | None = None) -> None:
    """Trains and evaluates one model, from the beginning or from where an earlier start got to.

    Args:
      settings: checked settings.
      dataset: what to train and test on.
      experiment_name: one of `registry.NAMES`, for the report to know the command by; None for a
        data set of your own code.

    Raises:
      SettingsError: settings that do not fit the data set.
      WorkdirError: a workdir that cannot be used.
      NonFiniteError: training diverged.
    """
    started = time.monotonic()
    config = make_config(settings, dataset, experiment_name)

    # The run's folder. It is created only once nothing is left that could be refused.
    name = f"{dataset.name}-{settings.model}{settings.depth}"
    workdir = Workdir(Path(settings.workdir or f"runs/{name}"), config)
    results = workdir.results()
    if results is not None:
        print(f"{workdir.path} is finished.")
        print(describe(results, config))
        return
    experiment = make_experiment(settings, dataset)
    state = initial_state(experiment, dataset.name)
    workdir.create()

    # Train, going on from the newest checkpoint if there is one.
    state, step = workdir.restore(state) or (state, 0)
    epoch = step // steps_per_epoch(experiment)
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
    if settings.validation:
        state, step = workdir.restore_chosen(state)
        chosen_epoch = step // steps_per_epoch(experiment)
    variables = evaluation_variables(experiment, state.params, chosen_epoch)
    drawing.draw_model(experiment, variables, workdir.path / "figures")
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
    page.write(workdir.path, config, registry.command(config, workdir.path), results)
    write_pictures(workdir.path, settings.epochs)
    workdir.write_results(results)
    workdir.close()
    print(describe(results, config))
    print(f"{workdir.path / page.NAME} shows it.")
    print(f"{workdir.path} is finished, {time.monotonic() - started:.0f} s after this start.")


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
            write_line(tensorboard, line)
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
                workdir.save_chosen(state, line["step"])
            workdir.append_metrics(line)
            write_line(tensorboard, line)
            if last or time.monotonic() - saved >= settings.checkpoint_seconds:
                workdir.save(state, line["step"])
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
        gradient=settings.gradient,
        free_bits=settings.free_bits,
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


def initial_state(experiment: Experiment, dataset_name: str) -> TrainState:
    """Fresh parameters, or with --init_from those of another run; the optimiser starts afresh.

    Raises:
      SettingsError: the other run's model is not this one.
      WorkdirError: there is no such run.
    """
    settings = experiment.settings
    other = Path(settings.init_from)
    if settings.init_from:
        (params, _), config = read_trained(other), read_config(other)
    state = training.init_state(experiment.model, experiment.optimizer, experiment.key)
    if not settings.init_from:
        return state
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


def make_config(
    settings: Settings, dataset: Dataset, experiment_name: str | None
) -> dict[str, Any]:
    """What config.json says: every setting, and the versions and device of the first start."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "experiment": experiment_name,
        "dataset": dataset.name,
        "data_sha256": data_sha256(dataset),
        "settings": settings.changing_results(),
        "other_settings": settings.not_changing_results(),
        "versions": {
            "python": platform.python_version(),
            "lvae_jax": lvae_jax.__version__,
            **{package: metadata.version(package) for package in packages},
        },
        "device": device(),
    }


def write_line(tensorboard: SummaryWriter, line: dict[str, Any]) -> None:
    """Writes a line of metrics.jsonl to TensorBoard: a layer a curve, its units' KL a histogram."""
    for name, value in line.items():
        if name in ("kl_per_layer", "active_units"):
            for i, layer_value in enumerate(value, start=1):
                tensorboard.add_scalar(f"{name}/z_{i}", layer_value, line["epoch"])
        elif name == "kl_per_unit":
            for i, units in enumerate(value, start=1):
                tensorboard.add_histogram(f"{name}/z_{i}", np.array(units), line["epoch"])
        elif isinstance(value, float):
            tensorboard.add_scalar(name, value, line["epoch"])


def write_pictures(path: Path, epoch: int) -> None:
    """Writes figures/*.png to TensorBoard."""
    with SummaryWriter(str(path / "tensorboard")) as tensorboard:
        for file in sorted((path / "figures").glob("*.png")):
            with Image.open(file) as image:
                picture = np.asarray(image.convert("RGB"))
            tensorboard.add_image(file.stem, picture, epoch, dataformats="HWC")


def describe(results: dict[str, Any], config: dict[str, Any]) -> str:
    """results.json for a person."""
    number = published.log_likelihood(config)
    paper = ""
    if number is not None:
        paper = f"   (the paper, after {published.EPOCHS[results['dataset']]:,} epochs: {number})"
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
