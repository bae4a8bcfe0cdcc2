"""Pictures of images: a grid of them, whatever their shape."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.store.files import replacing

LONGEST = 8  # times as long as wide


def as_pictures(x: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """Reshapes x to pictures.

    Args:
      x: [n, data_dim].
      image_shape: shape of the data set's images. [height, width] and [height, width, 1 or 3] are
        drawn as they are; for other shapes all axes but the last are stacked vertically. What is
        more than eight times as long as wide, such as a series or a vector, is cut into parts.

    Returns:
      [n, height, width], or [n, height, width, 3] for colours.
    """
    if len(image_shape) == 3 and image_shape[-1] == 3:
        return _cut_into_parts(x.reshape(-1, *image_shape))
    if len(image_shape) == 3 and image_shape[-1] == 1:
        image_shape = image_shape[:-1]
    return _cut_into_parts(x.reshape(len(x), -1, image_shape[-1]))


def _cut_into_parts(pictures: np.ndarray) -> np.ndarray:
    """Equally long parts of a long picture, side by side, make one that is about square."""
    n, height, width, *colours = pictures.shape
    if width > height:
        return _cut_into_parts(pictures.swapaxes(1, 2)).swapaxes(1, 2)
    if height <= LONGEST * width:
        return pictures
    parts = round(math.sqrt(height / width))
    length = math.ceil(height / parts)
    padded = np.full((n, parts * length, width, *colours), np.nan, pictures.dtype)
    padded[:, :height] = pictures
    beside = np.moveaxis(padded.reshape(n, parts, length, width, *colours), 1, 2)
    return beside.reshape(n, length, parts * width, *colours)


def grid(pictures: np.ndarray, columns: int, low: float, high: float) -> np.ndarray:
    """Arranges pictures in a grid, row by row, one white pixel apart.

    Args:
      pictures: [n, height, width], or [n, height, width, 3]. NaN is drawn as black.
      columns: number of columns.
      low: the value drawn as black.
      high: the value drawn as white.

    Returns:
      uint8 [height, width], or [height, width, 3].
    """
    scale = 255 / (high - low) if high > low else 0.0
    scaled = np.nan_to_num(np.clip(np.rint((pictures - low) * scale), 0, 255))
    pictures = scaled.astype(np.uint8)
    n, height, width, *colours = pictures.shape
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *colours), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        canvas[top : top + height, left : left + width] = picture
    return canvas


def interleaved(rows: list[np.ndarray], columns: int = 10) -> np.ndarray:
    """Interleaves arrays [n, ...]: the first `columns` of each, then the next ones, and so on."""
    starts = range(0, len(rows[0]), columns)
    return np.concatenate([part[start : start + columns] for start in starts for part in rows])


def write_png(path: Path, picture: np.ndarray, least_width: int = 600) -> None:
    """Writes a picture; small ones are enlarged by a whole factor, so that pixels stay square."""
    factor = max(1, math.ceil(least_width / picture.shape[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    enlarged = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    with replacing(path) as temporary:
        Image.fromarray(enlarged).save(temporary, "PNG")
