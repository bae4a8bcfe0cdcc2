"""Figures of runs: what is drawn is what was given, and can be told apart without colours."""

import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import records
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import ndimage
from sklearn.decomposition import PCA
from tolerances import EPSILON_64, assert_close, assert_within

from experiments.results import EpochRecord, Run
from experiments.show import figures, pictures

NAN, INF = float("nan"), float("inf")


def pixels(figure) -> np.ndarray:
    """The figure as it is drawn, [height, width, 3]."""
    return np.asarray(figures.drawn(figure).convert("RGB"))


def colour_at(image: np.ndarray, axes, x: float, y: float) -> tuple[int, ...]:
    """The colour of a point of the axes, in an image of its figure."""
    column, row = axes.transData.transform((x, y))
    return tuple(int(value) for value in image[image.shape[0] - 1 - int(row), int(column)])


NEIGHBOURS = np.ceil(255 * np.abs(np.diff(matplotlib.colormaps["viridis_r"].colors, axis=0)).max())
"""By how much one of the map's 256 colours differs from the next: a rounding may choose either."""

PALETTE = 12
"""By how much the palette of 256 colours in a file may be off, of a colour that covers an area."""


def legend_texts(figure) -> list[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def epochs_of(train, test=None, every: int = 1) -> list[EpochRecord]:
    """Epochs with these ELBOs, the test set's of every so many."""
    return [
        records.epoch(i, train_elbo=value, **({"test_elbo": test[i]} if evaluated else {}))
        for i, value in enumerate(train)
        for evaluated in [test is not None and (i + 1) % every == 0]
    ]


def with_units(kl_per_unit, number: int = 0, **fields) -> EpochRecord:
    """An evaluated epoch with this KL of units."""
    return records.epoch(number, kl_per_unit=kl_per_unit, **fields)


def with_layers(kl) -> EpochRecord:
    """An epoch with this KL of layers, [layers] or [replicas, layers]."""
    by_replica = kl if isinstance(kl[0], list) else [kl]
    return records.epoch(0, *(records.replica_epoch(kl_per_layer=layers) for layers in by_replica))


# Learning curves.


def test_learning_curves_are_the_values_by_epoch_the_test_sets_dashed():
    train, test = [-9.0, -6.0, -5.0, -4.5], [-9.5, -7.0, -6.0, -5.5]
    figure = figures.learning_curves({"": epochs_of(train, test, every=2)})
    (axes,) = figure.axes
    curves = {line.get_linestyle(): line for line in axes.lines if len(line.get_xdata())}
    assert curves.keys() == {"-", "--"}
    np.testing.assert_array_equal(curves["-"].get_xydata(), np.c_[range(4), train])
    np.testing.assert_array_equal(curves["--"].get_xydata(), [[1, -7.0], [3, -5.5]])
    assert axes.get_xlabel() == "epoch"
    assert "nats" in axes.get_ylabel()


def test_the_legend_of_learning_curves_names_the_runs_and_both_kinds_of_line():
    one = figures.learning_curves({"": epochs_of([-3.0, -2.0])})
    assert legend_texts(one) == ["training set", "test set"]
    two = figures.learning_curves({"a": epochs_of([-3.0]), "b": epochs_of([-2.0])})
    assert legend_texts(two) == ["a", "b", "training set", "test set"]


def test_learning_curves_leave_out_what_lies_below_the_last_nine_tenths_and_nothing_above():
    train = np.linspace(-100.0, -90.0, 101)
    train[:10] = -5000.0
    train[2] = -80.0
    (axes,) = figures.learning_curves({"": epochs_of(train)}).axes
    low, high = axes.get_ylim()
    assert -105 < low < train[10]
    assert high > -80


@pytest.mark.parametrize("depth", [1, 5])
def test_ticks_of_epochs_are_whole_numbers_even_of_one_epoch(depth):
    epochs = [with_units([[1.0, 2.0]] * depth, 3)]
    for draw in (figures.learning_curves, figures.kl_per_unit):
        figure = draw({"": epochs})
        pixels(figure)
        axes = figure.axes[0] if draw is figures.learning_curves else figure.axes[depth - 1]
        assert axes.get_xlabel() == "epoch"
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks == [3]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([-3.0], None),
        ([-3.0, -2.0], [NAN, INF]),
        ([NAN, -INF, -3.0], None),
        ([NAN, NAN], [INF, -INF]),
        ([-1e38, -1.0], None),
        ([-2.0, -2.0, -2.0], [-2.0, -2.0, -2.0]),
        ([-9.0, -3.0, -2.0, -1.0], [-9.5, -4.0, -3.0, -2.0]),  # every one of few epochs is shown
    ],
)
def test_learning_curves_of_any_values_are_drawn_on_finite_axes(train, test):
    figure = figures.learning_curves({"": epochs_of(train, test)})
    (axes,) = figure.axes
    assert np.ptp(pixels(figure)) > 0
    low, high = axes.get_ylim()
    assert np.isfinite([low, high]).all()
    assert low < high
    shown = [value for value in [*train, *(test or [])] if np.isfinite(value) and value > -1e38]
    assert all(low < value < high for value in shown)


