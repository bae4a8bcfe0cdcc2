"""How unusual an image is to a trained hierarchy: the likelihood ratio of Havtorn et al. (2021)."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

from lvae_jax import bounds, distributions
from lvae_jax.bounds import Terms
from lvae_jax.checks import check_whole, per_image, warns_of_values
from lvae_jax.models import HierarchicalVAE, given


class LikelihoodRatio(NamedTuple):
    """Likelihood ratios of every image, in nats."""

    ratio: Float[Array, " batch"]
    """L - L^{>k}: large for an image whose upper layers do not explain it."""

    standard_error: Float[Array, " batch"]
    """Of `ratio`, over its samples."""

    elbo: Float[Array, " batch"]
    """L, from the same samples."""

    elbo_above: Float[Array, " batch"]
    """L^{>k}, from the same samples of the upper layers."""


@warns_of_values
@functools.partial(jax.jit, static_argnames=("model", "above", "num_samples", "batch_size"))
def likelihood_ratio(
    model: HierarchicalVAE,
    variables: Any,
    x: Float[Array, "batch data_dim"],
    key: Key[Array, ""] | UInt32[Array, " words"],
    *,
    above: int,
    num_samples: int = 16,
    batch_size: int = 50,
    condition: Float[Array, "batch features"] | None = None,
) -> LikelihoodRatio:
    """LLR^{>k} = L - L^{>k}, the ELBO minus an ELBO that uses only the layers above k.

        L^{>k} = E[log p(x | z) + log p(z_{>k}) - log q(z_{>k} | x)],
                 z_{>k} ~ q(z_{>k} | x),  z_{<=k} ~ p(z_{<=k} | z_{>k})

    is also a lower bound of log p(x); its k lowest layers are drawn from their priors. It is loose
    if the image has details that its upper layers do not imply. Both bounds use the same samples of
    the upper layers, so their noise cancels in the difference.

    In bottom-up inference (the VAE) q(z_{>k} | x) is a mixture over the lower layers and has no
    density in closed form. There z_{<=k} is drawn from q, z_{>k} from q(z_{>k} | z_k), whose
    density replaces q(z_{>k} | x), and the lower layers are then drawn again. This is a lower bound
    for every z_k, and therefore on average; it is looser than the bound above.

    Source: Havtorn, Frellsen, Hauberg, Maaløe 2021, Hierarchical VAEs Know What They Don't Know,
    arXiv:2102.08248.

    Args:
      model: a trained model of at least two layers.
      variables: its variables, batch-norm statistics included.
      x: the images.
      key: a key, from which image i takes `fold_in(key, i)`.
      above: k, between 1 and L - 1.
      num_samples: samples per image, at least 2.
      batch_size: images at a time; the result does not depend on it.
      condition: of every image, for a model with a `condition_dim`.

    Returns:
      [batch] each.

    Raises:
      ValueError: there is no such k, fewer than two samples, a batch_size of less than 1, or x or
        the condition does not have the model's shape.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model = LadderVAE(4, (3, 2), (8, 8), batch_norm=False)
      >>> x, key = jnp.ones((5, 4)), jax.random.key(0)
      >>> variables = jax.jit(model.init)({"params": key, "sample": key}, x)
      >>> likelihood_ratio(model, variables, x, key, above=1).ratio.shape
      (5,)
    """
    if model.depth == 1:
        raise ValueError("a model of one layer has no layers above another; its ELBO is all it has")
    if not 1 <= above < model.depth:
        raise ValueError(f"above={above}; a model of {model.depth} layers takes 1 to L - 1")
    if num_samples < 2:
        raise ValueError(f"num_samples={num_samples}; give at least 2, for a standard error")
    check_whole(batch_size=batch_size)

    images = per_image(x, key, condition, model.data_dim)

    def of_image(image: tuple[Array, Any, Any]) -> tuple[Array, Array]:
        x, key, condition = image
        x, condition = jax.tree.map(lambda a: a[None], (x, condition))
        apply = functools.partial(model.apply, variables, **given(condition))
        posterior_key, prior_key = jax.random.split(key)
        rngs = {"sample": posterior_key}
        terms = cast(Terms, apply(x, num_samples, rngs=rngs))
        kl = [layer[:, 0] for layer in bounds.sum_units(bounds.kl_per_unit(terms))]

        z = list(terms.z)
        for layer in range(above, 0, -1):
            prior: Any = apply(layer, z[layer], method="prior")
            z[layer - 1] = distributions.sample(jax.random.fold_in(prior_key, layer), prior)
        redrawn = cast(Terms, apply(x, z, method="densities"))
        return terms.log_px[:, 0] - sum(kl), redrawn.log_px[:, 0] - sum(kl[above:])

    elbo, elbo_above = jax.lax.map(of_image, images, batch_size=batch_size)
    ratio = elbo - elbo_above  # [batch, samples]
    return LikelihoodRatio(
        ratio=jnp.mean(ratio, axis=1),
        standard_error=jnp.std(ratio, axis=1, ddof=1) / jnp.sqrt(jnp.float32(num_samples)),
        elbo=jnp.mean(elbo, axis=1),
        elbo_above=jnp.mean(elbo_above, axis=1),
    )
