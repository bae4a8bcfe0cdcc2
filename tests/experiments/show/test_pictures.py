"""Pictures of images, whatever their shape."""

import numpy as np
import pytest
from PIL import Image

from experiments.show import pictures


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
    found = pictures.as_pictures(x, image_shape)
    assert found.shape == (2, *drawn)
    np.testing.assert_array_equal(found.ravel(), x.ravel())


@pytest.mark.parametrize(
    ("image_shape", "drawn"),
    [
        ((8,), (1, 8)),
        ((784,), (28, 28)),
        ((1400, 1), (38, 37)),  # 37 parts of 38
        ((500, 2), (32, 32)),
        ((2, 500), (32, 32)),
        ((3000, 2, 3), (77, 78, 3)),  # 39 parts of 77
    ],
)
def test_long_pictures_are_cut_into_parts(image_shape, drawn):
    size = int(np.prod(image_shape))
    x = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    found = pictures.as_pictures(x, image_shape)
    assert found.shape == (2, *drawn)
    for one, values in zip(found, x, strict=True):
        np.testing.assert_array_equal(np.sort(one[np.isfinite(one)]), values)


def test_the_parts_of_a_long_picture_lie_side_by_side():
    x = np.arange(9, dtype=np.float32)[None]
    expected = [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    np.testing.assert_array_equal(pictures.as_pictures(x, (9, 1)), [expected])
    np.testing.assert_array_equal(pictures.as_pictures(x, (9,)), [np.transpose(expected)])


def test_a_grid_lays_pictures_out_row_by_row_a_white_pixel_apart():
    black, grey = np.zeros((1, 2)), np.full((1, 2), 0.4)
    drawn = pictures.grid(np.stack([grey, black, grey]), columns=2, low=0.0, high=1.0)
    g = 255
    expected = [
        [g, g, g, g, g, g, g],
        [g, 102, 102, g, 0, 0, g],
        [g, g, g, g, g, g, g],
        [g, 102, 102, g, g, g, g],
        [g, g, g, g, g, g, g],
    ]
    np.testing.assert_array_equal(drawn, expected)


def test_values_are_scaled_to_the_range_given_and_cut_off_beyond_it():
    drawn = pictures.grid(np.array([[[-5.0, -1.0, 0.0, 1.0, 9.0]]]), columns=1, low=-1.0, high=1.0)
    assert drawn[1, 1:-1].tolist() == [0, 0, 128, 255, 255]


def test_images_that_are_all_of_one_value_can_be_drawn():
    drawn = pictures.grid(np.full((1, 1, 2), 3.0), columns=1, low=3.0, high=3.0)
    assert drawn[1, 1:-1].tolist() == [0, 0]


def test_a_small_picture_is_enlarged_by_a_whole_factor(tmp_path):
    pictures.write_png(tmp_path / "new" / "a.png", np.array([[0, 255]], np.uint8), least_width=5)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert np.asarray(image).tolist() == [[0] * 3 + [255] * 3] * 3


def test_values_that_are_not_finite_are_drawn_all_the_same():
    values = np.array([[[np.nan, np.inf, -np.inf, 1.0]]])
    drawn = pictures.grid(values, columns=1, low=0.0, high=1.0)
    assert drawn[1, 1:-1].tolist() == [0, 255, 0, 255]


def test_colours_are_drawn_as_they_are():
    red_and_white = np.array([[[[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]])
    drawn = pictures.grid(red_and_white, columns=1, low=0.0, high=1.0)
    assert drawn[1, 1:-1].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_rows_stand_above_each_other_ten_by_ten():
    upper, lower = np.arange(14), 100 + np.arange(14)
    found = pictures.interleaved([upper, lower], columns=10)
    expected = [*range(10), *range(100, 110), *range(10, 14), *range(110, 114)]
    assert found.tolist() == expected
