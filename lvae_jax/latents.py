"""Encodes images into the latents of a trained model, layer by layer."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from lvae_jax.bounds import Terms
from lvae_jax.checks import check_whole, per_image, warns_of_values
from lvae_jax.distributions import Gaussian
from lvae_jax.evaluation import active_units
from lvae_jax.models import HierarchicalVAE, given


class Latents(NamedTuple):
    """The latents of images, as tuples over layers from the bottom to the top."""

    posterior: tuple[Gaussian, ...]
    """q(z_i | ...) given the neighbouring layer of `z`; [batch, units]."""

    z: tuple[Float[Array, "batch _units"], ...]
    """The values passed from layer to layer: the posterior means, or a sample."""

    active: tuple[Bool[Array, " _units"], ...]
    """Which units vary with the image: see `evaluation.active_units`."""


@warns_of_values
@functools.partial(jax.jit, static_argnames=("model", "batch_size"))
def encode(
    model: HierarchicalVAE,
    variables: Any,
    x: Float[Array, "batch data_dim"],
    key: Key[Array, ""] | UInt32[Array, " words"] | None = None,
    *,
    batch_size: int = 250,
    condition: Float[Array, "batch features"] | None = None,
) -> Latents:
    """The posterior of every layer, (7)-(9) or (16)-(19), along the means or along a sample.

    Every q(z_i | ...) is conditioned on a value of a neighbouring layer. Without a key that value
    is its posterior's mean: one deterministic point per image, for features, retrieval and plots.
    With a key it is a sample, which represents the posterior's uncertainty: for averages over q and
    for anything that is decoded again.

    Args:
      model: a trained model.
      variables: its variables, batch-norm statistics included.
      x: the images.
      key: None for the means; or a key, from which image i takes `fold_in(key, i)`.
      batch_size: images at a time; the result does not depend on it.
      condition: of every image, for a model with a `condition_dim`.

    Returns:
      The latents. `active` is Burda's criterion over these images: from two independent samples of
      each image if a key is given, else from the variance of the means.

    Raises:
      ValueError: x or the condition does not have the model's shape, or x has integers that may be
        grey values; or batch_size is less than 1.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model = LadderVAE(4, (3, 2), (8, 8), batch_norm=False)
      >>> x = jnp.ones((5, 4))
      >>> keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
      >>> latents = encode(model, jax.jit(model.init)(keys, x), x)
      >>> [q.mean.shape for q in latents.posterior]
      [(5, 3), (5, 2)]
    """
    check_whole(batch_size=batch_size)
    x, keys, condition = per_image(x, key, condition, model.data_dim)

    def of_image(image: tuple[Array, Any, Any]) -> tuple[Any, Any]:
        *rows, key = image
        x, condition = jax.tree.map(lambda a: a[None], rows)
        apply = functools.partial(model.apply, variables, **given(condition))
        if key is None:
            terms = cast(Terms, apply(x, method="along_means"))
        else:
            terms = cast(Terms, apply(x, 2, rngs={"sample": key}))
        return jax.tree.map(lambda a: a[:, 0], (terms.posterior, terms.z))

    # [batch, samples, units]
    posterior, z = jax.lax.map(of_image, (x, condition, keys), batch_size=batch_size)
    active = []
    for q in posterior:
        means = jnp.swapaxes(q.mean, 0, 1)
        # The mean counts as one sample, whose covariance with itself is the variance.
        active.append(active_units(means if keys is not None else jnp.repeat(means, 2, axis=0)))
    posterior, z = jax.tree.map(lambda a: a[:, 0], (posterior, z))
    return Latents(posterior, z, tuple(active))
