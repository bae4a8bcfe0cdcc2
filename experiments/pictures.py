"""Pictures of a run: samples from the prior and reconstructions, as grids of images."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from lvae_jax.models import HierarchicalVAE


def as_pictures(x: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """Rows of x in the images' own shape, as something that can be drawn.

    Args:
      x: [n, data_dim].
      image_shape: of the data set. [height, width] and [height, width, 1 or 3] are drawn as they
        are; of other shapes all axes but the last are laid one under the other.

    Returns:
      [n, height, width], or [n, height, width, 3] for colours.
    """
    if len(image_shape) == 3 and image_shape[-1] == 3:
        return x.reshape(-1, *image_shape)
    if len(image_shape) == 3 and image_shape[-1] == 1:
        image_shape = image_shape[:-1]
    return x.reshape(len(x), -1, image_shape[-1])


def grid(pictures: np.ndarray, columns: int, low: float, high: float) -> np.ndarray:
    """Lays pictures out row by row, a pixel apart.

    Args:
      pictures: [n, height, width], or [n, height, width, 3].
      columns: of the grid.
      low: the value drawn as black.
      high: the value drawn as white.

    Returns:
      uint8 [height, width], or [height, width, 3].
    """
    scale = 255 / (high - low) if high > low else 0.0
    pictures = np.clip(np.rint((pictures - low) * scale), 0, 255).astype(np.uint8)
    n, height, width, *colours = pictures.shape
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *colours), 128, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        canvas[top : top + height, left : left + width] = picture
    return canvas


def draw(
    model: HierarchicalVAE,
    variables: dict,
    test_x: jax.Array,
    image_shape: tuple[int, ...],
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """The pictures of a run, by name.

    Args:
      model: the model.
      variables: its variables.
      test_x: test images; the first ones are reconstructed, 40 at most.
      image_shape: of the data set.
      key: for samples of z.

    Returns:
      "samples": means of p(x | z_1) for 80 draws from the prior. "reconstructions": rows of ten
      test images, each above a row of what the model makes of them. Grey values are those of the
      test images: 0 to 1 if they are binary, else from their least to their greatest.
    """
    shown = test_x[: min(40, len(test_x) // 10 * 10) or len(test_x)]  # whole rows of ten
    sample_key, reconstruction_key = jax.random.split(key)
    samples = jax.jit(lambda v, k: model.apply(v, k, num_samples=80, method="generate"))(
        variables, sample_key
    )
    reconstructions = jax.jit(
        lambda v, x, k: model.apply(v, x, method="reconstruct", rngs={"sample": k})
    )(variables, shown, reconstruction_key)
    low, high = float(jnp.min(shown)), float(jnp.max(shown))

    originals, copies = (as_pictures(np.asarray(x), image_shape) for x in (shown, reconstructions))
    pairs = [
        part[start : start + 10]
        for start in range(0, len(shown), 10)
        for part in (originals, copies)
    ]
    return {
        "samples": grid(as_pictures(np.asarray(samples), image_shape), 10, low, high),
        "reconstructions": grid(np.concatenate(pairs), min(10, len(shown)), low, high),
    }


def write_png(path: Path, picture: np.ndarray, least_width: int = 600) -> None:
    """Writes a picture, small ones enlarged by a whole factor so that pixels stay squares."""
    factor = max(1, math.ceil(least_width / picture.shape[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1)).save(path)
