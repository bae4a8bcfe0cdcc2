"""Pictures from a model: samples, reconstructions, what each layer knows, interpolations."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from PIL import Image

from lvae_jax.bounds import Terms
from lvae_jax.models import HierarchicalVAE

INTERPOLATION_STEPS = 10
LONGEST = 8  # times as long as wide


class Draws(NamedTuple):
    """Means of p(x | z_1) for z from the prior and from posteriors, and samples of z."""

    samples: Float[Array, "samples data_dim"]
    """From the prior."""

    reconstructions: Float[Array, "images data_dim"]
    """With z drawn from the posterior of each image."""

    known: Float[Array, "depth draws images data_dim"]
    """For layer i: z_i is a posterior sample, and all layers below it are drawn from their priors.
    What changes between draws is not determined by z_i."""

    interpolations: Float[Array, "pairs steps data_dim"]
    """Straight lines in one layer's z between posterior samples of two images; the noise of the
    layers below is fixed along each line."""

    z: tuple[Float[Array, "images units"], ...]
    """Per layer, a posterior sample of each image."""


@functools.partial(jax.jit, static_argnames=("model", "layer", "num_samples"))
def draw(
    model: HierarchicalVAE,
    variables: Any,
    images: Float[Array, "images data_dim"],
    first_x: Float[Array, "columns data_dim"],
    key: Key[Array, ""],
    layer: int,
    num_samples: int = 80,
) -> Draws:
    """Computes all pictures of a model in one program.

    Args:
      model: the model.
      variables: its variables, see `evaluation.reestimate_batch_stats`.
      images: x of the images to reconstruct and to sample z of.
      first_x: x of the few images for `known` and `interpolations`.
      key: for all draws.
      layer: the layer to interpolate in, 1 to L.
      num_samples: number of samples from the prior.
    """
    sample_key, image_key, first_key, known_key, line_key = jax.random.split(key, 5)

    def posterior_sample(x: Array, key: Key[Array, ""]) -> tuple[Array, ...]:
        terms = cast(Terms, model.apply(variables, x, rngs={"sample": key}))
        return tuple(z[0] for z in terms.z)

    def generate(z: Array, layer: int, key: Key[Array, ""]) -> Any:
        rngs = {"sample": key}
        return model.apply(variables, z, layer=layer, method="generate", rngs=rngs)

    z = posterior_sample(images, image_key)
    first_z = posterior_sample(first_x, first_key)
    known = [
        jnp.stack([generate(first_z[i], i + 1, key) for key in jax.random.split(known_key)])
        for i in range(model.depth)
    ]

    ends = first_z[layer - 1]
    ends = ends[: len(ends) // 2 * 2].reshape(-1, 2, 1, ends.shape[-1])
    weights = jnp.linspace(0, 1, INTERPOLATION_STEPS)[None, :, None]
    lines = (1 - weights) * ends[:, 0] + weights * ends[:, 1]
    # vmap over the steps with one key: all steps of a line have the same noise.
    interpolations = jax.vmap(lambda z: generate(z, layer, line_key), 1, 1)(lines)

    samples = model.apply(variables, sample_key, num_samples=num_samples, method="generate")
    return Draws(
        samples=cast(Array, samples),
        reconstructions=generate(z[0], 1, image_key),
        known=jnp.stack(known),
        interpolations=interpolations,
        z=z,
    )


def one_of_each(labels: np.ndarray, count: int = 10) -> np.ndarray:
    """Indices of up to `count` images: the first of each label, then the first others.

    Example:
      >>> one_of_each(np.array([7, 7, 2, 5, 2]), 4).tolist()
      [2, 3, 0, 1]
    """
    _, firsts = np.unique(labels, return_index=True)
    others = np.setdiff1d(np.arange(len(labels)), firsts)
    return np.concatenate([firsts, others])[:count]


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
    """Arranges pictures in a grid, row by row, one pixel apart.

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
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *colours), 128, np.uint8)
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
    Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1)).save(path)
