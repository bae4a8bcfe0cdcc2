"""Tables and figures of probe, outliers and certify."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.show.figures import STYLE

CLASSIFIERS = {"knn": "k-nearest neighbours", "logistic": "logistic regression"}


def with_error(number: Mapping[str, float | None], digits: int = 2) -> str:
    """`mean ± spread`; the mean alone if there is no spread."""
    mean, spread = number["mean"], _spread(number)
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _spread(number: Mapping[str, float | None]) -> float | None:
    """The standard deviation over several choices of the images, or else the standard error."""
    return number.get("standard_deviation", number.get("standard_error"))


def probe_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows of probe's table: test errors in per cent."""
    header = ["representation", "units", "best unit, nats"]
    counts = list(results["representations"][0]["errors"])
    header += [f"{name}, {int(n):,} labels" for name in ("k-NN", "logistic") for n in counts]
    rows = []
    for entry in results["representations"]:
        row = [entry["name"], str(entry["units"]), _best_unit(entry)]
        row += [with_error(entry["errors"][n][name]) for name in CLASSIFIERS for n in counts]
        rows.append(row)
    return [header, *rows]


def _best_unit(entry: Mapping[str, Any]) -> str:
    """The largest information of a unit; version 0.2.0 did not write its standard error."""
    if "information" not in entry:
        return ""
    best = int(np.argmax(entry["information"]))
    information = entry["information"][best]
    if "information_standard_error" not in entry:
        return f"{information:.3f}"
    error = entry["information_standard_error"][best]
    return with_error({"mean": information, "standard_error": error}, 3)


def probe_note(results: Mapping[str, Any]) -> str:
    """Explains the numbers of probe's table."""
    return (
        "Test errors in per cent; ± is the standard deviation over "
        f"{results['draws']} choices of the labelled images or, with all labels, the standard "
        "error over the test images. Best unit: the largest mutual information of a unit with the "
        "class, and its standard error over the training images. Active units by layer: "
        f"{results['active_units']}."
    )


def probe(results: Mapping[str, Any]) -> Figure:
    """Test errors of both classifiers by representation, one series per number of labels."""
    entries = results["representations"]
    names = [f"{entry['name']} ({entry['units']})" for entry in entries]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 0.3 * len(names) + 1.2))
        for axes, (key, title) in zip(
            figure.subplots(1, 2, sharey=True), CLASSIFIERS.items(), strict=True
        ):
            for number in entries[0]["errors"]:
                errors = [entry["errors"][number][key] for entry in entries]
                axes.errorbar(
                    [error["mean"] for error in errors],
                    range(len(names)),
                    xerr=[_spread(error) for error in errors],
                    fmt="o",
                    markersize=4,
                    label=f"{int(number):,} labels",
                )
            axes.set_title(title)
            axes.set_xlabel("test error, %")
            axes.set_xlim(left=0)
            axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.legend()
    return figure


def outliers(scores: Mapping[str, tuple[np.ndarray, np.ndarray]], names: tuple[str, str]) -> Figure:
    """A histogram of each score for the run's test images and for the others.

    Args:
      scores: by name, the scores of both data sets, in nats.
      names: the names of the data sets.
    """
    columns = min(4, len(scores))
    rows = -(-len(scores) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.6 * columns, 2.2 * rows + 0.3))
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, pair) in zip(grid, scores.items(), strict=False):
            low, high = np.quantile(np.concatenate(pair), [0.005, 0.995])
            edges = np.linspace(low, high, 40)
            for values, name in zip(pair, names, strict=True):
                axes.hist(values, edges, alpha=0.6, density=True, label=name)
            axes.set_title(title)
            axes.set_xlabel("nats")
            axes.set_yticks([])
        for axes in grid[len(scores) :]:
            axes.set_visible(False)
        handles_and_labels = grid[0].get_legend_handles_labels()
        figure.legend(*handles_and_labels, loc="outside lower center", ncols=2)
    return figure


def certify(above: np.ndarray, below: np.ndarray, samples: int) -> Figure:
    """Per image, how far both bounds of log p(x) lie above the importance-sampled estimate.

    Args:
      above: upper bound minus L_K per image, in nats.
      below: lower bound minus L_K.
      samples: K.
    """
    order = np.argsort(above)
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 3))
        axes = figure.subplots()
        axes.plot(above[order], ".", label="upper bound")
        axes.plot(below[order], ".", label="lower bound")
        axes.axhline(0, linewidth=1, color="black")
        axes.set_xlabel(f"images, in order of the upper bound less $L_{{{samples}}}$")
        axes.set_ylabel(f"nats above $L_{{{samples}}}$")
        axes.legend()
    return figure
