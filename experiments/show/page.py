"""report.html: one page about a run, which needs no network."""

import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from experiments import published
from experiments.errors import WorkdirError
from experiments.results import USED_KL, Run, RunResults
from experiments.settings import as_typed
from experiments.show import drawing, numbers, uses
from experiments.store.files import read_json, write_text

NAME = "report.html"

CAPTIONS = {
    "learning_curves": (
        "Learning curves",
        "L₁ with beta = 1 of the training set (full line: each epoch's mean over its steps, "
        "normalised by their batches) and of the test set (dashed line, normalised by the "
        "statistics of the training set). The paper's Figure 2.",
    ),
    "kl_per_unit": (
        "KL of every unit over training",
        "A row of panels per layer, the top layer uppermost, its units sorted by their last KL. "
        "White units are not used. The paper's Figure 4.",
    ),
    "kl_per_layer": (
        "KL by layer",
        "What each layer adds, from the bottom to the top, on the test set. The paper's Figure 5.",
    ),
    "principal_components": (
        "Principal components of every layer",
        "A posterior sample of each layer for test images, on its two principal components, "
        "coloured by label where there are labels, grey where the label is unknown. The paper's "
        "Figure 6.",
    ),
    "samples": ("Samples", "Means of p(x | z₁) for draws from the prior."),
    "reconstructions": (
        "Reconstructions",
        "Rows of test images, each above a row of their reconstructions.",
    ),
    "layers": (
        "What each layer knows",
        "Test images; one sample of each from its whole posterior; and, by layer, two samples that "
        "keep the upper layers and draw those below anew from their priors. What changes between "
        "the two is not determined by the kept layers.",
    ),
    "interpolations": (
        "Interpolations",
        "From one test image to another along a straight line in one layer, the noise of the "
        "layers below held fixed.",
    ),
}
"""Title and explanation of each figure, in the order of the page."""

OF_REPLICAS = {
    "learning_curves": "Lines with markers: the mean over the replicas; thin lines: each replica.",
    "kl_per_layer": "Bars: the mean over the replicas; error bars: their standard deviation.",
}
"""Added to the captions for a run with replicas; the other figures show the first replica."""


PICTURES = ("samples", "reconstructions")
"""Figures without text, which may shrink in a narrow window."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


def render(
    run: Run,
    command: str | None,
    images: Mapping[str, bytes],
    probe: Mapping[str, Any] | None = None,
) -> str:
    """The page.

    Args:
      run: the run.
      command: its command line; None if it was not made by a command.
      images: PNG files by the names of `CAPTIONS`.
      probe: the section of `experiments.probe`; None if it has not been run.

    Returns:
      HTML. Everything that comes from outside this module is escaped.
    """
    several = run.settings["replicas"] > 1
    return _TEMPLATES.get_template("page.html").render(
        title=_title(run),
        results=run.results and _results(run, run.results),
        state=_state(run),
        command=command,
        figures=_figures(run, images),
        layers=_layers(run),
        probe=probe,
        used_kl=USED_KL,
        several=several,
        over_replicas=numbers.OVER_REPLICAS,
        settings=_settings(run),
        versions=_versions(run.config),
    )


def _versions(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The data and versions that config.json names; one that was written by hand may name fewer."""
    named = {
        "data set": config["dataset"],
        "SHA-256 of the data": config.get("data_sha256"),
        **config.get("versions", {}),
        "first started on": config.get("device"),
    }
    return [(name, value) for name, value in named.items() if value is not None]


def _title(run: Run) -> str:
    model = {"lvae": "Ladder VAE", "vae": "VAE"}[run.settings["model"]]
    depth, replicas = run.settings["depth"], run.settings["replicas"]
    title = f"{model} with {depth} layer{'s' * (depth != 1)} on {run.config['dataset']}"
    return title + f", {replicas} replicas" * (replicas > 1)


def _state(run: Run) -> str:
    """The progress of a run that is not finished."""
    state = f"Not finished: {len(run.epochs)} of {run.settings['epochs']} epochs."
    if not run.epochs:
        return state
    last = run.epochs[-1]
    if last.mean("train_elbo") is None:
        return f"{state} Every update of the last one was skipped."
    state += f" Train ELBO of the last one {numbers.number(last, 'train_elbo')} nats"
    return state + (f" (mean and {numbers.OVER_REPLICAS})." if len(last.replicas) > 1 else ".")