# KL of every unit.

KL_EPOCHS = [
    with_units([[0.02, 0.5, 0.1, NAN, -0.3], [1.0, 0.003]], 9),
    with_units([[0.02, 0.005, 4.0, NAN, -0.2], [NAN, 0.3]], 19),
]
SORTED = [
    # The last KL falls from row to row; what cannot be compared is last.
    [[0.1, 4.0], [0.02, 0.02], [0.5, 0.005], [-0.3, -0.2], [NAN, NAN]],
    [[0.003, 0.3], [1.0, NAN]],
]


def expected_colour(kl: float) -> tuple[int, ...]:
    """White below 0.01 nats and where there is no number; else logarithmic from 0.01 to 4."""
    if not kl >= 0.01:
        return (255, 255, 255)
    position = np.log(kl / 0.01) / np.log(4.0 / 0.01)
    return tuple(round(255 * c) for c in matplotlib.colormaps["viridis_r"](position)[:3])


def test_units_are_sorted_by_their_last_kl_on_a_logarithmic_scale_the_unused_white(tmp_path):
    figure = figures.kl_per_unit({"": KL_EPOCHS})
    image = pixels(figure)
    figures.write_png(tmp_path / "kl.png", figure)
    with Image.open(tmp_path / "kl.png") as opened:
        written = np.asarray(opened.convert("RGB"))
    top, bottom = figure.axes[:2]
    for axes, rows in ((bottom, SORTED[0]), (top, SORTED[1])):
        for row, values in enumerate(rows):
            for epoch, kl in zip((9, 19), values, strict=True):
                where = (epoch, row + 0.5)
                expected = expected_colour(kl)
                assert_within(colour_at(image, axes, *where), expected, NEIGHBOURS)
                assert_within(colour_at(written, axes, *where), expected, NEIGHBOURS + PALETTE)


def test_a_row_of_panels_a_layer_the_top_layer_uppermost_named_with_its_units():
    figure = figures.kl_per_unit({"": KL_EPOCHS})
    pixels(figure)
    top, bottom, bar = figure.axes
    assert top.get_position().y0 > bottom.get_position().y1
    assert top.get_ylabel() == "$z_{2}$\n2 units"
    assert bottom.get_ylabel() == "$z_{1}$\n5 units"
    # Row 0 is above row 1.
    assert top.transData.transform((9, 0))[1] > top.transData.transform((9, 1))[1]
    assert bottom.get_xlabel() == "epoch"
    assert "nats" in bar.get_ylabel()
    assert "0.01" in bar.get_ylabel()


