"""Draws all figures of a run from its metrics and its model, as figures/NAME.png."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.results import Run
from experiments.show import figures, pictures
from lvae_jax.data import Dataset
from lvae_jax.models import HierarchicalVAE

RECONSTRUCTED = 40
"""At most this many test images are shown with their reconstructions."""


def draw_metrics(run: Run, folder: Path) -> None:
    """Draws the figures that need only the metrics.

    Args:
      run: a run with at least one epoch.
      folder: where NAME.png is written.
    """
    figures.write_png(folder / "learning_curves.png", figures.learning_curves({"": run.epochs}))
    if any(epoch.evaluated for epoch in run.epochs):
        kl_per_layer = figures.kl_per_layer({"": run.measured or run.epochs[-1]})
        figures.write_png(folder / "kl_per_unit.png", figures.kl_per_unit({"": run.epochs}))
        figures.write_png(folder / "kl_per_layer.png", kl_per_layer)


def draw_model(
    model: HierarchicalVAE,
    variables: Mapping[str, Any],
    dataset: Dataset,
    test_x: np.ndarray,
    key: jax.Array,
    folder: Path,
    layer: int | None = None,
) -> None:
    """Draws the figures that need the model.

    Args:
      model: the run's model.
      variables: its variables for evaluation, as NumPy arrays.
      dataset: the data set that it was trained on.
      test_x: x of the test images, [n, data_dim].
      key: for all draws.
      folder: where NAME.png is written.
      layer: the layer to interpolate in; the top one by default.
    """
    layer = layer or model.depth
    labels = dataset.test_labels[: len(test_x)]
    shown = test_x[: min(RECONSTRUCTED, len(test_x) // 10 * 10) or len(test_x)]  # whole rows of ten
    firsts = test_x[pictures.one_of_each(labels)]
    draws = pictures.draw(model, variables, test_x, firsts, key, layer)
    draws = jax.tree.map(np.asarray, draws)

    # Black and white are the range of the test images, 0 and 1 if they are binary.
    low, high = float(shown.min()), float(shown.max())

    def grid(rows: list[np.ndarray], columns: int) -> np.ndarray:
        x = np.concatenate(rows)
        return pictures.grid(pictures.as_pictures(x, dataset.image_shape), columns, low, high)

    columns = min(10, len(shown))
    copies = draws.reconstructions[: len(shown)]
    pairs = pictures.interleaved([shown, copies], columns)
    pictures.write_png(folder / "samples.png", grid([draws.samples], 10))
    pictures.write_png(folder / "reconstructions.png", grid([pairs], columns))

    components = figures.principal_components(draws.z, labels)
    figures.write_png(folder / "principal_components.png", components)

    # Two draws per layer, but one for the bottom layer, below which no z is drawn.
    rows, names = [firsts, draws.known[0, 0]], ["test images", _kept(1, model.depth)]
    for i in range(2, model.depth + 1):
        rows += list(draws.known[i - 1])
        names += [_kept(i, model.depth)] * 2
    layers = figures.labelled_rows(grid(rows, len(firsts)), names)
    figures.write_png(folder / "layers.png", layers)

    lines = list(draws.interpolations)
    if lines:
        picture = grid(lines, pictures.INTERPOLATION_STEPS)
        names = [f"in $z_{{{layer}}}$"] * len(lines)
        figures.write_png(folder / "interpolations.png", figures.labelled_rows(picture, names))


def _kept(layer: int, depth: int) -> str:
    """The label of a row in the figure "layers"."""
    if layer == depth:
        return f"$z_{{{layer}}}$ kept"
    return f"$z_{{{layer}}}$ to $z_{{{depth}}}$ kept" if layer > 1 else "all $z$ kept"
