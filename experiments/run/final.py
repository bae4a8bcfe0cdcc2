"""The end of a run: evaluates the chosen parameters and writes results, figures and report."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

from experiments import processes
from experiments.results import EpochRecord, ReplicaResults, RunResults
from experiments.run import devices, draws
from experiments.run.evaluation import evaluate_fully, evaluation_variables
from experiments.run.setup import Experiment
from experiments.run.validation import Chosen
from experiments.show import drawing, page, tensorboard
from experiments.store.workdir import Workdir, read_run


def evaluate_and_report(
    experiment: Experiment,
    workdir: Workdir,
    chosen: Chosen,
    epochs: Sequence[EpochRecord],
    command: str | None,
    stop_if_interrupted: Callable[[], None],
) -> RunResults:
    """Evaluates each replica; writes its model, the figures, the report and results.json.

    Args:
      experiment: the run.
      workdir: its folder.
      chosen: the parameters to evaluate.
      epochs: all of the run's epochs.
      command: the run's command line, if there is one.
      stop_if_interrupted: called between batches; may raise.

    Returns:
      The run's results.
    """
    started, settings = time.monotonic(), experiment.settings
    replicas = [
        _evaluate_replica(experiment, workdir, chosen, i, stop_if_interrupted)
        for i in range(settings.replicas)
    ]
    trained = sum(epoch.seconds for epoch in epochs)
    results = RunResults(
        dataset=experiment.dataset.name,
        model=settings.model,
        epochs=settings.epochs,
        seed=settings.seed,
        eval_samples=settings.eval_samples,
        eval_images=len(experiment.test_x[: settings.eval_subset or None]),
        replicas=tuple(replicas),
        training_seconds=trained,
        wall_seconds=trained + time.monotonic() - started,
        device=devices.describe(),
    )

    def show() -> None:
        run = dataclasses.replace(read_run(workdir.path), results=results)
        page.write(run, command)
        with contextlib.closing(tensorboard.Events(workdir.path, "figures")) as events:
            events.add_figures(workdir.path / "figures", settings.epochs)

    processes.by_first(show)
    workdir.write_results(results)
    return results


def _evaluate_replica(
    experiment: Experiment,
    workdir: Workdir,
    chosen: Chosen,
    replica: int,
    stop_if_interrupted: Callable[[], None],
) -> ReplicaResults:
    stop_if_interrupted()
    settings, mesh = experiment.settings, experiment.mesh
    epoch = int(devices.fetch(chosen.epoch, mesh)[replica])
    params = devices.replica_of(chosen.params, replica, mesh)
    variables = evaluation_variables(experiment, params, epoch, replica)
    host = devices.fetch(variables, mesh)
    workdir.save_model(
        experiment.model,
        host,
        {"dataset": experiment.dataset.name, "epoch": epoch, "seed": settings.seed + replica},
        replica if settings.replicas > 1 else None,
    )
    if replica == 0:
        folder = workdir.path / "figures"
        processes.by_first(lambda: drawing.draw_model(draws.draw(experiment, host), folder))
    stop_if_interrupted()
    return evaluate_fully(experiment, variables, epoch, replica, stop_if_interrupted)
