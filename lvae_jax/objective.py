"""The objective of training, equation (20) or (6), as one value; its loss and gradients."""

import dataclasses
from numbers import Integral
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped, UInt32

from lvae_jax import bounds
from lvae_jax.bounds import Terms
from lvae_jax.models import Model, given

PATH_BOUNDS = {"stl": bounds.sticking_the_landing, "dreg": bounds.doubly_reparameterized}
"""The bounds whose gradient leaves out the score of q(z | x), by gradient name."""

GRADIENTS = ("standard", *PATH_BOUNDS)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The bound that training maximises, its samples and its gradient. Static under `jit`.

    Fields:
      mc_samples: independent estimates of the bound per example, averaged.
      importance_samples: K of equation (6). With K = 1 the bound is the ELBO, equation (20), with
        KL terms in closed form where possible; with K > 1, the importance-weighted bound.
      gradient: the gradient of the inference model's parameters: "standard", the bound's own;
        "stl", that of `bounds.sticking_the_landing`; or "dreg", that of
        `bounds.doubly_reparameterized`. With "stl" the generative model's gradient, too, is of the
        bound without closed forms, so that both need one pass backward.
      free_bits: nats per unit, see `bounds.free_bits`; 0 for none. For the ELBO and its standard
        gradient only.
      closed_form_kl: whether the ELBO's KL terms are in closed form where possible; if not, all
        are log q - log p at the sample, as in the authors' code.

    Raises:
      ValueError: a number of samples is not a whole number of at least 1, there is no such
        gradient, or free bits are negative or combined with another bound or gradient.

    Example:
      >>> Objective(mc_samples=10, importance_samples=10).num_samples  # as the paper fine-tunes
      100
    """

    mc_samples: int = 1
    importance_samples: int = 1
    gradient: str = "standard"
    free_bits: float = 0.0
    closed_form_kl: bool = True

    def __post_init__(self) -> None:
        numbers = (self.mc_samples, self.importance_samples)
        if not all(isinstance(number, Integral) and number >= 1 for number in numbers):
            raise ValueError(
                f"mc_samples={self.mc_samples!r}, importance_samples={self.importance_samples!r}; "
                "give at least 1 of each, as whole numbers"
            )
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient={self.gradient!r}; give one of {', '.join(GRADIENTS)}")
        if not self.free_bits >= 0:
            raise ValueError(f"free_bits={self.free_bits}; give nats per unit, at least 0")
        if self.free_bits and (self.importance_samples > 1 or self.gradient != "standard"):
            raise ValueError(
                f"free_bits={self.free_bits}, importance_samples={self.importance_samples}, "
                f"gradient={self.gradient!r}: free bits are for the ELBO and its standard "
                "gradient; give importance_samples=1 and gradient='standard', or free_bits=0"
            )

    @property
    def num_samples(self) -> int:
        """Samples of z per example."""
        return self.mc_samples * self.importance_samples

    def loss(self, terms: Terms, beta: float | Float[Array, ""] = 1.0) -> Float[Array, ""]:
        """Minus the bound, averaged over the examples and over the groups of K samples, in nats.

        Args:
          terms: of a model, with `num_samples` samples.
          beta: weight of the KL terms.

        Returns:
          A scalar. Its gradient is the standard one.
        """
        if not self.closed_form_kl:
            no_layer = (False,) * len(terms.closed_form_kl)
            terms = dataclasses.replace(terms, closed_form_kl=no_layer)
        if self.free_bits:
            return -bounds.free_bits(terms, beta, self.free_bits)
        if self.importance_samples == 1:
            return -jnp.mean(bounds.elbo(terms, beta))
        return -jnp.mean(bounds.importance_weighted(terms, beta, self.importance_samples))


ELBO = Objective()
"""The paper's: the ELBO, equation (20), by one sample per example."""


class Metrics(NamedTuple):
    """Means over the examples of a batch, or over the batches of an epoch, in nats.

    Computed with beta = 1 from the parameters before each step's update.
    """

    train_elbo: Float[Array, ""]
    log_px: Float[Array, ""]
    kl_per_layer: Float[Array, " layers"]


