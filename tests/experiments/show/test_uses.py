"""Tables and figures of probe, outliers and certify: each number stands under its own name."""

import json

import numpy as np
from matplotlib.colors import to_rgb

from experiments import finished
from experiments.show import uses


def over_choices(mean: float, deviation: float) -> dict[str, float]:
    return {"mean": mean, "standard_deviation": deviation}


def over_images(mean: float, error: float) -> dict[str, float]:
    return {"mean": mean, "standard_error": error}


PROBED = {
    "representations": [
        {
            "name": "z_1",
            "units": 3,
            "errors": {
                "100": {"logistic": over_choices(11.0, 0.5), "knn": over_choices(12.0, 0.25)},
                "2000": {"logistic": over_images(3.0, 1.5), "knn": over_images(4.0, 0.75)},
            },
        },
        {
            "name": "pixels",
            "units": 64,
            "errors": {
                "100": {"logistic": over_choices(21.0, 2.5), "knn": over_choices(22.0, 2.25)},
                "2000": {"logistic": over_images(13.0, 3.5), "knn": over_images(14.0, 2.75)},
            },
        },
    ]
}


def test_the_mean_of_one_image_is_shown_without_an_error():
    one = finished.mean_and_error(np.array([-1.5]))
    assert json.dumps(one, allow_nan=False) == '{"mean": -1.5, "standard_error": null}'
    assert uses.with_error(one) == "-1.50"
    # The deviation of two numbers is their distance divided by sqrt(2).
    assert uses.with_error(finished.mean_and_error(np.array([-1.0, -2.0])), 1) == "-1.5 ± 0.5"


def test_the_table_of_probe_has_each_classifiers_errors_under_its_name():
    header, z_1, pixels = uses.probe_rows(PROBED)
    assert dict(zip(header, z_1, strict=True)) == {
        "representation": "z_1",
        "units": "3",
        "best unit, nats": "",
        "k-NN, 100 labels": "12.00 ± 0.25",
        "k-NN, 2,000 labels": "4.00 ± 0.75",
        "logistic, 100 labels": "11.00 ± 0.50",
        "logistic, 2,000 labels": "3.00 ± 1.50",
    }
    assert pixels[-2:] == ["21.00 ± 2.50", "13.00 ± 3.50"]


def test_the_figure_of_probe_has_each_error_with_its_bar_in_the_row_of_its_representation():
    drawn = {}
    figure = uses.probe(PROBED)
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    for axes in figure.axes:
        for bars in axes.containers:
            (points, _, (lengths,)) = bars.lines
            for (x, y), segment in zip(points.get_xydata(), lengths.get_segments(), strict=True):
                place = axes.get_title(), bars.get_label(), rows[int(y)]
                drawn[place] = x, [tuple(end) for end in segment], y
    titles = {"k-nearest neighbours": "knn", "logistic regression": "logistic"}
    labels = {"100 labels": "100", "2,000 labels": "2000"}
    assert len(drawn) == 8
    for (title, label, row), (x, ends, y) in drawn.items():
        entry = PROBED["representations"][["z_1 (3)", "pixels (64)"].index(row)]
        given = entry["errors"][labels[label]][titles[title]]
        mean, spread = given.values()
        assert x == mean
        assert ends == [(mean - spread, y), (mean + spread, y)]


def test_histograms_are_of_the_data_set_that_the_legend_names():
    pair = np.array([-3.0, -2.5, -2.0, -1.0]), np.array([5.0, 6.0, 7.0])
    figure = uses.outliers({"L_8": pair, "ELBO": pair[::-1]}, ("digits", "noise"))
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    colours = [to_rgb(handle.get_facecolor()) for handle in legend.get_patches()]
    assert names == ["digits", "noise"]
    assert len(set(colours)) == 2
    for axes, sets in zip(figure.axes, (pair, pair[::-1]), strict=True):
        for colour, values in zip(colours, sets, strict=True):
            bars = [bar for bar in axes.patches if to_rgb(bar.get_facecolor()) == colour]
            full = [bar for bar in bars if bar.get_height() > 0]
            sign = np.sign(values[0])  # one set is all below zero, and the other all above it
            assert {np.sign(bar.get_x() + bar.get_width() / 2) for bar in full} == {sign}
    assert [axes.get_title() for axes in figure.axes] == ["L_8", "ELBO"]


def test_bounds_are_drawn_under_their_names_in_the_order_of_the_upper_one():
    figure = uses.certify(np.array([3.0, 1.0, 2.0]), np.array([-7.0, -5.0, -6.0]), 10)
    (axes,) = figure.axes
    handles, names = axes.get_legend_handles_labels()
    drawn = {name: line.get_ydata().tolist() for name, line in zip(names, handles, strict=True)}
    assert drawn == {"upper bound": [1.0, 2.0, 3.0], "lower bound": [-5.0, -6.0, -7.0]}
    assert "L_{10}" in axes.get_ylabel()
