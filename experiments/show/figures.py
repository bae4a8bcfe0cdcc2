"""Figures of runs, after the paper's.

Every function takes records or arrays and returns a matplotlib figure. Colours are Okabe and Ito's,
which colour-blind readers can tell apart. Lines, hatches or places differ as well, for grey prints.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from experiments.results import USED_KL, EpochRecord, Replicated
from experiments.show.numbers import with_deviation
from experiments.store.files import replacing
from lvae_jax.data.source import UNKNOWN

Epochs = Sequence[EpochRecord]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's; more runs repeat them with other markers."""

MARKERS = "osD^vPX*<>"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "**")
"""There is one more than the colours, so that bars of the same colour differ."""

ERROR_BARS: Any = {"elinewidth": 1.0, "capsize": 2.0}
"""The style of the bars of a standard deviation over replicas."""

THIN: Any = {"linewidth": 0.7, "alpha": 0.45, "zorder": 1.5}
"""The style of each replica's curve, drawn beneath their mean."""

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "savefig.dpi": 150,
}


def learning_curves(runs: Mapping[str, Epochs]) -> Figure:
    """L_1 by epoch, after the paper's Figure 2: full lines for training, dashed lines for testing.

    The training curve is each epoch's mean over its steps, with beta = 1 whatever the warm-up. The
    test curve has a point per evaluated epoch. Replicas are thin lines under their mean. The
    axis is limited to the values of the last nine tenths of the epochs.

    Args:
      runs: epochs by the name of the run.

    Returns:
      The figure.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2 + _legend_height(len(runs), 2)))
        axes = figure.add_subplot()
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        for i, (name, epochs) in enumerate(runs.items()):
            look: Any = {
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "markersize": 4,
                "linewidth": 1.5,
            }
            drawn.append(_curve(axes, epochs, "train_elbo", linestyle="-", **look))
            evaluated = [epoch for epoch in epochs if epoch.evaluated]
            if evaluated:
                test_look = {**look, "linestyle": "--", "markerfacecolor": "white"}
                drawn.append(_curve(axes, evaluated, "test_elbo", **test_look))
            if name:
                axes.plot([], [], label=_label(name), **look)
        for dashes, face, name in (("-", "black", "training set"), ("--", "white", "test set")):
            axes.plot(
                [], [], f"o{dashes}", color="black", markerfacecolor=face, markersize=4, label=name
            )
        _limit(axes, drawn)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_ylabel("$L_1$ (ELBO), nats")
        _add_legend(figure, len(runs), "lower right")
    return figure


def _curve(axes: Axes, epochs: Epochs, name: str, **look: Any) -> tuple[np.ndarray, np.ndarray]:
    """Draws a number by epoch; returns the epochs and the numbers, [epochs, replicas]."""
    x = np.array([epoch.epoch for epoch in epochs])
    values = np.array([epoch.each(name) for epoch in epochs], float)
    mean = np.array([epoch.mean(name) for epoch in epochs], float)
    axes.plot(x, mean, markevery=max(1, len(x) // 8), **look)
    if values.shape[1] > 1:
        axes.plot(x, values, color=look["color"], linestyle=look["linestyle"], **THIN)
    return x, values


def _limit(axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Limits the axis from below to the finite values of the last nine tenths of each curve."""
    late = np.concatenate([y[x >= (x[-1] + 1) // 10].ravel() for x, y in curves])
    late = late[np.isfinite(late)]
    if len(late):
        every = np.concatenate([y.ravel() for _, y in curves])
        low, high = float(late.min()), float(every[np.isfinite(every)].max())
        margin = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _label(name: str) -> str:
    """A name, escaped: matplotlib reads $ as mathematics and leaves _name out of legends."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


def _add_legend(figure: Figure, runs: int, place: Literal["lower right", "best"]) -> None:
    """Adds a legend inside the axes, or below them for more than two runs, to hide nothing."""
    if runs > 2:
        figure.legend(loc="outside lower center", ncols=2)
    else:
        figure.axes[0].legend(loc=place)


def _legend_height(runs: int, others: int = 0) -> float:
    """Height of the legend below the axes, in inches, for `runs` and `others` entries."""
    return 0.22 * -(-(runs + others) // 2) if runs > 2 else 0.0


def kl_per_unit(runs: Mapping[str, Epochs]) -> Figure:
    """KL of every unit over training on a logarithmic scale, after the paper's Figure 4.

    A row of panels per layer, the top layer uppermost, and a column per run. A layer's units are
    sorted by their last KL. White means less than `USED_KL` nats: the unit is not used. Units of
    different replicas do not correspond, so only the first replica is drawn.

    Args:
      runs: epochs by the name of the run, at least one of them evaluated; all runs must have the
        same depth.

    Returns:
      The figure.
    """
    evaluated = {name: [e for e in epochs if e.evaluated] for name, epochs in runs.items()}
    # [units, epochs] by run and layer.
    by_run = [
        [
            np.array(layer).T
            for layer in zip(*(e.each("kl_per_unit")[0] for e in epochs), strict=True)
        ]
        for epochs in evaluated.values()
    ]
    depth = len(by_run[0])
    heights = [max(len(layer), 6) ** 0.5 for layer in reversed(by_run[0])]
    finite = np.concatenate([layer[np.isfinite(layer)] for layers in by_run for layer in layers])
    scale = LogNorm(USED_KL, max(float(finite.max(initial=0.0)), 10 * USED_KL))
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(2.2 + 4.2 * len(runs) ** 0.7, max(3.2, 0.9 + 0.27 * sum(heights))))
        panels = figure.subplots(
            depth, len(runs), sharex="col", squeeze=False, height_ratios=heights
        )
        for column, (name, epochs) in enumerate(evaluated.items()):
            edges = _edges(np.array([epoch.epoch for epoch in epochs], float))
            for i, layer in enumerate(by_run[column]):
                panel = panels[depth - 1 - i, column]
                mesh = _heat_map(panel, edges, layer, scale)
                if column == 0:
                    units = f"$z_{{{i + 1}}}$\n{_units(len(layer))}"
                    panel.set_ylabel(units, rotation=0, ha="right", va="center")
            panels[-1, column].set_xlabel("epoch")
            panels[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            panels[0, column].set_title(_label(_first_of(name, epochs)), fontsize=10)
        bar = figure.colorbar(mesh, ax=panels.ravel().tolist(), fraction=0.05, pad=0.02)
        bar.set_label(f"KL(q || p) of a unit, nats\n(white: less than {USED_KL})")
    return figure


def _heat_map(panel: Axes, edges: np.ndarray, kl: np.ndarray, scale: LogNorm) -> QuadMesh:
    """Draws [units, epochs], with the unit of the largest last KL at the top."""
    kl = kl[np.argsort(-kl[:, -1], kind="stable")]
    mesh = panel.pcolormesh(
        edges,
        np.arange(len(kl) + 1),
        np.ma.masked_where(~(kl >= USED_KL), kl),
        norm=scale,
        cmap="viridis_r",
    )
    panel.invert_yaxis()
    panel.set_yticks([])
    panel.spines[["top", "right"]].set_visible(True)
    return mesh


def _first_of(name: str, epochs: Epochs) -> str:
    """The name of a run; with several replicas, it says that the first is drawn."""
    replicas = len(epochs[-1].replicas)
    if replicas == 1:
        return name
    return f"{name}, " * bool(name) + f"the first of {replicas} replicas"


def _units(count: int) -> str:
    return f"{count} unit{'s' * (count != 1)}"


def _edges(epochs: np.ndarray) -> np.ndarray:
    """Edges of a heat map's columns, halfway between the epochs."""
    if len(epochs) == 1:
        return epochs[0] + np.array([-0.5, 0.5])
    middles = (epochs[1:] + epochs[:-1]) / 2
    return np.concatenate([[2 * epochs[0] - middles[0]], middles, [2 * epochs[-1] - middles[-1]]])


def kl_per_layer(runs: Mapping[str, Replicated]) -> Figure:
    """KL(q || p) by layer, from bottom to top, after the paper's Figure 5.

    A run with replicas is drawn by the mean, with error bars of one standard deviation.

    Args:
      runs: results, or an epoch, by the name of the run. Runs may differ in depth and in the number
        of replicas.

    Returns:
      The figure.
    """
    # [replicas, layers]
    by_run = {name: np.array(record.kl_by_layer(), float) for name, record in runs.items()}
    depth = max(kl.shape[1] for kl in by_run.values())
    width = 0.8 / len(runs)
    with rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure = Figure(figsize=(6.4, 3.6 + _legend_height(len(runs))))
        axes = figure.add_subplot()
        for i, (name, kl) in enumerate(by_run.items()):
            kl[~np.isfinite(kl)] = np.nan
            layers = kl.mean(axis=0)
            bars = axes.bar(
                np.arange(len(layers)) - 0.4 + width * (i + 0.5),
                layers,
                width,
                yerr=kl.std(axis=0, ddof=1) if len(kl) > 1 else None,
                error_kw=ERROR_BARS,
                label=_label(name),
                color=COLOURS[i % len(COLOURS)],
                hatch=HATCHES[i % len(HATCHES)],
                edgecolor="white",
            )
            if len(runs) <= 2:
                axes.bar_label(bars, [with_deviation(one, ".1f") for one in kl.T], fontsize=8)
        names = [f"$z_{{{i}}}$" for i in range(1, depth + 1)]
        if depth > 1:
            names[0] += " (bottom)"
            names[-1] += " (top)"
        axes.set_xticks(range(depth), names)
        axes.set_ylabel("KL(q || p) of a layer, nats")
        if len(runs) > 1 or "" not in runs:
            _add_legend(figure, len(runs), "best")
    return figure


def principal_components(z: Sequence[np.ndarray], labels: np.ndarray) -> Figure:
    """Posterior samples of every layer on two principal components, after the paper's Figure 6.

    Args:
      z: per layer, [images, units]: one sample per image.
      labels: [images]; up to ten different labels are coloured, and written at their median. Images
        whose label is `UNKNOWN` are grey then.

    Returns:
      The figure.
    """
    known = labels != UNKNOWN
    names = np.unique(labels[known])
    coloured = 1 < len(names) <= 10
    # The written labels are for readers who cannot tell ten hues apart.
    hues = (*COLOURS[:6], "#999999", "#882255", "#F0E442", "#000000")
    groups = [(labels == name, hue) for name, hue in zip(names, hues, strict=False)]
    if not coloured:
        groups = [(np.full(labels.shape, True), COLOURS[0])]
    elif not known.all():
        groups.insert(0, (~known, "#cccccc"))
    columns = min(3, len(z))
    rows = -(-len(z) // columns)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(2.8 * columns, 2.8 * rows))
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for i, (panel, layer) in enumerate(zip(panels, z, strict=False)):
            components, explained = _two_components(layer)
            for chosen, colour in groups:
                panel.scatter(*components[chosen].T, s=4, color=colour, alpha=0.6, linewidths=0)
            for name in names if coloured else ():
                middle = np.median(components[labels == name], axis=0)
                text = panel.text(*middle, str(name), ha="center", va="center", fontsize=9)
                text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
            panel.set_title(f"$z_{{{i + 1}}}$, {_units(layer.shape[1])}", fontsize=10)
            panel.set_xlabel(f"component 1 ({explained[0]:.0%} of variance)", fontsize=8)
            panel.set_ylabel(f"component 2 ({explained[1]:.0%})", fontsize=8)
            panel.tick_params(labelsize=7)
        for panel in panels[len(z) :]:
            panel.set_visible(False)
    return figure


def _two_components(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two principal components, [images, 2], and the fractions of variance they explain.

    They are NaN for images whose z is not finite; NaN is not drawn.
    """
    finite = np.isfinite(z).all(axis=1)
    if not finite.all():
        components = np.full((len(z), 2), np.nan)
        explained = np.zeros(2)
        if finite.any():
            components[finite], explained = _two_components(z[finite])
        return components, explained
    centred = z - z.mean(axis=0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    # One unit, or one image, has only one component; the other is zero.
    components = np.zeros((len(z), 2))
    found = min(2, left.shape[1])
    components[:, :found] = (left * scales)[:, :found]
    explained = np.zeros(2)
    total = float(np.sum(scales**2))
    explained[:found] = scales[:found] ** 2 / total if total > 0 else 0.0
    return components, explained


def labelled_rows(picture: np.ndarray, names: Sequence[str]) -> Figure:
    """A grid of images with a name beside each row.

    Args:
      picture: a grid made by `pictures.grid`.
      names: the names of its rows, from the top.

    Returns:
      The figure.
    """
    height, width = picture.shape[:2]
    row = (height - 1) / len(names)
    # Inches: the names stand left of the picture, whose rows are at most 0.6 high, and high enough
    # for their names, for which low ones are stretched.
    beside, across = 1.4, min(5.0, 0.6 * width / row)
    down = max(across * height / width, 0.2 * len(names))
    size = (beside + 5.05, down + 0.1)
    with rc_context(STYLE | {"axes.grid": False, "figure.constrained_layout.use": False}):
        figure = Figure(figsize=size)
        axes = figure.add_axes(
            (beside / size[0], 0.05 / size[1], across / size[0], 1 - 0.1 / size[1])
        )
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axes.set_yticks([row * (i + 0.5) for i in range(len(names))], names)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def by_depth(
    values: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
    references: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Log-likelihoods against the number of layers, after the paper's Figure 3.

    Args:
      values: those of each replica, in nats, by panel, model and depth. The mean is drawn, and for
        several replicas the standard deviation as a bar. Models without values are left out.
      references: values of horizontal lines, by panel and name.

    Returns:
      The figure.
    """
    models = list(dict.fromkeys(model for panel in values.values() for model in panel))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(values), 3.6))
        panels = figure.subplots(1, len(values), squeeze=False)[0]
        for panel, (name, curves) in zip(panels, values.items(), strict=True):
            for i, model in enumerate(models):
                depths = sorted(curves.get(model, {}))
                if depths:
                    # [depths, replicas]
                    by_replica = np.array([curves[model][depth] for depth in depths], float)
                    mean, colour = by_replica.mean(axis=1), COLOURS[i % len(COLOURS)]
                    marker = MARKERS[i % len(MARKERS)]
                    panel.plot(depths, mean, color=colour, marker=marker, label=model)
                    if by_replica.shape[1] > 1:
                        deviation = by_replica.std(axis=1, ddof=1)
                        panel.errorbar(
                            depths, mean, deviation, fmt="none", color=colour, **ERROR_BARS
                        )
            for dashes, (label, value) in zip(
                (":", "-."), references.get(name, {}).items(), strict=False
            ):
                panel.axhline(value, color="black", linestyle=dashes, label=label)
            panel.set_title(name, fontsize=10)
            panel.set_xlabel("layers of latents")
            panel.set_ylabel("nats")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        labels = {
            label: handle
            for panel in panels
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4)
    return figure


def stacked(files: Mapping[str, Path]) -> Figure:
    """Stacks PNG files, each under its name."""
    images = {}
    for name, file in files.items():
        with Image.open(file) as opened:
            images[name] = np.asarray(opened.convert("RGB"))
    width = max(image.shape[1] for image in images.values())
    heights = [image.shape[0] for image in images.values()]
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(8, 8 * sum(heights) / width + 0.4 * len(images)))
        panels = figure.subplots(len(images), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, (name, image) in zip(panels, images.items(), strict=True):
            panel.imshow(image)
            panel.set_title(name)
            panel.set_axis_off()
    return figure


def drawn(figure: Figure) -> Image.Image:
    """The figure as a picture."""
    canvas = FigureCanvasAgg(figure)
    with rc_context(STYLE):
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))


def write_png(path: Path, figure: Figure) -> None:
    """Writes the figure with a palette of 256 colours: a third of the size, no visible loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = drawn(figure).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", optimize=True)
