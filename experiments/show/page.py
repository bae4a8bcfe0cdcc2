"""report.html: a run on one page that needs no network, made of the files of its workdir alone."""

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import published
from experiments.replicas import each
from experiments.show import drawing, figures
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
from experiments.store.workdir import read_metrics

NAME = "report.html"

CAPTIONS = {
    "learning_curves": (
        "Learning curves",
        "L<sub>1</sub> of the training set (full line: each epoch's mean over its steps, "
        "normalised by their batches) and of the test set (dashed, normalised by the statistics of "
        "the training set), always with beta = 1. The paper's Figure 2.",
    ),
    "kl_per_unit": (
        "KL of every unit over training",
        "A row of panels a layer, the top layer uppermost, its units sorted by their last KL. "
        "White units are not used. The paper's Figure 4.",
    ),
    "kl_per_layer": (
        "KL by layer",
        "What each layer adds, from the bottom to the top, on the test set. The paper's Figure 5.",
    ),
    "principal_components": (
        "Principal components of every layer",
        "A posterior sample of each layer for test images, on its two principal components, "
        "coloured by label where there are labels. The paper's Figure 6.",
    ),
    "samples": ("Samples", "Means of p(x | z_1) for draws from the prior."),
    "reconstructions": (
        "Reconstructions",
        "Rows of test images, each above a row of what the model makes of them.",
    ),
    "layers": (
        "What each layer knows",
        "Test images, and samples that keep the upper layers of their posterior and draw the "
        "layers below anew from the priors, two draws each: what changes from draw to draw is what "
        "the kept layers do not know.",
    ),
    "interpolations": (
        "Interpolations",
        "From one test image to another along a straight line in one layer, the noise of the "
        "layers below held fixed.",
    ),
}
"""Title and explanation of each figure, in the order of the page."""

OF_REPLICAS = {
    "learning_curves": "With markers the mean over the replicas, thin each of them.",
    "kl_per_layer": "The mean over the replicas, plus and minus their standard deviation.",
}
"""What is added of a run with replicas; the other figures show the first one."""

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
       max-width: 76rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, figcaption { max-width: 46rem; }