@pytest.mark.parametrize("layers", [[[0.5]], [[0.5, 2.0], [0.1]], [[0.5] * 64, [0.1] * 32]])
def test_every_text_of_the_kl_of_units_lies_within_the_picture(layers):
    figure = figures.kl_per_unit({"": [with_units(layers)]})
    canvas = FigureCanvasAgg(figure)
    pixels(figure)
    width, height = canvas.get_width_height()
    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label):
            extent = label.get_window_extent()
            assert extent.x0 >= 0
            assert extent.y0 >= 0
            assert extent.x1 <= width
            assert extent.y1 <= height


@pytest.mark.parametrize(
    "layers",
    [
        [[NAN, NAN], [NAN]],
        [[-1.0, -2.0], [-3.0]],
        [[0.0, 0.0]],
        [[INF, 1.0], [-INF]],
        [[1e30, 1.0]],
    ],
)
def test_a_kl_of_any_value_is_drawn(layers):
    figure = figures.kl_per_unit({"": [with_units(layers, number) for number in (4, 9)]})
    image = pixels(figure)
    panel = figure.axes[len(layers) - 1]  # of z_1
    for row, kl in enumerate(layers[0]):  # which fall
        white = colour_at(image, panel, 4, row + 0.5) == (255, 255, 255)
        assert white == (not 0.01 <= kl < INF)


def test_several_runs_stand_side_by_side_on_one_scale_of_colours():
    runs = {"few": [KL_EPOCHS[0]], "all": KL_EPOCHS}
    figure = figures.kl_per_unit(runs)
    image = pixels(figure)
    (few_top, all_top, few_bottom, all_bottom) = figure.axes[:4]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["few", "all"]
    assert few_bottom.get_position().x1 < all_bottom.get_position().x0
    # 1 nat of z_2's first unit, at epoch 9.
    one_nat = expected_colour(1.0)
    assert_within(colour_at(image, few_top, 9, 0.5), one_nat, NEIGHBOURS)
    assert_within(colour_at(image, all_top, 9, 1.5), one_nat, NEIGHBOURS)


# KL of layers.


def test_bars_are_as_high_as_the_kl_of_the_layers_of_runs_of_different_depth():
    runs = {"deep": [5.0, 3.5, 0.25], "shallow": [8.0]}
    figure = figures.kl_per_layer({name: with_layers(kl) for name, kl in runs.items()})
    (axes,) = figure.axes
    for (name, layers), bars in zip(runs.items(), axes.containers, strict=True):
        assert bars.get_label() == name
        assert [bar.get_height() for bar in bars] == layers
        assert [round(bar.get_center()[0]) for bar in bars] == list(range(len(layers)))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["$z_{1}$ (bottom)", "$z_{2}$", "$z_{3}$ (top)"]
    assert "nats" in axes.get_ylabel()
    assert legend_texts(figure) == ["deep", "shallow"]
    assert legend_texts(figures.kl_per_layer({"": with_layers([1.0, 2.0])})) == []


@pytest.mark.parametrize("layers", [[-0.5, 2.0], [NAN, 1.0], [NAN, NAN], [INF, 1.0], [0.0], [3.0]])
def test_bars_of_any_kl_are_drawn(layers):
    figure = figures.kl_per_layer({"": with_layers(layers)})
    assert np.ptp(pixels(figure)) > 0
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    np.testing.assert_array_equal(heights, [kl if np.isfinite(kl) else NAN for kl in layers])


# Telling apart.


