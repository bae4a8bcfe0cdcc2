"""Pictures of images, whatever their shape."""

import numpy as np
import pytest
from PIL import Image

from experiments import figures


@pytest.mark.parametrize(
    ("image_shape", "drawn"),
    [
        ((6,), (1, 6)),
        ((3, 2), (3, 2)),
        ((3, 2, 1), (3, 2)),
        ((1, 2, 3), (1, 2, 3)),  # colours
        ((2, 3, 4), (6, 4)),  # two slices of 3×4, one under the other
    ],
)
def test_images_are_drawn_in_their_own_shape(image_shape, drawn):
    size = int(np.prod(image_shape))
    x = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    pictures = figures.as_pictures(x, image_shape)
    assert pictures.shape == (2, *drawn)
    np.testing.assert_array_equal(pictures.ravel(), x.ravel())


def test_a_grid_lays_pictures_out_row_by_row_a_grey_pixel_apart():
    black, white = np.zeros((1, 2)), np.ones((1, 2))
    drawn = figures.grid(np.stack([white, black, white]), columns=2, low=0.0, high=1.0)
    g = 128
    expected = [
        [g, g, g, g, g, g, g],
        [g, 255, 255, g, 0, 0, g],
        [g, g, g, g, g, g, g],
        [g, 255, 255, g, g, g, g],
        [g, g, g, g, g, g, g],
    ]
    np.testing.assert_array_equal(drawn, expected)


def test_values_are_scaled_to_the_range_given_and_cut_off_beyond_it():
    drawn = figures.grid(np.array([[[-5.0, -1.0, 0.0, 1.0, 9.0]]]), columns=1, low=-1.0, high=1.0)
    assert drawn[1, 1:-1].tolist() == [0, 0, 128, 255, 255]


def test_images_that_are_all_of_one_value_can_be_drawn():
    drawn = figures.grid(np.full((1, 1, 2), 3.0), columns=1, low=3.0, high=3.0)
    assert drawn[1, 1:-1].tolist() == [0, 0]


def test_a_small_picture_is_enlarged_by_a_whole_factor(tmp_path):
    figures.write_png(tmp_path / "new" / "a.png", np.array([[0, 255]], np.uint8), least_width=5)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert np.asarray(image).tolist() == [[0] * 3 + [255] * 3] * 3