def _results(run: Run, results: RunResults) -> dict[str, Any]:
    several = len(results.replicas) > 1
    rows = [
        ("test ELBO, L_1", f"{numbers.number(results, 'test_elbo')} nats"),
        ("train ELBO, L_1", f"{numbers.number(results, 'train_elbo')} nats"),
        (
            "effective sample size",
            f"{results.mean('effective_sample_size'):.0f} of {results.eval_samples}",
        ),
        ("epochs", f"{results.epochs}"),
        ("seeds", numbers.seeds(run.settings)) if several else ("seed", f"{results.seed}"),
        (
            "time",
            f"{results.training_seconds:,.0f} s of training, {results.wall_seconds:,.0f} s in all, "
            f"on {results.device}",
        ),
    ]
    (chosen, *_) = results.each("chosen_epoch")
    if chosen != results.epochs and not several:
        rows.insert(-2, ("evaluated after epoch", f"{chosen}, by validation"))
    rows = _paper(run) + rows
    uncertainty = "; the standard error is over the images and says nothing about seeds"
    if several:
        which = ", ".join(["seed", *numbers.different_by_replica(run.settings)])
        uncertainty = f"; mean and {numbers.OVER_REPLICAS}, which differ in: {which}"
    elif results.replicas[0].test_log_likelihood_standard_error is None:
        uncertainty = "; a single image has no standard error"
    return {
        "best": numbers.log_likelihood(results),
        "samples": results.eval_samples,
        "images": numbers.part_of_the_test_set(run.settings, results) or "all test images",
        "uncertainty": uncertainty,
        "rows": rows,
        "replicas": _replicas(run, results) if several else None,
    }


def _paper(run: Run) -> list[tuple[str, str]]:
    """Rows with the paper's numbers for the model."""
    paper = published.find(run.config)
    if paper is None:
        return []
    named = (("log-likelihood", paper.log_likelihood), ("test ELBO, L_1", paper.test_elbo))
    return [
        (f"the paper's {name}", f"{number} nats{paper.qualifier}")
        for name, number in named
        if number is not None
    ]


def _replicas(run: Run, results: RunResults) -> dict[str, Any]:
    """A row per replica."""
    different = numbers.different_by_replica(run.settings)
    header = ["seed", *different, "test log-likelihood", "test ELBO", "train ELBO"]
    rows = [
        [
            each.seed,
            *(values[i] for values in different.values()),
            number,
            f"{each.test_elbo:.2f}",
            f"{each.train_elbo:.2f}",
        ]
        for i, (each, number) in enumerate(
            zip(results.replicas, numbers.log_likelihoods(results), strict=True)
        )
    ]
    if set(results.each("chosen_epoch")) != {results.epochs}:
        header.append("evaluated after epoch")
        for row, each in zip(rows, results.replicas, strict=True):
            row.append(each.chosen_epoch)
    has_error = None not in results.each("test_log_likelihood_standard_error")
    uncertainty = "; ± is the standard error over the test images" * has_error
    return {"header": header, "rows": rows, "uncertainty": uncertainty}


def _figures(run: Run, images: Mapping[str, bytes]) -> list[dict[str, str]]:
    first = f"Of the first replica, seed {run.settings['seed']}."
    several = run.settings["replicas"] > 1
    return [
        {
            "title": title,
            "kind": "picture" if name in PICTURES else "plot",
            "data": base64.b64encode(images[name]).decode(),
            "caption": f"{caption} {OF_REPLICAS.get(name, first)}" if several else caption,
        }
        for name, (title, caption) in CAPTIONS.items()
        if name in images
    ]


def _read_probe(path: Path, picture: bytes | None) -> dict[str, Any] | None:
    """The section of `experiments.probe`; None, with a warning, if it did not write the file."""
    try:
        if (probe := read_json(path)) is None:
            return None
        header, *rows = uses.probe_rows(probe)
        data = picture and base64.b64encode(picture).decode()
        return {"header": header, "rows": rows, "note": uses.probe_note(probe), "data": data}
    except (WorkdirError, OSError, LookupError, TypeError, ValueError):
        print(
            f"warning: {path} is not a file that experiments.probe wrote; {NAME} leaves it out",
            file=sys.stderr,
        )
        return None


def _layers(run: Run) -> list[numbers.Layer]:
    rows = numbers.layers(run.measured) if run.measured else []
    if len(rows) > 1:
        rows[0] = rows[0]._replace(name=f"{rows[0].name} (bottom)")
        rows[-1] = rows[-1]._replace(name=f"{rows[-1].name} (top)")
    return rows


def _settings(run: Run) -> list[tuple[str, str]]:
    return [(name, as_typed(value)) for name, value in run.settings.items() if value != ""]


def write(run: Run, command: str | None) -> None:
    """Draws the figures of a run's metrics, and writes report.html with all available figures.

    Args:
      run: a run with at least one epoch. The figures that need its model are drawn already.
      command: see `render`.
    """
    folder = run.path / "figures"
    drawing.draw_metrics(run, folder)
    images = {
        name: (folder / f"{name}.png").read_bytes()
        for name in (*CAPTIONS, "probe")
        if (folder / f"{name}.png").exists()
    }
    probe = _read_probe(run.path / "probe.json", images.pop("probe", None))
    write_text(run.path / NAME, render(run, command, images, probe))