def test_what_a_colour_tells_apart_a_marker_or_a_hatch_tells_apart_too():
    runs = 8
    lines = epochs_of([-3.0, -2.0], [-4.0, -3.0])
    (axes,) = figures.learning_curves({f"run{i}": lines for i in range(runs)}).axes
    drawn = [curve for curve in axes.lines if len(curve.get_xdata())]
    assert len(drawn) == 2 * runs
    assert len({(curve.get_marker(), curve.get_linestyle()) for curve in drawn}) == 2 * runs

    (axes,) = figures.kl_per_layer({f"run{i}": with_layers([1.0]) for i in range(runs)}).axes
    assert len({bar.get_hatch() for bar in axes.patches}) == runs

    # Of more runs than there are hatches, colour and hatch together still tell all apart.
    (axes,) = figures.kl_per_layer({f"run{i}": with_layers([1.0]) for i in range(40)}).axes
    assert len({(bar.get_hatch(), bar.get_facecolor()) for bar in axes.patches}) == 40


def test_the_two_colours_of_a_comparison_of_two_differ_in_grey_too():
    def grey(colour):
        return np.dot(to_rgb(colour), (0.299, 0.587, 0.114))

    assert abs(grey(figures.COLOURS[0]) - grey(figures.COLOURS[1])) > 0.1
    assert len(set(figures.COLOURS)) == len(figures.COLOURS)


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("draw", [figures.learning_curves, figures.kl_per_layer])
def test_of_more_than_two_runs_the_legend_hides_nothing_that_is_drawn(draw, count):
    of_one = epochs_of([-3.0, -2.0]) if draw is figures.learning_curves else with_layers([2.0, 1.0])
    figure = draw({f"run{i}": of_one for i in range(count)})
    pixels(figure)
    assert legend_texts(figure)[:count] == [f"run{i}" for i in range(count)]
    if count > 2:
        (legend,) = figure.legends
        legend_box, axes_box = legend.get_window_extent(), figure.axes[0].get_window_extent()
        assert legend_box.y1 < axes_box.y0
        assert legend_box.y0 >= 0
        assert axes_box.height > 300  # pixels: it has not been squeezed


def test_a_run_is_named_as_its_folder_is_whatever_matplotlib_makes_of_the_letters():
    names = ["_scratch", r"$\frac$", "a$b", "$x$", r"a\b"]
    curves = figures.learning_curves(dict.fromkeys(names, epochs_of([-3.0])))
    bars = figures.kl_per_layer(dict.fromkeys(names, with_layers([1.0])))
    units = figures.kl_per_unit({name: [with_units([[1.0]])] for name in names})
    for figure in (curves, bars, units):
        assert np.ptp(pixels(figure)) > 0
    titles = [axes.get_title() for axes in units.axes[: len(names)]]
    for texts in (legend_texts(curves)[: len(names)], legend_texts(bars), titles):
        # An escaped dollar is drawn as a dollar, and no other one is left.
        assert all(re.sub(r"\\\$", "", shown).count("$") == 0 for shown in texts)
        assert [shown.replace(r"\$", "$").strip() for shown in texts] == names


# Principal components.


def points(panel) -> np.ndarray:
    return np.concatenate([np.asarray(dots.get_offsets()) for dots in panel.collections])


def assert_components(found, expected, z):
    """Coordinates of two singular value decompositions, whose axes turn by rounding over a gap."""
    values = np.linalg.svd(z - z.mean(0), compute_uv=False)
    values = np.append(values, 0)[:3]  # there may be two
    gap = np.min(-np.diff(values))
    size = np.abs(z).max() * values[0] / gap
    assert_close(found, expected, len(z), size, EPSILON_64)


def test_principal_components_are_those_of_scikit_learn_up_to_sign():
    generator = np.random.default_rng(0)
    z = [
        generator.standard_normal((50, units)) * np.linspace(3, 0.5, units) + 7.0
        for units in (6, 3, 2)
    ]
    figure = figures.principal_components(z, np.full(50, -1))
    for panel, layer in zip(figure.axes, z, strict=True):
        pca = PCA(2, svd_solver="full")
        expected = pca.fit_transform(layer)
        found = points(panel)
        signs = np.sign(np.sum(found * expected, axis=0))
        assert_components(found * signs, expected, layer)
        percent = [
            int(re.search(r"\((\d+)%", label)[1])
            for label in (panel.get_xlabel(), panel.get_ylabel())
        ]
        # Whole per cent.
        np.testing.assert_allclose(percent, 100 * pca.explained_variance_ratio_, rtol=0, atol=0.5)
    assert [panel.get_title() for panel in figure.axes] == [
        "$z_{1}$, 6 units", "$z_{2}$, 3 units", "$z_{3}$, 2 units",
    ]  # fmt: skip


