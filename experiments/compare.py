"""Runs side by side: `python -m experiments.compare RUN...`, one table and overlaid curves.

A run is a workdir, finished or not; its JSON files are all that is read.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import cli, published
from experiments.errors import SettingsError, WorkdirError
from experiments.replicas import each
from experiments.settings import PATH, setting
from experiments.show import figures
from experiments.show.figures import USED_KL, Lines, used_units
from experiments.show.shown import (
    count_with_deviation,
    different_by_replica,
    over_replicas,
    part_of_the_test_set,
    seeds,
    with_deviation,
    with_error,
)

NOTE = (
    "± is the standard deviation over seeds where a run has several of them; else, of the test "
    "log-likelihood, its standard error over the test images."
)


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Where the comparison goes."""

    output: str = setting("comparison", PATH, "folder for table.md and the figures")


class Run(NamedTuple):
    """The files of a run."""

    path: Path
    config: Mapping[str, Any]
    lines: Lines
    results: Mapping[str, Any] | None
    """None while it is not finished."""


def read(path: Path) -> Run:
    """Reads a run's files.

    Raises:
      WorkdirError: the folder is no run's.
    """
    from experiments.store.workdir import read_config, read_json, read_metrics

    return Run(path, read_config(path), read_metrics(path), read_json(path / "results.json"))


def names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, or their paths where two have the same."""
    last = [run.path.absolute().name for run in runs]  # "." has a name too
    return last if len(set(last)) == len(last) else [str(run.path) for run in runs]


def table(runs: Sequence[Run]) -> str:
    """The runs as a Markdown table, a row a run; what a run does not have yet is left empty."""
    header = (
        "run", "data set", "model", "epochs", "seed", "test log-likelihood", "the paper's",
        "test ELBO", "train ELBO", "KL of z_1, z_2, ...", f"units with KL > {USED_KL}",
        "training, s",
    )  # fmt: skip
    rows = [header, ("---",) * len(header)]
    rows += [_row(name, run) for name, run in zip(names(runs), runs, strict=True)]
    return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in rows)


def _cell(text: str) -> str:
    """A text as it is: no stroke ends the cell, no line's end the table; no HTML, link or code."""
    return re.sub(r"([\\|<\[`])", r"\\\1", " ".join(text.splitlines()))


def _row(name: str, run: Run) -> tuple[str, ...]:
    settings, results = run.config["settings"], run.results
    last = figures.last_measured(run.lines, results)
    likelihood, train_elbo, epochs = "", "", f"{len(run.lines)} of {settings['epochs']}"
    if results:
        of = [f"L_{results['eval_samples']}"]
        if len(each(results)) > 1:
            of.append(f"{len(each(results))} seeds")
            of += [f"each with its {name}" for name in different_by_replica(settings)]
            likelihood = over_replicas(results, "test_log_likelihood")
        else:
            likelihood = with_error(results)
        if part := part_of_the_test_set(settings, results):
            of.append(part)
        likelihood += f" ({', '.join(of)})"
        train_elbo, epochs = over_replicas(results, "train_elbo"), str(settings["epochs"])
    paper = published.log_likelihood(run.config)
    kl = zip(*figures.measured_kl_per_layer([], last), strict=True) if last else ()
    return (
        name,
        run.config["dataset"],
        f"{settings['model']}{settings['depth']}",
        epochs,
        seeds(settings),
        likelihood,
        "" if paper is None else str(paper),
        over_replicas(last, "test_elbo") if last else "",
        train_elbo,
        ", ".join(map(with_deviation, kl)),
        ", ".join(map(count_with_deviation, used_units(last))) if last else "",
        f"{sum(line['seconds'] for line in run.lines):,.0f}",
    )


def compare(settings: CompareSettings, *workdirs: str) -> None:
    """Prints the table, and writes it and the figures.

    Args:
      settings: where to.
      *workdirs: of the runs.

    Raises:
      SettingsError: there are none, or the output has no place.
      WorkdirError: one is no run's, or has no finished epoch.
    """
    if not workdirs:
        raise SettingsError("no runs given; name workdirs: python -m experiments.compare RUN...")
    runs = [read(Path(workdir)) for workdir in workdirs]
    for run in runs:
        if not run.lines:
            raise WorkdirError(f"{run.path} has no finished epoch yet; leave it out or wait")
    text = f"{table(runs)}\n{NOTE}\n"
    print(text, end="")
    folder = Path(settings.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"--output={folder}: cannot write there ({error.strerror}); give another folder"
        ) from error
    (folder / "table.md").write_text(text, encoding="utf-8")
    by_name = dict(zip(names(runs), runs, strict=True))
    curves = figures.learning_curves({name: run.lines for name, run in by_name.items()})
    figures.write_png(folder / "learning_curves.png", curves)
    layers = {
        name: figures.measured_kl_per_layer(run.lines, run.results) for name, run in by_name.items()
    }
    figures.write_png(folder / "kl_per_layer.png", figures.kl_per_layer(layers))
    print(f"{folder} holds this table, learning_curves.png and kl_per_layer.png.")


if __name__ == "__main__":
    cli.start(compare, CompareSettings(), arguments="RUN...")
