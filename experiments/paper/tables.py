"""The paper's tables and figures, of the runs that are finished, its numbers beside ours."""

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import published
from experiments.paper.plan import (
    PaperSettings,
    PlannedRun,
    plan,
    planned_runs,
    results_of,
    scaled,
)
from experiments.published import VARIANTS
from experiments.results import RunResults
from experiments.show import figures
from experiments.show.numbers import log_likelihood


def write_tables(paper: PaperSettings) -> None:
    """Writes results.csv and the tables, of the runs that are finished by now."""
    folder = Path(paper.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    runs = planned_runs(paper)
    (folder / "results.csv").write_text(results_csv(paper, runs), encoding="utf-8")
    if "table1" in paper.items:
        (folder / "table1.md").write_text(table_1(paper, plan(paper, "table1")), encoding="utf-8")
    if "table2" in paper.items:
        (folder / "table2.md").write_text(table_2(paper, plan(paper, "table2")), encoding="utf-8")


CSV_COLUMNS = (
    "run", "dataset", "variant", "depth", "epochs", "seed", "finished", "test_log_likelihood",
    "test_log_likelihood_standard_error", "eval_samples", "paper_log_likelihood", "test_elbo",
    "train_elbo", "kl_per_layer", "active_units", "effective_sample_size", "training_seconds",
    "device", "scale",
)  # fmt: skip


def results_csv(paper: PaperSettings, runs: Sequence[PlannedRun]) -> str:
    """A row a run; what an unfinished one does not have yet is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for planned in runs:
        finished = results_of(planned)
        row: dict[str, Any] = {
            "run": planned.name,
            "dataset": planned.experiment,
            "variant": planned.variant,
            "depth": planned.settings.depth,
            "epochs": planned.settings.epochs,
            "seed": planned.settings.seed,
            "finished": finished is not None,
            "scale": paper.scale,
            "paper_log_likelihood": paper_number(planned, finished),
        }
        if finished:
            found = finished.to_json()
            row |= {name: found[name] for name in CSV_COLUMNS if name not in row}
            for name in ("kl_per_layer", "active_units"):
                row[name] = " ".join(f"{value:g}" for value in found[name])
        writer.writerow(row)
    return text.getvalue()


def paper_number(planned: PlannedRun, finished: RunResults | None) -> float | None:
    """The paper's test log-likelihood for the run; None where it has none."""
    # Only its files tell a stand-in from the original, so before the run it passes for that.
    original = {"norb": "small_norb"}.get(planned.experiment, planned.experiment)
    dataset = finished.dataset if finished else original
    if dataset == "mnist" and f"+ {planned.variant}" in published.TABLE_1:
        return published.TABLE_1[f"+ {planned.variant}"]
    return published.log_likelihood(
        {"dataset": dataset, "settings": planned.settings.changing_results()}
    )


def _number(finished: RunResults | None) -> str:
    if finished is None:
        return ""
    return log_likelihood(finished)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _note(paper: PaperSettings, runs: Sequence[PlannedRun]) -> str:
    """What stands above a table: what its numbers are, and how they were made."""
    settings = runs[0].settings
    devices = {finished.device for run in runs if (finished := results_of(run))}
    return (
        f"Test log-likelihood, L_{settings.eval_samples}, in nats; ± is the standard error over "
        f"the test images. {settings.epochs:,} epochs, seed {settings.seed}"
        + (f", on {', '.join(sorted(devices))}" if devices else "")
        + f".{scaled(paper)}\n\nMade by `{command(paper)}`.\n\n"
    )


def command(paper: PaperSettings) -> str:
    """The command that makes what this one makes."""
    defaults = PaperSettings()
    given = []
    for name in ("only", "on", "scale", "seed", "eval_samples"):
        value = getattr(paper, name)
        if value != getattr(defaults, name):
            given.append(f"--{name}={','.join(value) if name == 'only' else value}")
    return shlex.join(["python", "-m", "experiments.paper", *given])


def table_1(paper: PaperSettings, runs: Sequence[PlannedRun]) -> str:
    """Table 1 as Markdown: the deepest ladder, and with fine-tuning."""
    rows = [["model", "the paper, MNIST", f"ours, {runs[0].experiment}", "L_1", "training, s"]]
    layers = runs[0].settings.depth
    names = [f"LVAE, {layers} layers", "+ fine-tuning", "+ fine-tuning, IW = 10"]
    for name, number, planned in zip(names, published.TABLE_1.values(), runs, strict=True):
        finished = results_of(planned)
        rows.append(
            [
                name,
                str(number),
                _number(finished),
                f"{finished.mean('test_elbo'):.2f}" if finished else "",
                f"{finished.training_seconds:,.0f}" if finished else "",
            ]
        )
    return f"# Table 1: {runs[0].experiment}\n\n{_note(paper, runs)}{_markdown(rows)}"


def table_2(paper: PaperSettings, runs: Sequence[PlannedRun]) -> str:
    """Table 2 as Markdown: a table a data set, the paper's numbers in brackets."""
    text = "# Table 2\n\n"
    for experiment in dict.fromkeys(planned.experiment for planned in runs):
        of_data = [planned for planned in runs if planned.experiment == experiment]
        by_place = {(planned.settings.depth, planned.variant): planned for planned in of_data}
        names = {finished.dataset for run in of_data if (finished := results_of(run))}
        rows = [["units", *VARIANTS]]
        for depth in sorted({planned.settings.depth for planned in of_data}):
            settings = of_data[-1].settings
            row = ["-".join(map(str, settings.latent_sizes[:depth]))]
            for variant in VARIANTS:
                planned = by_place.get((depth, variant))
                if planned is None:
                    row.append("")
                    continue
                finished = results_of(planned)
                number = paper_number(planned, finished)
                row.append(f"{_number(finished)} ({number})" if number else _number(finished))
            rows.append(row)
        text += f"## {', '.join(sorted(names)) or experiment}\n\n{_note(paper, of_data)}"
        if any(paper_number(planned, results_of(planned)) for planned in of_data):
            text += f"In brackets the paper's numbers. {published.TABLE_2_NOTE}\n\n"
        text += f"{_markdown(rows)}\n"
    return text


def write_figures(paper: PaperSettings) -> None:
    """Writes the figures, of the runs that are finished."""
    from experiments.store.workdir import read_run

    folder = Path(paper.workdir)
    for item in paper.items:
        found = [(planned, results_of(planned)) for planned in plan(paper, item)]
        finished = [(planned, results) for planned, results in found if results is not None]
        if not finished or item.startswith("table"):
            continue
        runs = {
            planned.variant: read_run(Path(planned.settings.workdir)) for planned, _ in finished
        }
        epochs = {name: run.epochs for name, run in runs.items()}
        title = f"{finished[0][1].dataset}.{scaled(paper)}"
        if item == "figure2":
            figure = figures.learning_curves(epochs)
        elif item == "figure3":
            figure = figures.by_depth(*_by_depth(finished))
        elif item == "figure4":
            figure = figures.kl_per_unit(epochs)
        elif item == "figure5":
            figure = figures.kl_per_layer({planned.variant: found for planned, found in finished})
        else:
            file = Path("figures") / "principal_components.png"
            figure = figures.above_each_other({name: run.path / file for name, run in runs.items()})
        figures.write_png(folder / f"{item}.png", figures.titled(figure, title))


def _by_depth(
    runs: Sequence[tuple[PlannedRun, RunResults]],
) -> tuple[dict[str, dict[str, dict[int, float]]], dict[str, tuple[str, float]]]:
    """Figure 3: what its panels hold, and the paper's number where there is one."""
    samples = runs[0][0].settings.eval_samples
    panels = {
        "train_elbo": "train, $L_1$",
        "test_elbo": "test, $L_1$",
        "test_log_likelihood": f"test, $L_{{{samples}}}$",
    }
    values: dict[str, dict[str, dict[int, float]]] = {title: {} for title in panels.values()}
    reference = {}
    for planned, finished in runs:
        for name, title in panels.items():
            curve = values[title].setdefault(planned.variant, {})
            curve[planned.settings.depth] = finished.mean(name)
        if finished.dataset == "mnist" and planned.variant == VARIANTS[-1]:
            number = published.TABLE_1["LVAE, 5 layers"]
            reference[panels["test_log_likelihood"]] = ("the paper's LVAE, 5 layers", number)
    return values, reference
