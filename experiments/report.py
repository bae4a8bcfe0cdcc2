"""The report of a run, finished or not: `python -m experiments.report WORKDIR`.

Draws all figures from the newest checkpoint (or the one chosen by validation) and the metrics so
far, and writes report.html with all of them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from experiments import cli, registry
from experiments.errors import SettingsError, WorkdirError
from experiments.results import Run
from experiments.settings import TEXT, setting, whole


@dataclasses.dataclass(frozen=True)
class ReportSettings(registry.MovedData):
    """The settings of a report."""

    layer: int = setting(
        0, whole(0), "layer in which to interpolate, from 1 for the bottom one; 0: the top layer"
    )
    experiment: str = setting("", TEXT, "experiment, such as mnist, if no config.json names it")


def report(path: Path, layer: int | None = None, **changed: str) -> None:
    """Draws a run's figures and writes its report.html.

    Args:
      path: the workdir. If your own code made the run, rather than an experiment's command, the
        figures that need its model are not drawn again.
      layer: see `draws.draw`.
      **changed: settings that do not change results, such as `data_dir`; and `experiment`, for a
        run that does not name it.

    Raises:
      WorkdirError: the folder holds no run, or no finished epoch, or cannot be written to.
      DataError: the data set is not available, or is another one.
    """
    from experiments.run import devices
    from experiments.show import page
    from experiments.store.files import check_writable
    from experiments.store.workdir import read_run

    check_writable(path)
    devices.find_devices()
    run = read_run(path)
    experiment = changed.pop("experiment", run.config.get("experiment"))
    run = dataclasses.replace(run, config=run.config | {"experiment": experiment})
    if not run.epochs:
        raise WorkdirError(f"{path} has no finished epoch; wait for one if it trains")
    if experiment is not None:
        _draw_model(run, layer, changed)
    elif layer is not None:
        raise WorkdirError(
            f"{path} names no experiment, so its model cannot be drawn again; give --experiment, "
            "or leave --layer out"
        )
    page.write(run, registry.command(run.config, path))


def _draw_model(run: Run, layer: int | None, changed: Mapping[str, str]) -> None:
    """Draws the figures that need the model of the first replica."""
    import jax

    from experiments.run import devices, draws
    from experiments.run.evaluation import evaluation_variables
    from experiments.run.setup import at_precision, make_experiment
    from experiments.show import drawing
    from experiments.store.workdir import read_chosen_epochs, read_trained

    settings = registry.settings_of(run.config, **changed)
    params, step = read_trained(run.path)
    if layer is not None and layer > settings.depth:
        layers = f"{settings.depth} layer{'s' * (settings.depth != 1)}"
        raise WorkdirError(
            f"--layer={layer}: the model of {run.path} has {layers}; give 1 to {settings.depth}"
        )
    dataset = registry.load(run.config, run.path, **changed)
    experiment = make_experiment(settings, dataset)
    first = devices.put(jax.tree.map(lambda leaf: leaf[0], params), experiment.mesh)
    chosen = read_chosen_epochs(run.path)
    epoch = chosen[0] if chosen else step // experiment.steps_per_epoch
    # As the run computes and draws them, with the programs that it has compiled.
    with at_precision(settings.matmul_precision):
        variables = evaluation_variables(experiment, first, epoch)
        drawn = draws.draw(experiment, jax.device_get(variables), layer)
    drawing.draw_model(drawn, run.path / "figures")


def main(settings: ReportSettings, *workdirs: str) -> None:
    """Writes the report of the workdir on the command line.

    Raises:
      SettingsError: not exactly one workdir was given.
    """
    if len(workdirs) != 1:
        raise SettingsError("give one workdir: python -m experiments.report WORKDIR")
    from experiments.run import compilation_cache

    compilation_cache.enable("")
    changed = {name: value for name, value in dataclasses.asdict(settings).items() if value}
    report(Path(workdirs[0]), **changed)
    print(f"{Path(workdirs[0]) / 'report.html'} is written.")


if __name__ == "__main__":
    cli.start(main, ReportSettings(), takes_paths=True)
