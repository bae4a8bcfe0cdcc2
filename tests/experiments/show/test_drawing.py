"""Figures of a model: every picture stands where its name says, whatever the model draws."""

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.show import drawing, figures, pictures
from lvae_jax import LadderVAE
from lvae_jax.data import Dataset

DEPTH, SHAPE = 3, (3, 2)
MODEL = LadderVAE(6, (4, 3, 2), (8, 8, 8), batch_norm=False)
LABELS = np.int32([2, 1, 1, 0, *[2] * 21])
FIRSTS = [3, 1, 0, 2, *range(4, 10)]  # the first of each label, and others up to ten


def constant(codes) -> np.ndarray:
    """Images of one grey value each, [..., data_dim] in [0, 1], from the values of `grey`."""
    return np.repeat(np.float32(codes)[..., None] / 255, 6, axis=-1)


# Every picture has a grey value of its own kind, and nearly all one of their own.
TEST = np.arange(25) * 10
TEST[19] = 255  # so that the twenty images that are reconstructed are black to white
RECONSTRUCTED = np.arange(25) * 10 + 3
SAMPLES = np.arange(80) * 3 + 1
KNOWN = 10 + np.arange(60).reshape(DEPTH, 2, 10) * 4
LINES = np.arange(50).reshape(5, 10) * 5 + 2
Z = tuple(np.float32(np.random.default_rng(i).normal(size=(25, 4 - i))) for i in range(DEPTH))


def grey(picture: np.ndarray, columns: int) -> list[list[int]]:
    """The value in the middle of each image of a grid, by rows."""
    scale = picture.shape[1] // (columns * (SHAPE[1] + 1) + 1)
    height, width = ((side + 1) * scale for side in SHAPE)
    return picture[height // 2 + scale // 2 :: height, width // 2 + scale // 2 :: width].tolist()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of all figures, the arguments of those with names, and of the draws."""
    folder, given = tmp_path_factory.mktemp("figures"), {"rows": {}}

    def draw(model, variables, images, first_x, key, layer):
        given["draw"] = images, first_x, layer
        return pictures.Draws(
            samples=constant(SAMPLES),
            reconstructions=constant(RECONSTRUCTED),
            known=constant(KNOWN),
            interpolations=constant(LINES),
            z=Z,
        )

    def labelled_rows(picture, names):
        given["rows"][names[0]] = names, grey(picture, 10)
        return Figure(figsize=(1, 1))

    def principal_components(z, labels):
        given["components"] = z, labels
        return Figure(figsize=(1, 1))

    images = constant(TEST).reshape(25, *SHAPE)
    dataset = Dataset("tiny", images, LABELS, images, LABELS, "bernoulli", "dynamic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", draw)
        patch.setattr(figures, "labelled_rows", labelled_rows)
        patch.setattr(figures, "principal_components", principal_components)
        key = jax.random.key(0)
        drawing.draw_model(MODEL, {}, dataset, constant(TEST), key, folder)
    return folder, given


def test_a_reconstruction_stands_below_its_image(drawn):
    folder, _ = drawn
    with Image.open(folder / "reconstructions.png") as image:
        rows = grey(np.asarray(image), 10)
    expected = [TEST[:10], RECONSTRUCTED[:10], TEST[10:20], RECONSTRUCTED[10:20]]
    np.testing.assert_array_equal(rows, expected)


def test_samples_are_drawn_ten_in_a_row(drawn):
    folder, _ = drawn
    with Image.open(folder / "samples.png") as image:
        np.testing.assert_array_equal(grey(np.asarray(image), 10), SAMPLES.reshape(8, 10))


def test_a_row_shows_what_is_left_of_an_image_by_the_layers_that_its_name_says(drawn):
    _, given = drawn
    np.testing.assert_array_equal(given["draw"][1], constant(TEST[FIRSTS]))
    names, rows = given["rows"]["test images"]
    assert (
        names
        == ["test images", "all $z$ kept"] + ["$z_{2}$ to $z_{3}$ kept"] * 2 + ["$z_{3}$ kept"] * 2
    )
    expected = [TEST[FIRSTS], KNOWN[0, 0], KNOWN[1, 0], KNOWN[1, 1], KNOWN[2, 0], KNOWN[2, 1]]
    np.testing.assert_array_equal(rows, expected)


def test_a_line_is_a_row_under_the_name_of_its_layer(drawn):
    _, given = drawn
    assert given["draw"][2] == DEPTH
    names, rows = given["rows"]["in $z_{3}$"]
    assert names == ["in $z_{3}$"] * 5
    np.testing.assert_array_equal(rows, LINES)


def test_principal_components_are_of_the_test_images_with_their_own_labels(drawn):
    _, given = drawn
    np.testing.assert_array_equal(given["draw"][0], constant(TEST))
    z, labels = given["components"]
    np.testing.assert_array_equal(labels, LABELS)
    for layer, expected in zip(z, Z, strict=True):
        np.testing.assert_array_equal(layer, expected)