def test_a_label_has_a_colour_of_its_own_and_is_written_in_the_middle_of_its_images():
    generator = np.random.default_rng(1)
    labels = np.arange(60) % 3 + 4
    centres = np.array([[10.0, 0.0], [-10.0, 5.0], [0.0, -5.0]])
    z = centres[labels - 4] + generator.standard_normal((60, 2))
    (panel,) = figures.principal_components([z], labels).axes
    expected = PCA(2, svd_solver="full").fit_transform(z)
    by_label = np.concatenate([expected[labels == i] for i in (4, 5, 6)])
    signs = np.sign(np.sum(points(panel) * by_label, axis=0))
    colours = set()
    for i, dots, text in zip((4, 5, 6), panel.collections, panel.texts, strict=True):
        assert_components(dots.get_offsets() * signs, expected[labels == i], z)
        assert text.get_text() == str(i)
        middle = np.array(text.get_position()) * signs
        assert_components(middle, np.median(expected[labels == i], axis=0), z)
        colours.add(tuple(dots.get_facecolor()[0]))
    assert len(colours) == 3
    labels[:20] = -1  # unknown
    (panel,) = figures.principal_components([z], labels).axes
    unknown, *known = panel.collections
    assert_components(unknown.get_offsets() * signs, expected[:20], z)
    assert sum(len(dots.get_offsets()) for dots in known) == 40
    assert [text.get_text() for text in panel.texts] == ["4", "5", "6"]


def test_ten_labels_have_ten_colours_and_more_than_ten_have_one():
    generator = np.random.default_rng(2)
    z = generator.standard_normal((44, 3))
    for count, colours in ((10, 10), (11, 1)):
        (panel,) = figures.principal_components([z], np.arange(44) % count).axes
        assert len({tuple(dots.get_facecolor()[0]) for dots in panel.collections}) == colours
        assert len(panel.texts) == (count if colours > 1 else 0)
        assert len(points(panel)) == 44