def _means(per_layer: tuple[Float[Array, "samples batch"], ...]) -> Float[Array, " layers"]:
    """The mean of each layer; accelerators compute all of them in one kernel."""

    def one_by_one(*layers: Array) -> Array:
        return jnp.stack([jnp.mean(layer) for layer in layers])

    def at_once(*layers: Array) -> Array:
        return jnp.mean(jnp.stack(layers, axis=-1), axis=(0, 1))

    means: Array = jax.lax.platform_dependent(*per_layer, cpu=one_by_one, default=at_once)
    return means


def metrics_of(terms: Terms) -> Metrics:
    """The means of a batch's terms over samples and examples."""
    kl_per_layer = bounds.sum_units(bounds.kl_per_unit(terms))
    return Metrics(
        train_elbo=jnp.mean(bounds.elbo(terms)),
        log_px=jnp.mean(terms.log_px),
        kl_per_layer=_means(kl_per_layer),
    )


def loss_and_gradients(
    model: Model,
    params: Any,
    x: Shaped[Array, "batch data_dim"],
    key: Key[Array, ""] | UInt32[Array, " words"],
    beta: float | Float[Array, ""] = 1.0,
    objective: Objective = ELBO,
    condition: Float[Array, "batch features"] | None = None,
) -> tuple[Float[Array, ""], Metrics, Any]:
    """Minus the objective of a batch, equation (20) or (6), and its gradients.

    Args:
      model: a model.
      params: its parameters.
      x: the batch, of any dtype; converted to float32. Integers are not checked: grey values must
        be divided by 255 before, which `preprocess` of `training.train_epoch` can do.
      key: for the samples of z.
      beta: weight of the KL terms.
      objective: the objective.
      condition: of each example, for a model that takes one.

    Returns:
      The loss in nats, the batch's metrics, and a gradient for every parameter.

    Raises:
      ValueError: x holds no examples.

    Example:
      >>> import optax
      >>> from lvae_jax import LadderVAE
      >>> model, x = LadderVAE(data_dim=4, latent_sizes=(2,), hidden_sizes=(3,)), jnp.eye(4)
      >>> optimizer, key = optax.adam(1e-3), jax.random.key(0)
      >>> @jax.jit
      ... def step(params, opt_state, key):
      ...     loss, metrics, gradients = loss_and_gradients(model, params, x, key)
      ...     updates, opt_state = optimizer.update(gradients, opt_state)
      ...     return optax.apply_updates(params, updates), opt_state, metrics
      >>> params = jax.jit(model.init)({"params": key, "sample": key}, x)["params"]
      >>> params, opt_state, metrics = step(params, optimizer.init(params), key)
    """
    if not x.shape[0]:
        raise ValueError("x holds 0 examples; give at least 1")
    # Under jax_enable_x64 float64 would spread from here to the gradients and the metrics.
    x, beta = jnp.asarray(x, jnp.float32), jnp.asarray(beta, jnp.float32)

    training = {"train": True, **given(condition)}

    def infer(params: Any) -> Terms:
        rngs = {"sample": key}
        return cast(
            Terms, model.apply({"params": params}, x, objective.num_samples, rngs=rngs, **training)
        )

    def loss(params: Any) -> tuple[Float[Array, ""], Metrics]:
        terms = infer(params)
        return objective.loss(terms, beta), metrics_of(terms)

    def path_loss(params: Any) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Metrics]]:
        # The inference model's parameters enter the samples, and the densities as constants.
        constant = {**params, "inference": jax.lax.stop_gradient(params["inference"])}
        terms = infer(params)
        path = cast(
            Terms, model.apply({"params": constant}, x, terms.z, method="densities", **training)
        )
        bound = PATH_BOUNDS[objective.gradient](path, beta, objective.importance_samples)
        return -jnp.mean(bound), (objective.loss(terms, beta), metrics_of(terms))

    if objective.gradient == "standard":
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, metrics, gradients
    gradients, (value, metrics) = jax.grad(path_loss, has_aux=True)(params)
    if objective.gradient == "dreg":  # its weights are for the inference model alone
        own, _ = jax.grad(loss, has_aux=True)(params)
        gradients = {**own, "inference": gradients["inference"]}
    return value, metrics, gradients
