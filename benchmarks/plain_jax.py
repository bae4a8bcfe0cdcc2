"""The ladder variational autoencoder in plain JAX: the reference for measurements of speed.

This is the model of `lvae_jax.LadderVAE` with Bernoulli observations (eqs. 1-3, 10-20 of the
paper), as an experienced JAX user would write it in an afternoon: parameters in a nested dict,
plain functions, autodiff through everything, an epoch as one `lax.scan`. It imports neither Flax
nor `lvae_jax`, and is not tuned for speed: mean and variance have separate linear layers, JAX
differentiates batch normalisation, and noise is drawn layer by layer. Benchmarks state the time of
lvae_jax relative to this program, timed in the same run.

It keeps no moving average of the batch statistics, because training does not read one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = dict[str, Any]
Epoch = Callable[
    [Params, optax.OptState, jax.Array, jax.Array, jax.Array | float],
    tuple[Params, optax.OptState, jax.Array],
]

BATCH_NORM_EPSILON = 1e-5
LEAKY_RELU_SLOPE = 0.1
VARIANCE_FLOOR = 1e-5


class Gaussian(NamedTuple):
    """A diagonal Gaussian; fields are [batch, units]."""

    mean: jax.Array
    variance: jax.Array


# ----------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------


def init(
    key: jax.Array,
    data_dim: int = 784,
    latent_sizes: tuple[int, ...] = (64, 32, 16, 8, 4),
    hidden_sizes: tuple[int, ...] = (512, 256, 128, 64, 32),
) -> Params:
    """Draws the parameters: Glorot-normal kernels, unit scales, zero shifts and biases.

    Args:
      key: a JAX random key.
      data_dim: pixels in an image.
      latent_sizes: units of z_1, ..., z_L.
      hidden_sizes: units of both hidden layers of the networks between z_{i-1} and z_i, in either
        direction, for i = 1, ..., L, where z_0 is x.

    Returns:
      A nested dict. `params["up"][i]`, i = 1, ..., L, holds the network of d_i and the heads of
      the likelihood N(mu_hat_i, var_hat_i); `params["down"][i]`, i = 1, ..., L - 1, that of
      p(z_i | z_{i+1}), and `params["down"][0]` that of p(x | z_1).
    """
    depth = len(latent_sizes)
    keys = jax.random.split(key, (2, depth))
    up, down = {}, {}
    for i in range(1, depth + 1):
        below = data_dim if i == 1 else hidden_sizes[i - 2]
        network_key, head_key = jax.random.split(keys[0, i - 1])
        up[i] = {
            "mlp": _init_mlp(network_key, below, hidden_sizes[i - 1]),
            "head": _init_head(head_key, hidden_sizes[i - 1], latent_sizes[i - 1]),
        }
    for i in range(depth):
        network_key, head_key = jax.random.split(keys[1, i])
        down[i] = {"mlp": _init_mlp(network_key, latent_sizes[i], hidden_sizes[i])}
        if i == 0:
            down[i]["logits"] = {
                "kernel": _init_kernel(head_key, hidden_sizes[0], data_dim),
                "bias": jnp.zeros((data_dim,), jnp.float32),
            }
        else:
            down[i]["head"] = _init_head(head_key, hidden_sizes[i], latent_sizes[i - 1])
    return {"up": up, "down": down}


def _init_kernel(key: jax.Array, inputs: int, outputs: int) -> jax.Array:
    return jax.nn.initializers.glorot_normal()(key, (inputs, outputs), jnp.float32)


def _init_normalised_linear(key: jax.Array, inputs: int, outputs: int) -> Params:
    return {
        "kernel": _init_kernel(key, inputs, outputs),
        "scale": jnp.ones((outputs,), jnp.float32),
        "shift": jnp.zeros((outputs,), jnp.float32),
    }


def _init_mlp(key: jax.Array, inputs: int, hidden: int) -> Params:
    first, second = jax.random.split(key)
    return {
        "hidden_1": _init_normalised_linear(first, inputs, hidden),
        "hidden_2": _init_normalised_linear(second, hidden, hidden),
    }


def _init_head(key: jax.Array, inputs: int, units: int) -> Params:
    mean, variance = jax.random.split(key)
    return {
        "mean": _init_normalised_linear(mean, inputs, units),
        "variance": _init_normalised_linear(variance, inputs, units),
    }


# ----------------------------------------------------------------------------------------------
# Networks, eqs. 10-12
# ----------------------------------------------------------------------------------------------


def normalised_linear(params: Params, y: jax.Array) -> jax.Array:
    """A linear layer without bias, then batch normalisation with scale and shift."""
    y = y @ params["kernel"]
    mean = jnp.mean(y, axis=0, keepdims=True)
    variance = jnp.var(y, axis=0, keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    return y * params["scale"][None, :] + params["shift"][None, :]


def mlp(params: Params, y: jax.Array) -> jax.Array:
    """Two hidden layers, [batch, inputs] -> [batch, hidden]."""
    y = jax.nn.leaky_relu(normalised_linear(params["hidden_1"], y), LEAKY_RELU_SLOPE)
    return jax.nn.leaky_relu(normalised_linear(params["hidden_2"], y), LEAKY_RELU_SLOPE)


def gaussian_head(params: Params, d: jax.Array) -> Gaussian:
    """Mean and variance from d, [batch, hidden] -> two of [batch, units]."""
    mean = normalised_linear(params["mean"], d)
    variance = jax.nn.softplus(normalised_linear(params["variance"], d)) + VARIANCE_FLOOR
    return Gaussian(mean, variance)


# ----------------------------------------------------------------------------------------------
# Gaussians
# ----------------------------------------------------------------------------------------------


def sample(key: jax.Array, q: Gaussian) -> jax.Array:
    """One reparameterised draw, [batch, units]."""
    noise = jax.random.normal(key, q.mean.shape, q.mean.dtype)
    return q.mean + jnp.sqrt(q.variance) * noise


def precision_weighted(likelihood: Gaussian, prior: Gaussian) -> Gaussian:
    """The normalised product of two Gaussians, eqs. 17-18."""
    total = likelihood.variance + prior.variance
    mean = (likelihood.mean * prior.variance + prior.mean * likelihood.variance) / total
    return Gaussian(mean, likelihood.variance * prior.variance / total)


def kl(q: Gaussian, p: Gaussian) -> jax.Array:
    """KL(q || p) summed over units, in nats, [batch]."""
    log_ratio = jnp.log(p.variance) - jnp.log(q.variance)
    scaled = (q.variance + jnp.square(q.mean - p.mean)) / p.variance
    return 0.5 * jnp.sum(log_ratio + scaled - 1.0, axis=-1)


# ----------------------------------------------------------------------------------------------
# The objective, eqs. 13-20
# ----------------------------------------------------------------------------------------------


def loss(params: Params, key: jax.Array, x: jax.Array, beta: jax.Array | float) -> jax.Array:
    """The negative ELBO with its KL weighted by beta, from one sample of each layer.

    Args:
      params: as from `init`.
      key: a JAX random key, for the noise of the latents.
      x: binary images as floats, [batch, data_dim].
      beta: the weight of the KL, a scalar.

    Returns:
      The mean over the batch, a scalar, in nats.
    """
    depth = len(params["up"])

    # Deterministic upward pass: d_i and the likelihood N(mu_hat_i, var_hat_i) of each layer.
    likelihoods = {}
    d = x
    for i in range(1, depth + 1):
        d = mlp(params["up"][i]["mlp"], d)
        likelihoods[i] = gaussian_head(params["up"][i]["head"], d)

    # Stochastic downward pass: q(z_L) is the likelihood itself, each q(z_i) below it the product
    # of likelihood and p(z_i | z_{i+1}).
    keys = jax.random.split(key, depth)
    posterior = likelihoods[depth]
    prior = Gaussian(jnp.zeros_like(posterior.mean), jnp.ones_like(posterior.variance))
    z = sample(keys[depth - 1], posterior)
    total_kl = kl(posterior, prior)
    for i in range(depth - 1, 0, -1):
        prior = gaussian_head(params["down"][i]["head"], mlp(params["down"][i]["mlp"], z))
        posterior = precision_weighted(likelihoods[i], prior)
        z = sample(keys[i - 1], posterior)
        total_kl += kl(posterior, prior)

    # log p(x | z_1), Bernoulli.
    d = mlp(params["down"][0]["mlp"], z)
    output = params["down"][0]["logits"]
    logits = d @ output["kernel"] + output["bias"][None, :]
    log_px = jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)

    return -jnp.mean(log_px - beta * total_kl)


# ----------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------


def make_epoch(optimizer: optax.GradientTransformation, batch_size: int) -> Epoch:
    """Compiles one pass over a training set, shuffled and binarised anew.

    Args:
      optimizer: an optax optimizer, such as `optax.adam(1e-3)`.
      batch_size: images per step; the last partial batch of the permutation is dropped.

    Returns:
      A jitted `epoch(params, opt_state, images, key, beta)`, with uint8 grey `images`
      [n, data_dim], that returns `(params, opt_state, mean_elbo)`. `mean_elbo` is the mean over
      the steps of the training objective, in nats; it is the ELBO if beta is 1. The buffers of
      `params` and `opt_state` are donated, so the arrays passed in cannot be used again.
    """

    def epoch(
        params: Params,
        opt_state: optax.OptState,
        images: jax.Array,
        key: jax.Array,
        beta: jax.Array | float,
    ) -> tuple[Params, optax.OptState, jax.Array]:
        steps = images.shape[0] // batch_size
        shuffle_key, steps_key = jax.random.split(key)
        permutation = jax.random.permutation(shuffle_key, images.shape[0])
        batches = permutation[: steps * batch_size].reshape(steps, batch_size)

        def step(
            carry: tuple[Params, optax.OptState], xs: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[Params, optax.OptState], jax.Array]:
            params, opt_state = carry
            batch, key = xs
            binarise_key, sample_key = jax.random.split(key)
            grey = images[batch].astype(jnp.float32) / 255.0
            x = jax.random.bernoulli(binarise_key, grey).astype(jnp.float32)
            value, gradient = jax.value_and_grad(loss)(params, sample_key, x, beta)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), -value

        (params, opt_state), elbos = jax.lax.scan(
            step, (params, opt_state), (batches, jax.random.split(steps_key, steps))
        )
        return params, opt_state, jnp.mean(elbos)

    return jax.jit(epoch, donate_argnums=(0, 1))
