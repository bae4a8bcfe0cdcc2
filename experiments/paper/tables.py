"""The paper's tables and figures from the finished runs, with its numbers beside ours."""

import csv
import dataclasses
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import published
from experiments.errors import WorkdirError
from experiments.paper import claims
from experiments.paper.plan import (
    OF_RUNS,
    TABLE_1_ROWS,
    PaperSettings,
    PlannedRun,
    plan,
    planned_runs,
    results_of,
    scaled,
)
from experiments.published import VARIANTS
from experiments.results import EpochRecord, RunResults
from experiments.settings import as_flag
from experiments.show import figures
from experiments.show.numbers import log_likelihood, markdown, number
from experiments.store.files import write_text

Found = Sequence[tuple[PlannedRun, RunResults | None]]
"""Runs with their results; None for an unfinished run."""


def write_tables(paper: PaperSettings) -> None:
    """Writes results.csv, the tables and the claims from the runs finished so far."""
    folder = Path(paper.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {planned.name for planned in planned_runs(paper)}
    every = _found(paper, planned_runs(_of_all(paper)))
    kept = [(planned, results) for planned, results in every if results or planned.name in chosen]
    texts = {"results.csv": results_csv(paper, kept)}
    for name, text in (texts | markdown_tables(paper)).items():
        write_text(folder / name, text)


def markdown_tables(paper: PaperSettings) -> dict[str, str]:
    """The tables and the claims from the runs finished so far, by file name."""
    tables = {"table1": table_1, "table2": table_2, "figure3": figure_3}
    texts = {
        f"{item}.md": table(paper, _found(paper, plan(paper, item)))
        for item, table in tables.items()
        if item in paper.items
    }
    return texts | {"claims.md": _claims(paper)}


def _of_all(paper: PaperSettings) -> PaperSettings:
    """The plan of all items, whose runs its folder may hold, too."""
    return dataclasses.replace(paper, only=("all",))


def _found(paper: PaperSettings, runs: Sequence[PlannedRun]) -> Found:
    """Runs of any items with their results.

    A run that no chosen item needs counts as unfinished if it was made with other settings.
    """
    chosen = {planned.name for planned in planned_runs(paper)}

    def results(planned: PlannedRun) -> RunResults | None:
        try:
            return results_of(planned)
        except WorkdirError:
            if planned.name in chosen:
                raise
            return None

    return [(planned, results(planned)) for planned in runs]


CSV_COLUMNS = (
    "run", "dataset", "variant", "depth", "epochs", "seed", "replicas", "finished",
    "test_log_likelihood", "test_log_likelihood_standard_error",
    "test_log_likelihood_standard_deviation", "eval_samples", "eval_images",
    "paper_log_likelihood", "test_elbo", "train_elbo", "kl_per_layer", "active_units",
    "effective_sample_size", "training_seconds", "device", "scale",
)  # fmt: skip


def results_csv(paper: PaperSettings, found: Found) -> str:
    """A row per run, of means over its replicas; the results of an unfinished run are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for planned, results in found:
        row: dict[str, Any] = {
            "run": planned.name,
            "dataset": _dataset(planned, found),
            "variant": planned.variant,
            "depth": planned.settings.depth,
            "epochs": planned.settings.epochs,
            "seed": planned.settings.seed,
            "replicas": planned.settings.replicas,
            "finished": results is not None,
            "scale": paper.scale,
            "paper_log_likelihood": paper_number(planned, found),
        }
        if results:
            values = results.to_json()
            deviation = results.deviation("test_log_likelihood")
            row["test_log_likelihood_standard_deviation"] = deviation
            row |= {name: values[name] for name in CSV_COLUMNS if name not in row}
            for name in ("kl_per_layer", "active_units"):
                row[name] = " ".join(f"{value:g}" for value in values[name])
        writer.writerow(row)
    return text.getvalue()


def paper_number(planned: PlannedRun, found: Found) -> float | None:
    """The paper's test log-likelihood for the model of a run; None if it has none."""
    if _dataset(planned, found) == "mnist" and planned.settings.init_from:
        (row,) = (row for row, variant in TABLE_1_ROWS.items() if variant == planned.variant)
        return published.TABLE_1[row][0]
    paper = _published(planned, found)
    return paper.log_likelihood if paper else None


def table_1(paper: PaperSettings, found: Found) -> str:
    """Table 1 as Markdown: the paper's seven rows, with our numbers beside the paper's models."""
    first = found[0][0]
    by_variant = {planned.variant: results for planned, results in found}
    ours, *others = _bound_names(found)
    header = ["model", "source", "MNIST, as printed", f"ours, {first.experiment}: {ours}", *others]
    rows = [[*header, "training, s"]]
    for name, (printed, source) in published.TABLE_1.items():
        results = by_variant.get(TABLE_1_ROWS.get(name, ""))
        seconds = f"{results.training_seconds:,.0f}" if results else ""
        rows.append([name, source, f"{printed:.2f}", *_bounds(results), seconds])
    layers = first.settings.depth
    text = f"# Table 1: {first.experiment}\n\n{_note(paper, found, bounds=True)}{markdown(*rows)}"
    text += f"\nOurs has {layers} layers.\n" * (layers != 5)
    text += "\nFine-tuning continues ours without it; its time is that of its own epochs.\n"
    return text + f"\n{published.PARAMETERS_NOTE}\n" * (first.experiment == "mnist")


def _bound_names(found: Found) -> list[str]:
    """The headings of the cells that `_bounds` returns."""
    name = f"L_{found[0][0].settings.eval_samples}"
    return [name, "L_1", f"{name} - L_1"]


def _bounds(results: RunResults | None) -> list[str]:
    """Cells with L_K, L_1 and their difference; empty for an unfinished run."""
    if results is None:
        return ["", "", ""]
    return [log_likelihood(results), number(results, "test_elbo"), f"{results.bound_gap:.2f}"]


def table_2(paper: PaperSettings, found: Found) -> str:
    """Table 2 as Markdown: a table per data set, with the paper's numbers in brackets."""
    text = "# Table 2\n\n"
    for experiment in dict.fromkeys(planned.experiment for planned, _ in found):
        of_data = [
            (planned, results) for planned, results in found if planned.experiment == experiment
        ]
        names = sorted({results.dataset for _, results in of_data if results})
        rows = [["units", *VARIANTS]]
        for depth in sorted({planned.settings.depth for planned, _ in of_data}):
            units = of_data[-1][0].settings.latent_sizes[:depth]
            cells = {
                planned.variant: _with_paper(results, paper_number(planned, of_data))
                for planned, results in of_data
                if planned.settings.depth == depth
            }
            rows.append(["-".join(map(str, units)), *(cells.get(v, "") for v in VARIANTS)])
        text += f"## {', '.join(names) or experiment}\n\n{_note(paper, of_data)}"
        if any(paper_number(planned, of_data) for planned, _ in of_data):
            text += f"Brackets hold the paper's numbers{_own_settings(of_data)}.\n\n"
            if experiment == "omniglot":
                text += f"{published.OMNIGLOT_NOTE}\n\n"
            if experiment == "norb":
                text += f"{published.NORB_NOTE}\n\n"
        text += f"{markdown(*rows)}\n"
    return text


def _own_settings(found: Found) -> str:
    """Qualifies the paper's numbers unless the runs have every setting that the paper states."""
    numbers = [_published(planned, found) for planned, _ in found]
    same = all(number is None or number.same_settings for number in numbers)
    return "" if same else published.OWN_SETTINGS


def _published(planned: PlannedRun, found: Found) -> published.Published | None:
    """The paper's numbers for the model of a run."""
    settings = planned.settings.changing_results()
    return published.find({"dataset": _dataset(planned, found), "settings": settings})


def _dataset(planned: PlannedRun, found: Found) -> str:
    """The name of a run's data set.

    An unfinished run will read the files that the finished ones of its experiment have read; if
    there are none, the original ones.
    """
    names = {
        other.name: results.dataset
        for other, results in found
        if results and other.experiment == planned.experiment
    }
    original = {"norb": "small_norb"}.get(planned.experiment, planned.experiment)
    return names.get(planned.name) or next(iter(names.values()), original)


def _with_paper(results: RunResults | None, printed: float | None) -> str:
    ours = log_likelihood(results) if results else ""
    return f"{ours} ({printed})" if printed else ours


def figure_3(paper: PaperSettings, found: Found) -> str:
    """The numbers of Figure 3 as Markdown, beside those in the paper's text."""
    own = _own_settings(found)
    names = [*_bound_names(found), f"the paper's L_1{own}", f"the paper's L_5000{own}"]
    rows = [["model", "layers", "train L_1", *names]]
    for planned, results in found:
        printed = _published(planned, found)
        rows.append(
            [
                planned.variant,
                f"{planned.settings.depth}",
                number(results, "train_elbo") if results else "",
                *_bounds(results),
                *(
                    "" if value is None else f"{value}"
                    for value in (printed and printed.test_elbo, printed and printed.log_likelihood)
                ),
            ]
        )
    experiment = found[0][0].experiment
    text = f"# Figure 3: {experiment}\n\n{_note(paper, found, bounds=True)}{markdown(*rows)}"
    best = f"L_5000 {published.BEST_VAE}{own}"
    note = f"\nThe paper's best VAE, whose depth is not stated: {best}.\n"
    return text + note * (experiment == "mnist")


def _note(paper: PaperSettings, found: Found, bounds: bool = False) -> str:
    """The note above a table: what its numbers are, and the command that makes them.

    Args:
      paper: the plan.
      found: the runs in the table.
      bounds: whether it has the columns of `_bounds`, not the log-likelihood alone.
    """
    settings = found[0][0].settings
    devices = sorted({results.device for _, results in found if results})
    images, seeds = settings.eval_subset, f"seed {settings.seed}"
    if any(results and results.eval_images < images for _, results in found):
        images = 0  # a smaller test set is evaluated whole
    spread = "standard error over the test images"
    if settings.replicas > 1:
        seeds = f"mean over the seeds {settings.seed} to {settings.seed + settings.replicas - 1}"
        spread = "standard deviation over the seeds"
    return (
        f"Test log-likelihood, L_{settings.eval_samples}, "
        + f"of the first {images:,} test images, " * bool(images)
        + f"in nats; ± is the {spread}. {settings.epochs:,} epochs, {seeds}"
        + (f", on {', '.join(devices)}" if devices else "")
        + "."
        + " L_1 is of all test images, its difference from L_K of these." * bool(images and bounds)
        + f"{scaled(paper)}\n\nMade by `{command(paper)}`.\n\n"
    )


def command(paper: PaperSettings) -> str:
    """The command line that makes the same tables and figures."""
    defaults = PaperSettings()
    given = [
        as_flag(name, value)
        for name in ("only", "on", "scale", *OF_RUNS)
        if (value := getattr(paper, name)) != getattr(defaults, name)
    ]
    return shlex.join(["python", "-m", "experiments.paper", *given])


def _claims(paper: PaperSettings) -> str:
    """The paper's claims about its figures, and whether they hold for the finished runs."""
    text = f"# The paper's claims\n\nMade by `{command(paper)}`.{scaled(paper)}\n"
    every = _of_all(paper)
    for item in every.items:
        runs = plan(every, item)
        depth = max(planned.settings.depth for planned in runs)
        sentences = claims.of(item, _by_model(_found(paper, runs)), depth)
        if sentences:
            text += f"\n## {item[:-1].capitalize()} {item[-1]}\n\n"
            text += "".join(f"- {sentence}\n" for sentence in sentences)
    return text


def _by_model(found: Found) -> dict[tuple[str, int], RunResults]:
    """The results of finished runs by variant and depth."""
    return {(p.variant, p.settings.depth): results for p, results in found if results}


def write_figures(paper: PaperSettings) -> None:
    """Writes the figures from the finished runs."""
    folder = Path(paper.workdir)
    for item in paper.items:
        planned = plan(paper, item)
        found = [(p, results) for p, results in _found(paper, planned) if results is not None]
        if not found or item.startswith("table"):
            continue
        folders = {p.variant: Path(p.settings.workdir) for p, _ in found}
        if item == "figure2":
            figure = figures.learning_curves(_epochs(folders))
        elif item == "figure3":
            figure = figures.by_depth(*_by_depth(found))
        elif item == "figure4":
            figure = figures.kl_per_unit(_epochs(folders))
        elif item == "figure5":
            figure = figures.kl_per_layer({p.variant: results for p, results in found})
        else:
            file = Path("figures") / "principal_components.png"
            figure = figures.stacked({variant: path / file for variant, path in folders.items()})
        part = f", {len(found)} of {len(planned)} runs" if len(found) < len(planned) else ""
        warning = f".{scaled(paper)}" if scaled(paper) else ""
        figure.suptitle(f"{found[0][1].dataset}{part}{warning}", fontsize=10, wrap=True)
        figures.write_png(folder / f"{item}.png", figure)


def _epochs(folders: Mapping[str, Path]) -> dict[str, list[EpochRecord]]:
    from experiments.store.workdir import read_metrics

    return {variant: read_metrics(path) for variant, path in folders.items()}


def _by_depth(
    found: Sequence[tuple[PlannedRun, RunResults]],
) -> tuple[dict[str, dict[str, dict[int, list[float]]]], Mapping[str, Mapping[str, float]]]:
    """Figure 3: the curves of its panels, and on MNIST the numbers of the paper's text."""
    samples = found[0][0].settings.eval_samples
    panels = {
        "train_elbo": "train, $L_1$",
        "test_elbo": "test, $L_1$",
        "test_log_likelihood": f"test, $L_{{{samples}}}$",
    }
    curves: dict[str, dict[str, dict[int, list[float]]]] = {title: {} for title in panels.values()}
    for planned, results in found:
        for name, title in panels.items():
            curve = curves[title].setdefault(planned.variant, {})
            curve[planned.settings.depth] = results.each(name)
    if found[0][1].dataset != "mnist":
        return curves, {}
    own = _own_settings(found)
    ladder, vae = f"the paper's LVAE, 5 layers{own}", f"the paper's best VAE{own}"
    elbo, best = published.TEST_ELBO, published.BEST_VAE
    return curves, {
        panels["test_elbo"]: {ladder: elbo["LVAE+BN+WU", 5], vae: elbo["VAE+BN+WU", 3]},
        panels["test_log_likelihood"]: {ladder: published.TABLE_1["LVAE, 5-layer"][0], vae: best},
    }
