"""A whole run: settings, data, model, training, evaluation, results."""

import contextlib
import dataclasses
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lvae_jax
from experiments.errors import Interrupted, NonFiniteError, SettingsError
from experiments.progress import Progress
from experiments.results import EpochRecord, ReplicaEpoch, Run, RunResults
from experiments.run import devices
from experiments.run.record import Record
from experiments.run.setup import (
    MATMUL_PRECISION,
    Experiment,
    TrainingProgram,
    evaluate,
    evaluate_fully,
    evaluation_variables,
    make_experiment,
    new_state,
    objective_of,
    state_like,
    steps_per_epoch,
    training_key,
    training_program,
)
from experiments.run.signals import Interruption
from experiments.settings import Command, Settings
from experiments.show import console
from experiments.store.workdir import Workdir, read_config, read_trained
from lvae_jax import diagnosis, schedules, training
from lvae_jax.data import Dataset
from lvae_jax.training import Metrics, TrainState


class Chosen(NamedTuple):
    """Of every replica the parameters with the best held-out ELBO so far."""

    params: Any
    epoch: jax.Array
    """[replicas]: how many epochs led to them."""


def workdir_of(settings: Settings, dataset: Dataset) -> Path:
    """The folder of a run: --workdir, or one named after the data set and the model."""
    name = f"{dataset.name}-{settings.model}{settings.depth}"
    return Path(settings.workdir or f"runs/{name}")


def run(settings: Settings, dataset: Dataset, command: Command | None = None) -> None:
    """Trains and evaluates one model, from the beginning or from where an earlier start got to.

    Or `settings.replicas` of them, with as many seeds, at once.

    Args:
      settings: checked settings.
      dataset: what to train and test on.
      command: of the experiment that this is a run of; None for code of your own.

    Raises:
      SettingsError: settings that do not fit the data set, or what is there to compute with.
      WorkdirError: a workdir that cannot be used.
      NonFiniteError: training diverged.
      Interrupted: a signal came; the work done is saved.
    """
    started = time.monotonic()
    config = make_config(settings, dataset, command and command.name)

    # The run's folder. It is created only once nothing is left that could be refused.
    path = workdir_of(settings, dataset)
    workdir = Workdir(path, config, overwrite=settings.overwrite, writes=devices.writes())
    line = command and command.line(settings, path)
    results = workdir.results()
    if results is not None:
        tell(f"{workdir.path} is finished.", console.describe(results, config))
        return
    precision = jax.default_matmul_precision(MATMUL_PRECISION[settings.matmul_precision])
    with precision, Interruption() as interruption:
        experiment = make_experiment(settings, dataset)
        initial = initial_params(experiment, dataset.name)
        workdir.create()
        with contextlib.closing(workdir):
            results = train_and_evaluate(experiment, workdir, line, initial, interruption, started)
    tell(
        console.describe(results, config),
        f"{workdir.path / 'report.html'} shows it.",
        f"{workdir.path} is finished, {time.monotonic() - started:.0f} s after this start.",
    )


