"""What a model draws: samples, reconstructions, what each layer knows, interpolations."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.results import Draws
from experiments.run.setup import Experiment
from lvae_jax.bounds import Terms
from lvae_jax.data.source import UNKNOWN
from lvae_jax.models import HierarchicalVAE

RECONSTRUCTED = 40
"""At most this many test images are reconstructed."""

ENCODED = 10_000
"""At most this many test images have their z drawn: those of MNIST."""

INTERPOLATION_STEPS = 10


def draw(experiment: Experiment, variables: Any, layer: int | None = None) -> Draws:
    """Draws what the figures of a model show, from the key "figures" of the first replica.

    Args:
      experiment: the run.
      variables: the first replica's variables for evaluation, on the host.
      layer: the layer to interpolate in; the top one by default.
    """
    model, dataset, x = experiment.model, experiment.dataset, experiment.test_x[:ENCODED]
    layer = layer or model.depth
    labels = dataset.test_labels[: len(x)]
    images = x[: min(RECONSTRUCTED, len(x) // 10 * 10) or len(x)]  # whole rows of ten
    first_images = x[one_of_each(labels)]
    key = experiment.key(0, "figures")
    drawn = draw_images(model, variables, x, first_images, key, layer, len(images))
    return Draws(
        image_shape=dataset.image_shape,
        labels=labels,
        images=images,
        first_images=first_images,
        layer=layer,
        **jax.tree.map(np.asarray, drawn),
    )


@functools.partial(
    jax.jit, static_argnames=("model", "layer", "num_reconstructions", "num_samples")
)
def draw_images(
    model: HierarchicalVAE,
    variables: Any,
    x: Float[Array, "images data_dim"],
    first_x: Float[Array, "columns data_dim"],
    key: Key[Array, ""],
    layer: int,
    num_reconstructions: int,
    num_samples: int = 80,
) -> dict[str, Any]:
    """Computes all images that a model draws in one program.

    Args:
      model: the model.
      variables: its variables, see `evaluation.reestimate_batch_stats`.
      x: the images to sample z of.
      first_x: x of the few images for `known` and `interpolations`.
      key: for all draws.
      layer: the layer to interpolate in, 1 to L.
      num_reconstructions: number of images of x to reconstruct, from the first on.
      num_samples: number of samples from the prior.

    Returns:
      The fields of `Draws` that the model computes, by name.
    """
    sample_key, image_key, first_key, known_key, line_key = jax.random.split(key, 5)

    def posterior_sample(x: Array, key: Key[Array, ""]) -> tuple[Array, ...]:
        terms = cast(Terms, model.apply(variables, x, rngs={"sample": key}))
        return tuple(z[0] for z in terms.z)

    def generate(z: Array, layer: int, key: Key[Array, ""]) -> Any:
        rngs = {"sample": key}
        return model.apply(variables, z, layer=layer, method="generate", rngs=rngs)

    z = posterior_sample(x, image_key)
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
    return {
        "samples": model.apply(variables, sample_key, num_samples=num_samples, method="generate"),
        "reconstructions": generate(z[0][:num_reconstructions], 1, image_key),
        "known": jnp.stack(known),
        "interpolations": interpolations,
        "z": z,
    }


def one_of_each(labels: np.ndarray, count: int = 10) -> np.ndarray:
    """Indices of up to `count` images: the first of each known label, then the first others.

    Example:
      >>> one_of_each(np.array([7, 7, 2, 5, 2]), 4).tolist()
      [2, 3, 0, 1]
    """
    known = np.flatnonzero(labels != UNKNOWN)
    firsts = known[np.unique(labels[known], return_index=True)[1]]
    others = np.setdiff1d(np.arange(len(labels)), firsts)
    return np.concatenate([firsts, others])[:count]
