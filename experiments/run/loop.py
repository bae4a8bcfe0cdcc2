"""A whole run: set-up, training, evaluation, results."""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import processes
from experiments.errors import SettingsError
from experiments.progress import Progress
from experiments.results import EpochRecord
from experiments.run import devices, validation
from experiments.run.checkpointing import Checkpointing
from experiments.run.divergence import check_finite
from experiments.run.evaluation import measure_epoch
from experiments.run.final import evaluate_and_report
from experiments.run.program import TrainingProgram, compile_and_initialise, unfinished_warm_up
from experiments.run.record import Record
from experiments.run.setup import (
    Experiment,
    at_precision,
    continued,
    make_config,
    make_experiment,
    state_like,
)
from experiments.run.signals import Interruption
from experiments.run.validation import Chosen
from experiments.settings import Command, Settings
from experiments.show import console
from experiments.store.workdir import Workdir
from lvae_jax.data import Dataset
from lvae_jax.training import TrainState


def run(settings: Settings, dataset: Dataset, command: Command | None = None) -> None:
    """Trains and evaluates one model, or resumes an interrupted run.

    With `settings.replicas` > 1 it trains that many models at once, with consecutive seeds.

    Args:
      settings: checked settings.
      dataset: what to train and test on.
      command: the experiment's command; None if your own code calls this.

    Raises:
      SettingsError: settings that do not fit the data set, the devices or their memory, or
        differ between the run's processes.
      WorkdirError: the workdir cannot be used.
      NonFiniteError: training diverged.
      Interrupted: a signal stopped the run; its work is saved.
    """
    started = time.monotonic()
    devices.find_devices()
    path = Path(settings.workdir or f"runs/{dataset.name}-{settings.model}{settings.depth}")
    config = make_config(settings, dataset, command)
    refuse_differences(config, path, settings.overwrite)
    defaults = command.defaults if command else type(settings)()
    workdir = processes.everywhere(lambda: Workdir(path, config, settings.overwrite, defaults))
    if (found := workdir.results()) is not None:
        say(f"{path} is finished.", console.describe(found, config))
        return
    line = command and command.line(settings, path)
    precision = at_precision(settings.matmul_precision)
    with precision, Interruption() as interruption, contextlib.closing(workdir):
        # Set up the model, the data on the devices and the state. Only the lock is written before
        # everything that can refuse the run.
        experiment = make_experiment(settings, dataset)
        initial = {} if workdir.resumes() else continued(experiment, path)
        workdir.lock()
        report(experiment.describe())
        if unfinished := unfinished_warm_up(settings):
            report(unfinished)
        program, state = compile_and_initialise(experiment)
        state = state._replace(**devices.put(initial, experiment.mesh, "replica"))
        workdir.create()
        restored = workdir.restore(state_like(experiment))
        if restored is None and (path / "metrics.jsonl").exists():
            report(f"{path} holds no complete checkpoint: starting again from epoch 0")
        state, step = restored or (state, 0)

        # Train; then evaluate the chosen parameters and write results, figures and report.
        checkpointing = Checkpointing(experiment, workdir, interruption, line)
        chosen, epochs = train(experiment, program, workdir, checkpointing, state, step, started)
        found = evaluate_and_report(
            experiment, workdir, chosen, epochs, line, checkpointing.stop_if_interrupted
        )
    say(
        console.describe(found, config),
        f"{path / 'report.html'} shows it.",
        f"{path} is finished, {time.monotonic() - started:.0f} s after this start.",
    )


def train(
    experiment: Experiment,
    program: TrainingProgram,
    workdir: Workdir,
    checkpointing: Checkpointing,
    state: TrainState,
    step: int,
    started: float,
) -> tuple[Chosen, Sequence[EpochRecord]]:
    """Trains to the last epoch and writes metrics and checkpoints.

    Args:
      experiment: what to train.
      program: the compiled training program.
      workdir: the run's folder.
      checkpointing: decides when to save and to stop.
      state: the state after `step` steps; its buffers are donated.
      step: number of steps taken so far.
      started: when the run started, by `time.monotonic`.

    Returns:
      The parameters to evaluate, and all epochs, including those before a resume.

    Raises:
      NonFiniteError: a loss or a gradient was not finite.
      Interrupted: a signal stopped the run; its state is saved.
    """
    settings, per_epoch = experiment.settings, experiment.steps_per_epoch
    epoch, first_step = step // per_epoch, step
    if step:
        steps = f" and {step % per_epoch} steps" if step % per_epoch else ""
        report(f"resuming after epoch {epoch}{steps}")
    before = workdir.truncate_metrics(epoch)
    chosen = validation.restore(experiment, workdir, state, before)
    progress = Progress("epoch", settings.epochs, epoch, shown=processes.is_first())
    with Record(workdir, before, progress) as record:
        epoch_started, batches = time.monotonic(), None
        while epoch < settings.epochs:
            if batches is None or step % per_epoch == 0:
                batches = program.batches(state)
            state, metrics = program.take_steps(state, batches, epoch)
            taken = min(program.steps, (epoch + 1) * per_epoch - step)
            step, score = step + taken, None
            check_finite(experiment, workdir, state, epoch)
            if step == first_step + taken:
                report(
                    f"the first {taken} step{'s' * (taken != 1)} took until "
                    f"{time.monotonic() - started:.1f} s after this start, compilation included"
                )
            if step % per_epoch == 0:
                epoch += 1
                measured = measure_epoch(experiment, state, metrics, step, epoch_started)
                epoch_started = time.monotonic()
                chosen = validation.choose(
                    experiment, workdir, chosen, state, record.epochs, measured
                )
                record.add(measured)
                score = measured.mean("validation_elbo" if settings.validation else "train_elbo")
            checkpointing.after(state, step, score)
    return chosen or validation.after(experiment, state.evaluated, settings.epochs), record.epochs


def refuse_differences(config: Mapping[str, Any], path: Path, overwrite: bool) -> None:
    """Refuses processes of one run that were given different settings or data.

    Raises:
      SettingsError: another process has other ones than this one or the first.
    """
    data = {name: config[name] for name in ("data_sha256", "train_images", "test_images")}
    own = {**data, **config["settings"], "workdir": str(path), "overwrite": overwrite}
    first, *others = processes.exchange(own)
    differences = [
        f"{name} is {value} in process 0 and {other.get(name)} in process {index}"
        for index, other in enumerate(others, start=1)
        for name, value in first.items()
        if other.get(name) != value
    ]
    if differences:
        raise SettingsError(
            f"the processes of this run differ: {'; '.join(differences)}. Give all of them the "
            "same settings and data"
        )


def report(line: str) -> None:
    """Prints a line on standard error, from one process only."""
    if processes.is_first():
        print(line, file=sys.stderr, flush=True)


def say(*lines: str) -> None:
    """Prints lines on standard output, from one process only."""
    if processes.is_first():
        print(*lines, sep="\n")