def train_and_evaluate(
    experiment: Experiment,
    workdir: Workdir,
    command: str | None,
    initial: Any,
    interruption: Interruption,
    started: float,
) -> RunResults:
    """A run in its folder, from the newest checkpoint on if there is one.

    Args:
      experiment: what to train.
      workdir: where to write.
      command: that resumes the run, if there is one.
      initial: parameters to start from in place of fresh ones, or None.
      interruption: of the process.
      started: when, for the progress.

    Returns:
      What the run found.
    """
    settings, mesh = experiment.settings, experiment.mesh
    like = state_like(experiment)  # traced here, once, for both threads
    # Compiling is what a start waits for: the training program's goes on beside all else.
    compiling = ThreadPoolExecutor(1).submit(training_program, experiment)
    restored = workdir.restore(like)
    if restored is None:
        state, step = new_state(experiment), 0
        if initial is not None:
            state = state._replace(params=devices.put(initial, mesh, "replica"))
    else:
        state, step = restored
    per_epoch = steps_per_epoch(experiment)
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    replicas = f"{settings.replicas} replicas of " if settings.replicas > 1 else ""
    used = f" (of which {mesh.size} are used)" if mesh.size < jax.device_count() else ""
    log(
        f"{experiment.dataset.name}-{settings.model}{settings.depth}: "
        f"{len(experiment.train_images)} training images, {len(experiment.test_x)} test images, "
        f"{replicas}{parameters // settings.replicas:,} parameters, "
        f"{settings.epochs} epochs of {per_epoch} steps, on {devices.describe()}{used}"
        + (f"; resuming after epoch {step // per_epoch}" if step else "")
        + (f" and {step % per_epoch} steps" if step % per_epoch else "")
    )
    program = compiling.result()
    state, chosen, epochs = train(
        experiment, program, workdir, command, state, step, interruption, started
    )
    seconds = sum(epoch.seconds for epoch in epochs)

    # Evaluate, the epoch with the best validation ELBO if there is one.
    evaluation_started = time.monotonic()

    def stop_if_interrupted() -> None:
        interruption.check(
            f"stopped while evaluating; training is done and saved in {workdir.path}; "
            f"{how_to_resume(command)}"
        )

    by_replica = []
    for replica in range(settings.replicas):
        stop_if_interrupted()
        params = devices.replica_of(chosen.params, replica, mesh)
        epoch = int(devices.fetch(chosen.epoch, mesh)[replica])
        variables = evaluation_variables(experiment, params, epoch, replica)
        workdir.save_model(
            experiment.model,
            devices.fetch(variables, mesh),
            {"dataset": experiment.dataset.name, "epoch": epoch, "seed": settings.seed + replica},
            replica if settings.replicas > 1 else None,
        )
        if replica == 0 and devices.writes():
            from experiments.show import drawing  # imports matplotlib, which nothing before needs

            drawing.draw_model(experiment, jax.device_get(variables), workdir.path / "figures")
        stop_if_interrupted()
        found = evaluate_fully(experiment, variables, epoch, replica, stop_if_interrupted)
        by_replica.append(found)
    results = RunResults(
        dataset=experiment.dataset.name,
        model=settings.model,
        epochs=settings.epochs,
        seed=settings.seed,
        eval_samples=settings.eval_samples,
        eval_images=len(experiment.test_x[: settings.eval_subset or None]),
        replicas=tuple(by_replica),
        training_seconds=seconds,
        wall_seconds=seconds + time.monotonic() - evaluation_started,
        device=devices.describe(),
    )
    if devices.writes():
        from experiments.show import page, tensorboard

        page.write(Run(workdir.path, workdir.config, epochs, results), command)
        with tensorboard.Events(workdir.path, "figures") as events:
            events.add_figures(workdir.path / "figures", settings.epochs)
        workdir.write_results(results)
    return results


