"""Training: the state, one step, and an epoch as one compiled program over data on the device.

Keys are derived, never stored: a draw of step s is a function of the root key, a name and s alone,
so that any step can be recomputed and a resumed run equals an uninterrupted one.
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from lvae_jax import bounds
from lvae_jax.bounds import Terms
from lvae_jax.models import HierarchicalVAE

Preprocess = Callable[[Key[Array, ""], Array], Float[Array, "batch data_dim"]]
"""Images as stored to x: binarisation or dequantisation with the key given, flattening."""


PATH_BOUNDS = {"stl": bounds.sticking_the_landing, "dreg": bounds.doubly_reparameterized}
"""What the inference model's parameters climb instead of the bound, by the gradient's name."""

GRADIENTS = ("standard", *PATH_BOUNDS)


class TrainState(NamedTuple):
    """What changes from step to step: enough to go on exactly where training stopped."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]


class EpochMetrics(NamedTuple):
    """Means over an epoch's examples, in nats, with beta = 1 and the parameters of each step."""

    train_elbo: Float[Array, ""]
    log_px: Float[Array, ""]
    kl_per_layer: Float[Array, " layers"]


def named_key(key: Key[Array, ""], name: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The key of a name at a step (or epoch): `fold_in` of the name's CRC-32, then of the step."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


@functools.cache
def make_optimizer(
    max_gradient_norm: float | None = None,
    max_gradient: float | None = None,
    adam_epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam without its learning rate, which `train_epoch` is given for each epoch.

    The same arguments give the same object, so that no program is compiled twice for it.

    Args:
      max_gradient_norm: gradients of a larger total norm are scaled down to it (the authors: 4).
      max_gradient: gradients are then clipped elementwise to plus or minus this (the authors: 0.9).
      adam_epsilon: Adam's epsilon (the authors: 1e-4).

    Returns:
      Adam's direction of descent, without the factor -learning_rate.
    """
    return optax.chain(
        optax.identity()
        if max_gradient_norm is None
        else optax.clip_by_global_norm(max_gradient_norm),
        optax.identity() if max_gradient is None else optax.clip(max_gradient),
        optax.scale_by_adam(eps=adam_epsilon),
    )


def scheduled_learning_rate(schedule: str, initial: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch.

    Args:
      schedule: "constant"; "staircase", the paper's for fine-tuning: times 0.75 after every tenth
        of the epochs (200 of its 2,000); or "cosine", half a cosine from `initial` to 0 at the end.
      initial: learning rate of the first epoch.
      epoch: counted from 0.
      epochs: length of the run.

    Returns:
      The learning rate.

    Raises:
      ValueError: there is no such schedule.

    Example:
      >>> [scheduled_learning_rate("staircase", 1.0, epoch, 2000) for epoch in (0, 199, 200, 400)]
      [1.0, 1.0, 0.75, 0.5625]
    """
    if schedule == "constant":
        return initial
    if schedule == "staircase":
        return initial * 0.75 ** (10 * epoch // epochs)
    if schedule == "cosine":
        return initial * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    raise ValueError(f"schedule={schedule!r}; give constant, staircase or cosine")


@functools.partial(jax.jit, static_argnames=("model", "optimizer"))
def init_state(
    model: HierarchicalVAE, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """Fresh parameters and optimiser state.

    Args:
      model: a model.
      optimizer: of `make_optimizer`.
      key: the root key of the run.

    Returns:
      The state before the first step.
    """
    keys = {"params": named_key(key, "params"), "sample": named_key(key, "init")}
    params = model.init(keys, jnp.zeros((1, model.data_dim), jnp.float32))["params"]
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "optimizer",
        "mc_samples",
        "importance_samples",
        "gradient",
        "free_bits",
    ),
)
def train_step(
    model: HierarchicalVAE,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    x: Float[Array, "batch data_dim"],
    key: Key[Array, ""],
    beta: float | Float[Array, ""],
    learning_rate: float | Float[Array, ""],
    mc_samples: int = 1,
    importance_samples: int = 1,
    gradient: str = "standard",
    free_bits: float = 0.0,
) -> tuple[TrainState, EpochMetrics]:
    """One step of gradient ascent on the objective, equation (20) or (6).

    Args:
      model: a model.
      optimizer: of `make_optimizer`.
      state: before the step.
      x: the batch.
      key: for the samples of z.
      beta: weight of the KL terms.
      learning_rate: of this step.
      mc_samples: independent estimates of the bound an example, averaged.
      importance_samples: K of the bound; see `bounds.objective`.
      gradient: which one the inference model's parameters follow: "standard", the bound's own;
        "stl", of `bounds.sticking_the_landing`; or "dreg", of `bounds.doubly_reparameterized`.
      free_bits: nats a unit, see `bounds.free_bits`; 0 for none.

    Returns:
      The state after the step, and the batch's metrics.

    Raises:
      ValueError: there is no such gradient, or free bits are asked for together with another bound
        or gradient.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient={gradient!r}; give one of {', '.join(GRADIENTS)}")
    if free_bits and (importance_samples > 1 or gradient != "standard"):
        raise ValueError(
            f"free_bits={free_bits}, importance_samples={importance_samples}, "
            f"gradient={gradient!r}: free bits are for the ELBO and its standard gradient; "
            "give importance_samples=1 and gradient='standard', or free_bits=0"
        )

    def infer(params: Any) -> Terms:
        num_samples = mc_samples * importance_samples
        return cast(
            Terms,
            model.apply({"params": params}, x, num_samples, train=True, rngs={"sample": key}),
        )

    def loss(params: Any) -> tuple[Float[Array, ""], EpochMetrics]:
        terms = infer(params)
        kl_per_layer = bounds.sum_units(bounds.kl_per_unit(terms))
        metrics = EpochMetrics(
            train_elbo=jnp.mean(bounds.elbo(terms)),
            log_px=jnp.mean(terms.log_px),
            kl_per_layer=jnp.stack([jnp.mean(kl) for kl in kl_per_layer]),
        )
        if free_bits:
            return -bounds.free_bits(terms, beta, free_bits), metrics
        return -jnp.mean(bounds.objective(terms, beta, importance_samples)), metrics

    def path_loss(inference: Any) -> Float[Array, ""]:
        # The samples depend on the inference model; the densities at them have constant parameters.
        z = infer({**state.params, "inference": inference}).z
        constant = {"params": state.params}
        path = cast(Terms, model.apply(constant, x, z, train=True, method="densities"))
        return -jnp.mean(PATH_BOUNDS[gradient](path, beta, importance_samples))

    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    if gradient != "standard":
        gradients = {**gradients, "inference": jax.grad(path_loss)(state.params["inference"])}
    direction, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
    return TrainState(params, opt_state, state.step + 1), metrics


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "optimizer",
        "preprocess",
        "batch_size",
        "mc_samples",
        "importance_samples",
        "gradient",
        "free_bits",
    ),
    donate_argnames=("state",),
)
def train_epoch(
    model: HierarchicalVAE,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    state: TrainState,
    images: Array,
    key: Key[Array, ""],
    beta: Float[Array, ""],
    learning_rate: Float[Array, ""],
    *,
    batch_size: int,
    mc_samples: int = 1,
    importance_samples: int = 1,
    gradient: str = "standard",
    free_bits: float = 0.0,
) -> tuple[TrainState, EpochMetrics]:
    """One pass over the training images in a new order, without a last partial batch: one program.

    Args:
      model: a model.
      optimizer: of `make_optimizer`.
      preprocess: makes x of a batch of images, with a new key at every step.
      state: before the epoch; its buffers are donated.
      images: [n, ...], as stored; they stay on the device.
      key: the root key of the run.
      beta: weight of the KL terms in this epoch.
      learning_rate: of this epoch.
      batch_size: examples a step, at most n.
      mc_samples: see `train_step`.
      importance_samples: see `train_step`.
      gradient: see `train_step`.
      free_bits: see `train_step`.

    Returns:
      The state after the epoch, and the epoch's metrics.
    """
    steps = images.shape[0] // batch_size
    shuffle_key = named_key(key, "shuffle", state.step)
    order = jax.random.permutation(shuffle_key, images.shape[0])[: steps * batch_size]

    def step(state: TrainState, rows: Int[Array, " batch"]) -> tuple[TrainState, EpochMetrics]:
        x = preprocess(named_key(key, "preprocess", state.step), images[rows])
        return train_step(
            model,
            optimizer,
            state,
            x,
            named_key(key, "sample", state.step),
            beta,
            learning_rate,
            mc_samples,
            importance_samples,
            gradient,
            free_bits,
        )

    state, metrics = jax.lax.scan(step, state, order.reshape(steps, batch_size))
    return state, jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)