@pytest.mark.parametrize(
    ("layer", "drawn"),
    [
        (np.arange(12.0)[:, None] ** 2, 12),  # one unit
        (np.ones((12, 3)), 12),  # every image alike
        (np.array([[1.0, 2.0, 3.0]]), 1),  # one image
        (np.full((12, 3), NAN), 0),
        (np.concatenate([np.full((4, 2), INF), np.eye(8, 2)]), 8),
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_layers_of_any_values_are_drawn(layer, drawn, labelled):
    labels = np.arange(len(layer)) % 3 if labelled else np.full(len(layer), -1)
    figure = figures.principal_components([layer, layer], labels)
    assert np.ptp(pixels(figure)) > 0
    panel = figure.axes[0]
    assert np.isfinite(np.ma.filled(points(panel), NAN)).all(axis=1).sum() == drawn
    if drawn == 12 and layer.shape[1] == 1:
        by_label = np.concatenate([layer[labels == name] for name in np.unique(labels)])
        one, zero = points(panel).T
        assert_close(np.abs(one), np.abs(by_label[:, 0] - layer.mean()), 12, 121, EPSILON_64)
        np.testing.assert_array_equal(zero, 0)
        assert "(100% of variance)" in panel.get_xlabel()


# Files.


def test_names_stand_beside_the_middle_of_their_rows():
    picture = pictures.grid(np.zeros((3 * 4, 5, 7)), 4, 0.0, 1.0)
    figure = figures.labelled_rows(picture, ["one", "two", "three"])
    pixels(figure)
    (axes,) = figure.axes
    # Rows are five pixels high and a pixel apart: the middles are 3, 9 and 15 pixels from the top.
    np.testing.assert_array_equal(axes.get_yticks(), [3, 9, 15])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two", "three"]


@pytest.mark.parametrize(("columns", "width", "height"), [(1, 0.6, 6.0), (10, 5.0, 5.0)])
def test_rows_of_few_images_are_not_enlarged(columns, width, height):
    picture = pictures.grid(np.zeros((10 * columns, 50, 50)), columns, 0.0, 1.0)
    figure = figures.labelled_rows(picture, [""] * 10)
    (axes,) = figure.axes
    drawn = axes.get_position().size * figure.get_size_inches()
    # Images lie one pixel apart, a fiftieth of their width.
    np.testing.assert_allclose(drawn, [width, height], rtol=0.03)
    assert figure.get_size_inches()[0] > 6


def test_rows_of_vectors_are_as_high_as_their_names():
    picture = pictures.grid(np.zeros((10 * 9, 1, 5)), 10, 0.0, 1.0)
    figure = figures.labelled_rows(picture, ["name"] * 9)
    figure.canvas.draw()
    (axes,) = figure.axes
    names = [label.get_window_extent() for label in axes.get_yticklabels()]
    for upper, lower in itertools.pairwise(sorted(names, key=lambda box: -box.y0)):
        assert upper.y0 >= lower.y1


def test_a_figure_is_written_as_a_png_of_its_size(tmp_path):
    figure = figures.learning_curves({"": epochs_of([-3.0, -2.0])})
    figures.write_png(tmp_path / "new" / "a.png", figure)
    assert (tmp_path / "new" / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with Image.open(tmp_path / "new" / "a.png") as image:
        image.load()
        assert image.size == tuple(round(150 * inches) for inches in figure.get_size_inches())
        written = np.asarray(image.convert("RGB")).astype(int)
    # 256 colours are close to all that were there, also on the edges of lines.
    assert np.abs(written - pixels(figure)).max() <= 2 * PALETTE
    assert len(np.unique(written.reshape(-1, 3), axis=0)) <= 256


def strokes(count: int) -> np.ndarray:
    """Images of 28×28 in [0, 1] with bright blots on black, about as MNIST's digits fill theirs."""
    noise = np.random.default_rng(0).standard_normal((count, 28, 28))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    return np.clip(10 * smooth - 0.5, 0, 1)


def test_no_figure_of_a_run_as_long_and_wide_as_mnists_is_larger_than_300_kb(tmp_path):
    generator = np.random.default_rng(0)
    sizes, epochs = (64, 32, 16, 8, 4), np.arange(2000)
    elbos = -90 - 100 / (1 + epochs) + 0.3 * generator.standard_normal(2000)
    drawn = {
        "learning_curves": figures.learning_curves({"": epochs_of(elbos, elbos - 1, every=10)}),
        "kl_per_unit": figures.kl_per_unit(
            {
                "": [
                    with_units([np.exp(generator.normal(-3, 2, n)).tolist() for n in sizes], number)
                    for number in range(9, 2000, 10)
                ]
            }
        ),
        "kl_per_layer": figures.kl_per_layer({"": with_layers([11.0, 6.7, 4.2, 1.3, 2.9])}),
        "principal_components": figures.principal_components(
            [generator.standard_normal((10_000, n)) for n in sizes],
            generator.integers(0, 10, 10_000),
        ),
        "layers": figures.labelled_rows(
            pictures.grid(strokes(100), 10, 0.0, 1.0), [f"row {i}" for i in range(10)]
        ),
    }
    for name, figure in drawn.items():
        figures.write_png(tmp_path / f"{name}.png", figure)
    for name in ("samples", "reconstructions"):
        pictures.write_png(tmp_path / f"{name}.png", pictures.grid(strokes(80), 10, 0.0, 1.0))
    sizes_of_files = {file.name: file.stat().st_size for file in tmp_path.glob("*.png")}
    assert len(sizes_of_files) == 7
    assert max(sizes_of_files.values()) < 300_000, sizes_of_files


def test_the_same_figure_is_the_same_file(tmp_path):
    runs = {"a": epochs_of([-3.0, -2.0]), "b": epochs_of([-4.0, -1.0])}
    for file in ("one.png", "two.png"):
        figures.write_png(tmp_path / file, figures.learning_curves(runs))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_log_likelihoods_by_depth_are_drawn_by_model_beside_the_reference():
    values = {"mnist": {"VAE": {2: [-90.0], 1: [-95.0]}, "LVAE": {2: [-85.0]}, "none": {}}}
    figure = figures.by_depth(values, {"mnist": {"the paper's": -82.12, "its VAE": -82.74}})
    assert np.ptp(pixels(figure)) > 0
    (panel,) = figure.axes
    vae, lvae, paper, its_vae = panel.lines
    np.testing.assert_array_equal(vae.get_xydata(), [[1, -95.0], [2, -90.0]])
    np.testing.assert_array_equal(lvae.get_xydata(), [[2, -85.0]])
    assert list(paper.get_ydata()) == [-82.12, -82.12]
    assert list(its_vae.get_ydata()) == [-82.74, -82.74]
    assert legend_texts(figure) == ["VAE", "LVAE", "the paper's", "its VAE"]
    assert len({(line.get_marker(), line.get_linestyle()) for line in panel.lines}) == 4
    assert panel.get_ylabel() == "nats"


def test_log_likelihoods_of_replicas_are_drawn_as_mean_and_standard_deviation():
    values = {"mnist": {"VAE": {1: [-90.0, -92.0], 3: [-80.0, -86.0]}}}
    figure = figures.by_depth(values, {})
    (panel,) = figure.axes
    np.testing.assert_array_equal(panel.lines[0].get_xydata(), [[1, -91.0], [3, -83.0]])
    (bars,) = panel.collections
    # The deviation of two numbers is their distance divided by sqrt(2).
    for bar, mean, deviation in zip(
        bars.get_segments(), [-91, -83], [2**0.5, 18**0.5], strict=True
    ):
        np.testing.assert_allclose(bar[:, 1], [mean - deviation, mean + deviation])
    assert legend_texts(figure) == ["VAE"]


def test_kl_by_layer_is_that_of_the_results_else_of_the_last_evaluation_else_of_the_last_epoch():
    epochs = [
        with_units([[1.0, 0.5], [2.0]], kl_per_layer=[9.0, 8.0]),
        records.epoch(1, kl_per_layer=[7.0, 6.0]),
    ]
    results = records.run_results(kl_per_unit=[[5.0, 1.0], [4.0]])
    assert results.kl_by_layer() == [(6.0, 4.0)]
    assert epochs[0].kl_by_layer() == [(1.5, 2.0)]
    assert epochs[1].kl_by_layer() == [(7.0, 6.0)]
    assert Run(Path(), {}, epochs, results).measured == results
    assert Run(Path(), {}, epochs, None).measured == epochs[0]
    assert Run(Path(), {}, epochs[1:], None).measured is None


# Replicas.


def epochs_of_replicas(train, test) -> list[EpochRecord]:
    """Epochs of replicas with these ELBOs, [replicas][epochs]."""
    by_replica = [epochs_of(*both) for both in zip(train, test, strict=True)]
    return [
        records.epoch(i, *(epoch.replicas[0] for epoch in epochs))
        for i, epochs in enumerate(zip(*by_replica, strict=True))
    ]


def test_learning_curves_of_replicas_are_their_mean_and_thin_each_of_them():
    train = [[-9.0, -5.0], [-7.0, -3.0], [-5.0, -1.0]]
    test = [[-9.5, -6.0], [-7.5, -4.0], [-5.5, -2.0]]
    figure = figures.learning_curves(
        {"three": epochs_of_replicas(train, test), "one": epochs_of([-8.0, -7.0])}
    )
    assert np.ptp(pixels(figure)) > 0
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    thin = [line for line in drawn if line.get_linewidth() < 1]
    for dashes, curves in (("-", train), ("--", test)):
        found = [line.get_ydata() for line in thin if line.get_linestyle() == dashes]
        np.testing.assert_array_equal(found, curves)
        (mean,) = (
            line
            for line in drawn
            if line not in thin
            and line.get_linestyle() == dashes
            and line.get_color() == figures.COLOURS[0]
        )
        assert_close(mean.get_ydata(), np.mean(curves, axis=0), len(curves), epsilon=EPSILON_64)
    assert {line.get_color() for line in thin} == {figures.COLOURS[0]}
    assert legend_texts(figure) == ["three", "one", "training set", "test set"]
    low, high = axes.get_ylim()
    assert low < -9.5
    assert high > -1.0


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_replica_that_is_not_finite_leaves_the_others_to_be_seen(value):
    train = [[-9.0, -5.0], [-7.0, value]]
    (axes,) = figures.learning_curves({"": epochs_of_replicas(train, train)}).axes
    low, high = axes.get_ylim()
    assert low < -9.0 < -5.0 < high


def test_the_bars_of_replicas_are_their_means_with_a_standard_deviation_up_and_down():
    kl = [[5.0, 3.0, 1.0], [7.0, 3.0, 2.0]]
    figure = figures.kl_per_layer({"two": with_layers(kl), "one": with_layers([4.0])})
    assert np.ptp(pixels(figure)) > 0
    (axes,) = figure.axes
    two, one = (found for found in axes.containers if hasattr(found, "patches"))
    assert [bar.get_height() for bar in two] == [6.0, 3.0, 1.5]
    (segments,) = (found.get_segments() for found in two.errorbar.lines[2])
    extents = [segment[:, 1] for segment in segments]
    deviations = [2**0.5, 0.0, 0.5**0.5]
    expected = [(m - d, m + d) for m, d in zip((6.0, 3.0, 1.5), deviations, strict=True)]
    assert_close(extents, expected, roundings=8, epsilon=EPSILON_64)
    assert one.errorbar is None
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["6.0 ± 1.4", "3.0 ± 0.0", "1.5 ± 0.7", "4.0"]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_bar_of_a_layer_that_is_not_finite_in_a_replica_is_left_out(value):
    figure = figures.kl_per_layer({"": with_layers([[5.0, value], [7.0, 3.0]])})
    assert np.ptp(pixels(figure)) > 0
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    np.testing.assert_array_equal(heights, [6.0, NAN])


def test_units_are_counted_and_kl_summed_in_each_replica_by_itself():
    # Unit by unit their mean would be 0.505 twice: two used units where each replica has one.
    units = ([[1.0, 0.01]], [[0.01, 1.0]])
    measured = records.epoch(0, *(records.replica_epoch(kl_per_unit=kl) for kl in units))
    assert measured.used_units() == [(1,), (1,)]
    assert measured.kl_by_layer() == [(1.01,), (1.01,)]


def test_the_kl_of_units_is_drawn_of_the_first_replica_and_says_so():
    first = records.replica_epoch(kl_per_unit=[[1.0, 0.02]])
    other = records.replica_epoch(kl_per_unit=[[0.02, 4.0]])
    both = figures.kl_per_unit({"": [records.epoch(4, first, other)]})
    alone = figures.kl_per_unit({"": [records.epoch(4, first)]})
    assert both.axes[0].get_title() == "the first of 2 replicas"
    assert alone.axes[0].get_title() == ""
    drawn = [figure.axes[0].collections[0].get_array() for figure in (both, alone)]
    np.testing.assert_array_equal(*drawn)