def train(
    experiment: Experiment,
    program: TrainingProgram,
    workdir: Workdir,
    command: str | None,
    state: TrainState,
    step: int,
    interruption: Interruption,
    started: float,
) -> tuple[TrainState, Chosen, list[EpochRecord]]:
    """Trains to the last epoch, writing metrics and checkpoints on the way.

    Args:
      experiment: what to train.
      program: of `training_program`.
      workdir: where to write.
      command: that resumes the run, if there is one.
      state: after the steps taken so far; its buffers are donated.
      step: the number of steps taken so far.
      interruption: of the process.
      started: when, for the progress.

    Returns:
      The final state, what is to be evaluated, and all epochs, those of earlier starts included.

    Raises:
      NonFiniteError: a loss or a gradient was not finite.
      Interrupted: a signal came; the state is saved.
    """
    settings, mesh = experiment.settings, experiment.mesh
    per_epoch = steps_per_epoch(experiment)
    epoch = step // per_epoch
    epochs = workdir.truncate_metrics(epoch)
    chosen = restore_chosen(experiment, workdir, state) if settings.validation else None
    with Record(
        workdir, epochs, Progress("epoch", settings.epochs, epoch, shown=devices.writes())
    ) as record:
        saved = epoch_started = time.monotonic()
        compiled = False
        while epoch < settings.epochs:
            state, metrics = jax.block_until_ready(
                program.call(state, *scheduled(settings, epoch), most_nonfinite(settings))
            )
            step += program.steps
            check_finite(experiment, workdir, state, epoch)
            if not compiled:
                compiled = True
                log(
                    f"the first {program.steps} step{'s' * (program.steps != 1)} took until "
                    f"{time.monotonic() - started:.1f} s after this start, compilation included"
                )
            score = None
            if step % per_epoch == 0:
                by_replica = metrics_by_replica(experiment, metrics, epoch)
                epoch += 1
                if epoch == settings.epochs or (
                    settings.eval_every and epoch % settings.eval_every == 0
                ):
                    for replica, found in enumerate(by_replica):
                        params = devices.replica_of(state.params, replica, mesh)
                        variables = evaluation_variables(experiment, params, epoch, replica)
                        evaluated = evaluate(experiment, variables, epoch, replica)
                        by_replica[replica] = dataclasses.replace(found, **evaluated)
                skipped = None
                if settings.on_nonfinite == "skip":
                    skipped = int(np.sum(devices.fetch(state.nonfinite, mesh)))
                line = EpochRecord(
                    epoch=epoch - 1,
                    step=step,
                    replicas=tuple(by_replica),
                    seconds=time.monotonic() - epoch_started,
                    skipped_updates=skipped,
                )
                epoch_started = time.monotonic()
                held_out = line.mean("validation_elbo")
                if chosen is not None and held_out is not None:
                    chosen = choose(experiment, workdir, chosen, state, step, record.epochs, line)
                record.add(line)
                score = line.mean("train_elbo") if held_out is None else held_out
            waited = time.monotonic() - saved
            received, due = devices.agree(
                interruption.received,
                epoch == settings.epochs or waited >= settings.checkpoint_seconds,
            )
            if received or due:
                workdir.save(state, step, score)
                saved = time.monotonic()
            if received and epoch < settings.epochs:
                raise Interrupted(
                    int(received),
                    f"stopped after step {step}, which is "
                    f"saved in {workdir.path}; {how_to_resume(command)}",
                )
    if chosen is None:
        chosen = Chosen(state.params, jnp.full((settings.replicas,), settings.epochs, jnp.int32))
        chosen = chosen._replace(epoch=devices.put(chosen.epoch, mesh, "replica"))
    return state, chosen, record.epochs


def how_to_resume(command: str | None) -> str:
    """What a run that stops says about the next start."""
    return f"resume with: {command}" if command else "the same command resumes it"


def most_nonfinite(settings: Settings) -> int:
    """How many updates may be left out because a number was not finite."""
    return settings.max_nonfinite if settings.on_nonfinite == "skip" else 0


def scheduled(settings: Settings, epoch: int) -> tuple[list[float], list[float]]:
    """beta and the learning rate of an epoch, for every replica."""
    beta = [
        beta * float(schedules.warm_up(epoch, warmup_epochs))
        for beta, warmup_epochs in zip(
            settings.by_replica("beta"), settings.by_replica("warmup_epochs"), strict=True
        )
    ]
    learning_rate = [
        float(schedules.learning_rate(settings.schedule, initial, epoch, settings.epochs))
        for initial in settings.by_replica("learning_rate")
    ]
    return beta, learning_rate


def metrics_by_replica(experiment: Experiment, metrics: Metrics, epoch: int) -> list[ReplicaEpoch]:
    """What training found in an epoch, for every replica."""
    host = devices.fetch(metrics, experiment.mesh)
    beta, learning_rate = scheduled(experiment.settings, epoch)
    return [
        ReplicaEpoch(
            beta=beta[i],
            learning_rate=learning_rate[i],
            train_elbo=_number(host.train_elbo[i]),
            log_px=_number(host.log_px[i]),
            kl_per_layer=tuple(_number(kl) for kl in host.kl_per_layer[i]),
        )
        for i in range(experiment.settings.replicas)
    ]


def _number(mean: np.ndarray) -> float | None:
    return None if np.isnan(mean) else float(mean)