figcaption { font-size: .9rem; color: #444; }
.figures { display: grid; gap: 2rem;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure h3 { font-size: 1rem; margin: 0 0 .5rem; }
img { display: block; width: 100%; height: auto; max-width: 46rem; }
/* Where there is text to read, a narrow window scrolls instead of shrinking it. */
img.plot { min-width: 32rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #ddd; }
td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; }
pre { background: #f4f4f4; padding: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; }
.best { font-size: 1.25rem; }
"""


def render(
    config: Mapping[str, Any],
    command: str | None,
    results: Mapping[str, Any] | None,
    lines: Lines,
    images: Mapping[str, bytes],
) -> str:
    """The page.

    Args:
      config: of config.json.
      command: that makes the run; None if it was not made by one.
      results: of results.json; None while the run is not finished.
      lines: of metrics.jsonl.
      images: PNG files by the names of `CAPTIONS`.

    Returns:
      HTML. Everything that is not of this module is escaped.
    """
    settings = config["settings"]
    model = {"lvae": "Ladder VAE", "vae": "VAE"}[settings["model"]]
    layers = f"{settings['depth']} layer{'s' * (settings['depth'] != 1)}"
    replicas = settings.get("replicas", 1)
    title = f"{model} with {layers} on {config['dataset']}"
    title += f", {replicas} replicas" * (replicas > 1)
    sections = [
        f"<h1>{_escape(title)}</h1>",
        _results(config, results, lines),
        _command(command),
        _figures(settings, images),
        _layers(settings, results, lines),
        _settings(config),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # No request for an icon, and nothing may be loaded from anywhere.
        '<link rel="icon" href="data:,">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _table(rows: list[tuple[Any, ...]], header: tuple[str, ...] = ()) -> str:
    """A table; numbers are set right."""

    def cells(row: tuple[Any, ...], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if i and header else ''}>{_escape(cell)}</{tag}>"
            for i, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if header else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


_DEVIATION = "standard deviation over replicas"


def _results(config: Mapping[str, Any], results: Mapping[str, Any] | None, lines: Lines) -> str:
    settings = config["settings"]
    epochs = settings["epochs"]
    if results is None:
        state = f"Not finished: {len(lines)} of {epochs} epochs."
        if lines and None in [replica["train_elbo"] for replica in each(lines[-1])]:
            state += " Every update of the last one was skipped."
        elif lines:
            state += f" Train ELBO of the last one {over_replicas(lines[-1], 'train_elbo')} nats"
            state += f" (mean and {_DEVIATION})." if len(each(lines[-1])) > 1 else "."
        return f"<p class=best>{_escape(state)}</p>"
    replicas = each(results)
    several = len(replicas) > 1
    best = over_replicas(results, "test_log_likelihood") if several else with_error(results)
    rows: list[tuple[Any, ...]] = []
    paper = published.log_likelihood(config)
    if paper is not None:
        trained = published.EPOCHS[config["dataset"]]
        rows.append(("the paper's log-likelihood", f"{paper} nats, after {trained:,} epochs"))
    rows += [
        ("test ELBO, L_1", f"{over_replicas(results, 'test_elbo')} nats"),
        ("train ELBO, L_1", f"{over_replicas(results, 'train_elbo')} nats"),
        (
            "effective sample size",
            f"{results['effective_sample_size']:.0f} of {results['eval_samples']}",
        ),
        ("epochs", f"{results['epochs']}"),
        ("seeds", seeds(settings)) if several else ("seed", f"{results['seed']}"),
        (
            "time",
            f"{results['training_seconds']:,.0f} s of training, "
            f"{results['wall_seconds']:,.0f} s in all, on {results['device']}",
        ),
    ]
    if results["chosen_epoch"] != results["epochs"] and not several:
        rows.insert(-2, ("evaluated after epoch", f"{results['chosen_epoch']}, by validation"))
    images = part_of_the_test_set(settings, results) or "all test images"
    uncertainty = "; the standard error is over the images and says nothing about seeds"
    if several:
        which = ", ".join(["seed", *different_by_replica(settings)])
        uncertainty = f"; mean and {_DEVIATION}, which differ in: {which}"
    elif results["test_log_likelihood_standard_error"] is None:
        uncertainty = "; of a single image there is no standard error"
    return (
        f"<p class=best>test log-likelihood <strong>{_escape(best)} nats</strong></p>"
        f"<p>L<sub>{_escape(results['eval_samples'])}</sub>, importance-sampled, over "
        f"{_escape(images)}{_escape(uncertainty)}.</p>"
        + _table(rows)
        + (_replicas(settings, results) if several else "")
    )


def _replicas(settings: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """A row a replica."""
    replicas = each(results)
    chosen = any(replica["chosen_epoch"] != results["epochs"] for replica in replicas)
    shown = results["test_log_likelihood_standard_error"] is not None
    different = different_by_replica(settings)
    header = ("seed", *different, "test log-likelihood", "test ELBO", "train ELBO")
    rows = [
        (
            replica["seed"],
            *(values[i] for values in different.values()),
            with_error(replica),
            f"{replica['test_elbo']:.2f}",
            f"{replica['train_elbo']:.2f}",
            *([replica["chosen_epoch"]] if chosen else []),
        )
        for i, replica in enumerate(replicas)
    ]
    return (
        "<h2>Replicas</h2>"
        + _table(rows, header + ("evaluated after epoch",) * chosen)
        + f"<p>In nats{'; ± is the standard error over the test images' * shown}.</p>"
    )


def _command(command: str | None) -> str:
    return f"<h2>Command</h2><pre>{_escape(command)}</pre>" if command else ""


def _figures(settings: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    shown = []
    first = f"Of the first replica, seed {settings['seed']}."
    for name, (title, caption) in CAPTIONS.items():
        if name in images:
            if settings.get("replicas", 1) > 1:
                caption += f" {_escape(OF_REPLICAS.get(name, first))}"
            kind = "picture" if name in ("samples", "reconstructions") else "plot"
            data = base64.b64encode(images[name]).decode()
            shown.append(
                f'<figure><h3>{title}</h3><div class="scroll"><img class="{kind}" alt="{title}" '
                f'src="data:image/png;base64,{data}"></div>'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return f'<h2>Figures</h2><div class="figures">{"".join(shown)}</div>' if shown else ""


def _layers(settings: Mapping[str, Any], results: Mapping[str, Any] | None, lines: Lines) -> str:
    measured = figures.last_measured(lines, results)
    if measured is None:
        return ""
    by_replica = each(measured)
    columns = (
        zip(*figures.measured_kl_per_layer([], measured), strict=True),
        by_replica[0]["kl_per_unit"],
        zip(*(replica["active_units"] for replica in by_replica), strict=True),
        used_units(measured),
    )
    rows = [
        (
            f"z_{i}" + {1: " (bottom)", settings["depth"]: " (top)"}.get(i, ""),
            with_deviation(kl),
            len(units),
            count_with_deviation(active),
            count_with_deviation(used),
        )
        for i, (kl, units, active, used) in enumerate(zip(*columns, strict=True), start=1)
    ]
    header = ("layer", "KL, nats", "units", "active", f"KL > {USED_KL} nats")
    return (
        "<h2>Layers</h2>"
        + _table(rows, header)
        + "<p>A unit is active if its posterior mean varies over the images by a variance of more "
        "than 0.01 (Burda's criterion). A lower layer's unit can do so by following its prior "
        "alone, which is why units that add something of their own are counted too."
        + (f" Mean and {_DEVIATION}." if len(by_replica) > 1 else "")
        + "</p>"
    )


def _settings(config: Mapping[str, Any]) -> str:
    settings = [
        (name, ",".join(map(str, value)) if isinstance(value, list) else value)
        for name, value in config["settings"].items()
        if value != ""
    ]
    versions = [*config["versions"].items(), ("first started on", config["device"])]
    data = [("data set", config["dataset"]), ("SHA-256 of the data", config.get("data_sha256", ""))]
    return f"<h2>Settings</h2>{_table(settings)}<h2>Data and versions</h2>{_table(data + versions)}"


def write(
    path: Path,
    config: Mapping[str, Any],
    command: str | None,
    results: Mapping[str, Any] | None,
) -> None:
    """Draws the figures of a run's metrics, and writes report.html of all its files.

    Args:
      path: the workdir, with metrics.jsonl and, drawn already, the figures that its model makes.
      config: see `render`.
      command: see `render`.
      results: see `render`.
    """
    lines = read_metrics(path)
    folder = path / "figures"
    drawing.draw_metrics(lines, results, folder)
    images = {
        name: (folder / f"{name}.png").read_bytes()
        for name in CAPTIONS
        if (folder / f"{name}.png").exists()
    }
    (path / NAME).write_text(render(config, command, results, lines, images), encoding="utf-8")
