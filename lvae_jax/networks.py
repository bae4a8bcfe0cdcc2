"""The networks between layers, (10)-(15): linear layers with batch norm, MLPs, Gaussian heads."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lvae_jax import normalization
from lvae_jax.distributions import Gaussian
from lvae_jax.normalization import Moments

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    # max(y, y / 10) is nn.leaky_relu(y, 0.1) in one operation less.
    "leaky_relu": lambda y: jnp.maximum(y, 0.1 * y),
    "tanh": jnp.tanh,
}


def glorot_normal(gain: float) -> jax.nn.initializers.Initializer:
    """Glorot's normal initialiser: N(0, gain^2 2 / (fan_in + fan_out))."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "normal")


class BatchNorm(nn.Module):
    """Batch normalisation, by the batch's own moments in training and by stored ones otherwise.

    With `train=True` the collection "batch_stats", where mutable, receives the moments of **this
    batch alone**; there is no moving average. `evaluation.reestimate_batch_stats` pools them over
    the training set for given parameters, which is what evaluation needs.
    """

    @nn.compact
    def __call__(
        self, y: Float[Array, "*batch units"], train: bool
    ) -> Float[Array, "*batch units"]:
        """Normalises the last axis over all others."""
        units = y.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (units,), jnp.float32)
        shift = self.param("shift", nn.initializers.zeros_init(), (units,), jnp.float32)
        if train and not self.is_mutable_collection("batch_stats"):
            return normalization.batch_normalize(y, scale, shift)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (units,), jnp.float32)
        variance = self.variable("batch_stats", "variance", jnp.ones, (units,), jnp.float32)
        if not train:
            return normalization.normalize(y, Moments(mean.value, variance.value), scale, shift)
        mean.value, variance.value = normalization.moments(jax.lax.stop_gradient(y))
        return normalization.batch_normalize(y, scale, shift)


class Linear(nn.Module):
    """A linear layer, followed by batch norm (whose shift replaces the bias) or by its own bias."""

    units: int
    batch_norm: bool
    gain: float = 1.0

    @nn.compact
    def __call__(
        self, y: Float[Array, "*batch inputs"], train: bool
    ) -> Float[Array, "*batch units"]:
        """Applies the layer to the last axis."""
        # As rows: the weights' gradient of a product with more axes costs XLA transposed copies.
        rows = y.reshape(-1, y.shape[-1])
        rows = nn.Dense(
            self.units, use_bias=not self.batch_norm, kernel_init=glorot_normal(self.gain)
        )(rows)
        if self.batch_norm:
            rows = BatchNorm()(rows, train)
        return rows.reshape(*y.shape[:-1], self.units)


class MLP(nn.Module):
    """d(y) = MLP(y), equations (10) and (13): linear, batch norm, nonlinearity, for each size."""

    sizes: tuple[int, ...]
    activation: str
    batch_norm: bool

    @nn.compact
    def __call__(self, y: Float[Array, "*batch inputs"], train: bool) -> Float[Array, "*batch d"]:
        """Applies the MLP to the last axis."""
        for units in self.sizes:
            y = Linear(units, self.batch_norm, gain=math.sqrt(2.0))(y, train)
            y = ACTIVATIONS[self.activation](y)
        return y


class GaussianHead(nn.Module):
    """mu = Linear(d), sigma^2 = softplus(Linear(d)) + floor, equations (11), (12), (14), (15).

    Both are one linear layer of twice the units: the same function as two, in half the operations.
    """

    units: int
    batch_norm: bool
    variance_floor: float

    @nn.compact
    def __call__(self, d: Float[Array, "*batch d"], train: bool) -> Gaussian:
        """The Gaussian of `units` units that d determines."""
        mean, raw_variance = jnp.split(
            Linear(2 * self.units, self.batch_norm)(d, train), 2, axis=-1
        )
        return Gaussian(mean, jax.nn.softplus(raw_variance) + self.variance_floor)