def check_finite(experiment: Experiment, workdir: Workdir, state: TrainState, epoch: int) -> None:
    """Looks whether training has met more numbers that are not finite than it may.

    Raises:
      NonFiniteError: it has; the message names the step and the first such quantity.
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
    batch = images[np.asarray(batches[position])]
    x, sample_key = training.step_inputs(experiment.preprocess, batch, key, step)
    quantity = diagnosis.first_nonfinite(
        experiment.model,
        stopped.params,
        x,
        sample_key,
        scheduled(settings, epoch)[0][replica],
        objective_of(settings),
    )
    of_seed = f" of seed {settings.seed + replica}" if settings.replicas > 1 else ""
    raise NonFiniteError(
        f"epoch {epoch}, step {step}{of_seed}: "
        f"{quantity or 'the loss or a gradient is not finite'}"
        + (f", after {limit} skipped updates" if limit else "")
        + f"; the last checkpoint in {workdir.path} is kept. Try a smaller --learning_rate or "
        "--max_gradient_norm=4 in a new --workdir" + ("" if limit else ", or --on_nonfinite=skip")
    )


def restore_chosen(experiment: Experiment, workdir: Workdir, state: TrainState) -> Chosen:
    """What validation has chosen so far; the state's parameters if nothing yet."""
    none = np.zeros((experiment.settings.replicas,), np.int32)
    first = Chosen(
        jax.tree.map(jnp.copy, state.params), devices.put(none, experiment.mesh, "replica")
    )
    restored = workdir.restore_chosen(first)
    return first if restored is None else restored[0]


def choose(
    experiment: Experiment,
    workdir: Workdir,
    chosen: Chosen,
    state: TrainState,
    step: int,
    lines: list[EpochRecord],
    line: EpochRecord,
) -> Chosen:
    """Keeps the replicas whose held-out ELBO is the best so far, and saves what is kept.

    A resumed run comes by the same states again, so that what a start that was killed had chosen
    beyond its last checkpoint is chosen again.
    """
    before = [one.each("validation_elbo") for one in lines if one.evaluated]
    now = line.each("validation_elbo")
    better = np.array([all(now[i] > then[i] for then in before) for i in range(len(now))])
    if not better.any():
        return chosen
    epoch = jnp.int32(line.epoch + 1)
    chosen = _take(
        devices.put(better, experiment.mesh, "replica"), Chosen(state.params, epoch), chosen
    )
    workdir.save_chosen(chosen, step)
    return chosen


@jax.jit
def _take(better: jax.Array, new: Chosen, old: Chosen) -> Chosen:
    """Of the replicas that are better the new one, of the others the old one."""

    def take(n: jax.Array, o: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *(1,) * (o.ndim - 1)), n, o)

    return Chosen(jax.tree.map(take, new.params, old.params), take(new.epoch, old.epoch))


def initial_params(experiment: Experiment, dataset_name: str) -> Any:
    """With --init_from the parameters of another run, of as many replicas or of one; else None.

    Raises:
      SettingsError: the other run's model is not this one.
      WorkdirError: there is no such run.
    """
    settings = experiment.settings
    if not settings.init_from:
        return None
    other = Path(settings.init_from)
    (params, _), config = read_trained(other), read_config(other)

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.shape[1:], tree)

    if shapes(params) != shapes(state_like(experiment).params):
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
    there = jax.tree.leaves(params)[0].shape[0]
    if there not in (1, settings.replicas):
        raise SettingsError(
            f"--init_from={settings.init_from}: it has {there} replicas; give --replicas={there}, "
            "or a run of one"
        )
    return jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (settings.replicas, *leaf.shape[1:])), params
    )


def make_config(
    settings: Settings, dataset: Dataset, experiment_name: str | None
) -> dict[str, Any]:
    """What config.json says: every setting, and the versions and device of the first start."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "experiment": experiment_name,
        "dataset": dataset.name,
        "data_sha256": dataset.sha256(),
        "settings": settings.changing_results(),
        "other_settings": settings.not_changing_results(),
        "versions": {
            "python": platform.python_version(),
            "lvae_jax": lvae_jax.__version__,
            **{package: metadata.version(package) for package in packages},
        },
        "device": devices.describe(),
    }


def log(line: str) -> None:
    """A line for whoever watches, of one process alone."""
    if devices.writes():
        print(line, file=sys.stderr, flush=True)


def tell(*lines: str) -> None:
    """What a run says at its end, of one process alone."""
    if devices.writes():
        print(*lines, sep="\n")
