"""Draws all figures of a run from its metrics and what its model draws, as figures/NAME.png."""

from pathlib import Path

import numpy as np

from experiments.results import Draws, Run
from experiments.show import figures, pictures


def draw_metrics(run: Run, folder: Path) -> None:
    """Draws the figures that need only the metrics.

    Args:
      run: a run with at least one epoch.
      folder: where NAME.png is written.
    """
    figures.write_png(folder / "learning_curves.png", figures.learning_curves({"": run.epochs}))
    if run.measured:
        figures.write_png(folder / "kl_per_unit.png", figures.kl_per_unit({"": run.epochs}))
        figures.write_png(folder / "kl_per_layer.png", figures.kl_per_layer({"": run.measured}))


def draw_model(draws: Draws, folder: Path) -> None:
    """Draws the figures that need the model.

    Args:
      draws: what the model draws.
      folder: where NAME.png is written.
    """
    # Black and white are the range of the test images, 0 and 1 if they are binary.
    low, high = float(draws.images.min()), float(draws.images.max())

    def grid(rows: list[np.ndarray], columns: int) -> np.ndarray:
        x = np.concatenate(rows)
        return pictures.grid(pictures.as_pictures(x, draws.image_shape), columns, low, high)

    columns = min(10, len(draws.images))
    pairs = pictures.interleaved([draws.images, draws.reconstructions], columns)
    pictures.write_png(folder / "samples.png", grid([draws.samples], 10))
    pictures.write_png(folder / "reconstructions.png", grid([pairs], columns))

    components = figures.principal_components(draws.z, draws.labels)
    figures.write_png(folder / "principal_components.png", components)

    # Two draws per layer, but one for the bottom layer, below which no z is drawn.
    firsts, depth = draws.first_images, len(draws.known)
    rows, names = [firsts, draws.known[0, 0]], ["test images", _kept(1, depth)]
    for i in range(2, depth + 1):
        rows += list(draws.known[i - 1])
        names += [_kept(i, depth)] * 2
    layers = figures.labelled_rows(grid(rows, len(firsts)), names)
    figures.write_png(folder / "layers.png", layers)

    lines = list(draws.interpolations)
    if lines:
        picture = grid(lines, len(lines[0]))
        names = [f"in $z_{{{draws.layer}}}$"] * len(lines)
        figures.write_png(folder / "interpolations.png", figures.labelled_rows(picture, names))


def _kept(layer: int, depth: int) -> str:
    """The label of a row in the figure "layers"."""
    if layer == depth:
        return f"$z_{{{layer}}}$ kept"
    return f"$z_{{{layer}}}$ to $z_{{{depth}}}$ kept" if layer > 1 else "all $z$ kept"
