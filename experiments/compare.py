"""Runs side by side: `python -m experiments.compare RUN...`, one table and overlaid curves.

A run is a workdir, finished or not; only its JSON files are read.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from experiments import cli, published
from experiments.errors import SettingsError, WorkdirError
from experiments.results import USED_KL, Run
from experiments.settings import PATH, setting
from experiments.show import figures, numbers
from experiments.store.files import write_text

NOTE = (
    "± is the standard deviation over seeds for a run with several of them. For one seed it is the "
    "standard error of the test log-likelihood over the test images."
)


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """The settings of a comparison."""

    output: str = setting("comparison", PATH, "folder for table.md and the figures")


def names(runs: Sequence[Run]) -> list[str]:
    """The folders' names; their paths if two names are equal."""
    last = [run.path.absolute().name for run in runs]  # absolute, so that "." has a name
    return last if len(set(last)) == len(last) else [str(run.path) for run in runs]


def table(runs: Sequence[Run]) -> str:
    """The runs as a Markdown table, one row per run; missing numbers are left empty."""
    header = [
        "run", "data set", "model", "epochs", "seed", "test log-likelihood", "the paper's",
        "test ELBO", "train ELBO", "KL of z_1, z_2, ...", f"units with KL > {USED_KL}",
        "training, s",
    ]  # fmt: skip
    rows = [_row(name, run) for name, run in zip(names(runs), runs, strict=True)]
    return numbers.markdown(header, *([_cell(text) for text in row] for row in rows))


def _cell(text: str) -> str:
    """A text, escaped, so that it opens no tag, link or code, and cannot end its cell."""
    return re.sub(r"([\\|<\[`])", r"\\\1", " ".join(text.splitlines()))


def _row(name: str, run: Run) -> tuple[str, ...]:
    settings, results, measured = run.settings, run.results, run.measured
    layers = numbers.layers(measured) if measured else []
    paper = published.find(run.config)
    seconds = results.training_seconds if results else sum(one.seconds for one in run.epochs)
    return (
        name,
        run.config["dataset"],
        f"{settings['model']}{settings['depth']}",
        f"{settings['epochs']}" if results else f"{len(run.epochs)} of {settings['epochs']}",
        numbers.seeds(settings),
        _log_likelihood(run),
        f"{paper.log_likelihood}{paper.qualifier}" if paper and paper.log_likelihood else "",
        numbers.number(measured, "test_elbo") if measured else "",
        numbers.number(results, "train_elbo") if results else "",
        ", ".join(layer.kl for layer in layers),
        ", ".join(layer.used for layer in layers),
        f"{seconds:,.0f}",
    )


def _log_likelihood(run: Run) -> str:
    """The test log-likelihood with its samples, seeds and images; empty if not finished."""
    if run.results is None:
        return ""
    of = [f"L_{run.results.eval_samples}"]
    if len(run.results.replicas) > 1:
        of.append(f"{len(run.results.replicas)} seeds")
        of += [f"each with its {name}" for name in numbers.different_by_replica(run.settings)]
    if part := numbers.part_of_the_test_set(run.settings, run.results):
        of.append(part)
    return f"{numbers.log_likelihood(run.results)} ({', '.join(of)})"


def compare(settings: CompareSettings, *workdirs: str) -> None:
    """Prints the table, and writes it and the figures.

    Args:
      settings: the output folder.
      *workdirs: the runs' folders.

    Raises:
      SettingsError: no runs were given, or one twice.
      WorkdirError: a folder holds no run, or no finished epoch.
      OSError: the output cannot be written.
    """
    from experiments.store.workdir import read_run

    if not workdirs:
        raise SettingsError("no runs given; name workdirs: python -m experiments.compare RUN...")
    for number, workdir in enumerate(workdirs):
        if any(Path(workdir).resolve() == Path(other).resolve() for other in workdirs[:number]):
            raise SettingsError(f"{workdir} is given twice; name every run once")
    runs = [read_run(Path(workdir)) for workdir in workdirs]
    for run in runs:
        if not run.epochs:
            raise WorkdirError(
                f"{run.path} has no finished epoch; leave it out, or wait if it trains"
            )
    text = f"{table(runs)}\n{NOTE}\n"
    print(text, end="")
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", text)
    by_name = dict(zip(names(runs), runs, strict=True))
    curves = figures.learning_curves({name: run.epochs for name, run in by_name.items()})
    figures.write_png(folder / "learning_curves.png", curves)
    layers = {name: run.measured or run.epochs[-1] for name, run in by_name.items()}
    figures.write_png(folder / "kl_per_layer.png", figures.kl_per_layer(layers))
    print(f"{folder} holds this table, learning_curves.png and kl_per_layer.png.")


if __name__ == "__main__":
    cli.start(compare, CompareSettings(), takes_paths=True)
