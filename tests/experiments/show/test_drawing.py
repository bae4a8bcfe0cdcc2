"""Figures of a model: every picture stands where its name says, whatever the model draws."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.results import Draws
from experiments.show import drawing, figures

DEPTH, SHAPE = 3, (3, 2)


def constant(codes) -> np.ndarray:
    """Images of one grey value each, [..., data_dim] in [0, 1], from the values of `grey`."""
    return np.repeat(np.float32(codes)[..., None] / 255, 6, axis=-1)


# Every picture has a grey value of its own kind, and nearly all one of their own.
IMAGES = np.arange(20) * 10
IMAGES[19] = 255  # so that the images are black to white
RECONSTRUCTIONS = np.arange(20) * 10 + 3
FIRSTS = np.arange(10) * 20 + 5
SAMPLES = np.arange(80) * 3 + 1
KNOWN = 10 + np.arange(60).reshape(DEPTH, 2, 10) * 4
LINES = np.arange(50).reshape(5, 10) * 5 + 2
DRAWS = Draws(
    image_shape=SHAPE,
    images=constant(IMAGES),
    reconstructions=constant(RECONSTRUCTIONS),
    first_images=constant(FIRSTS),
    known=constant(KNOWN),
    layer=2,
    interpolations=constant(LINES),
    samples=constant(SAMPLES),
    z=tuple(np.float32(np.random.default_rng(i).normal(size=(25, 4 - i))) for i in range(DEPTH)),
    labels=np.int32([2, 1, 1, 0, *[2] * 21]),
)


def grey(picture: np.ndarray, columns: int) -> list[list[int]]:
    """The value in the middle of each image of a grid, by rows."""
    scale = picture.shape[1] // (columns * (SHAPE[1] + 1) + 1)
    height, width = ((side + 1) * scale for side in SHAPE)
    return picture[height // 2 + scale // 2 :: height, width // 2 + scale // 2 :: width].tolist()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of all figures, and the arguments of those with names."""
    folder, given = tmp_path_factory.mktemp("figures"), {"rows": {}}

    def labelled_rows(picture, names):
        given["rows"][names[0]] = names, grey(picture, 10)
        return Figure(figsize=(1, 1))

    def principal_components(z, labels):
        given["components"] = z, labels
        return Figure(figsize=(1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "labelled_rows", labelled_rows)
        patch.setattr(figures, "principal_components", principal_components)
        drawing.draw_model(DRAWS, folder)
    return folder, given


def test_a_reconstruction_stands_below_its_image(drawn):
    folder, _ = drawn
    with Image.open(folder / "reconstructions.png") as image:
        rows = grey(np.asarray(image), 10)
    expected = [IMAGES[:10], RECONSTRUCTIONS[:10], IMAGES[10:], RECONSTRUCTIONS[10:]]
    np.testing.assert_array_equal(rows, expected)


def test_samples_are_drawn_ten_in_a_row(drawn):
    folder, _ = drawn
    with Image.open(folder / "samples.png") as image:
        np.testing.assert_array_equal(grey(np.asarray(image), 10), SAMPLES.reshape(8, 10))


def test_a_row_shows_what_is_left_of_an_image_by_the_layers_that_its_name_says(drawn):
    _, given = drawn
    names, rows = given["rows"]["test images"]
    assert (
        names
        == ["test images", "all $z$ kept"] + ["$z_{2}$ to $z_{3}$ kept"] * 2 + ["$z_{3}$ kept"] * 2
    )
    expected = [FIRSTS, KNOWN[0, 0], KNOWN[1, 0], KNOWN[1, 1], KNOWN[2, 0], KNOWN[2, 1]]
    np.testing.assert_array_equal(rows, expected)


def test_a_line_is_a_row_under_the_name_of_its_layer(drawn):
    _, given = drawn
    names, rows = given["rows"]["in $z_{2}$"]
    assert names == ["in $z_{2}$"] * 5
    np.testing.assert_array_equal(rows, LINES)


def test_principal_components_are_of_the_test_images_with_their_own_labels(drawn):
    _, given = drawn
    z, labels = given["components"]
    np.testing.assert_array_equal(labels, DRAWS.labels)
    for layer, expected in zip(z, DRAWS.z, strict=True):
        np.testing.assert_array_equal(layer, expected)
