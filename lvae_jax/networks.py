"""The networks between layers, (10)-(15): linear layers with batch norm, MLPs, Gaussian heads."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lvae_jax import normalization
from lvae_jax.distributions import Gaussian
from lvae_jax.normalization import Moments


def _leaky_relu(slope: float) -> Callable[[Array], Array]:
    """max(y, slope y), with its derivative taken from the value, which the next layer keeps anyway.

    With a derivative by y, the gradient's kernels would have to compute y again.
    """

    @jax.custom_jvp
    def activation(y: Array) -> Array:
        return jnp.maximum(y, slope * y)

    @activation.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        value = activation(*primals)
        return value, jnp.where(value >= 0, 1.0, slope) * tangents[0]

    return activation


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "leaky_relu": _leaky_relu(0.1),
    "leaky_relu_0.01": _leaky_relu(0.01),
    "tanh": jnp.tanh,
}
"""Activations that a model can be given by name."""

Activation = str | Callable[[Array], Array]

Direction = Literal["up", "down", "top_down"]
"""The role of a network: "up" infers a layer from the one below it, "down" generates it from the
one above, and "top_down" is the ladder's own downward inference (`LadderVAE.own_top_down`)."""

Replace = Callable[[int, Direction], nn.Module | None]
"""Returns your own network for a layer and a direction, or None for the paper's.

The layer is the one whose distribution the network computes: 1 .. L, and 0 for x."""


def glorot_normal(gain: float) -> jax.nn.initializers.Initializer:
    """Glorot's normal initialiser: N(0, gain^2 2 / (fan_in + fan_out))."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "normal")


def second_half(value: float) -> jax.nn.initializers.Initializer:
    """Zeros, then the value for the second half of the units, from which variances are computed."""

    def init(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return jnp.zeros(shape, dtype).at[shape[-1] // 2 :].set(value)

    if not value:
        return nn.initializers.zeros_init()
    return init


class BatchNorm(nn.Module):
    """Batch normalisation, by the batch's own moments in training and by stored ones otherwise.

    With `train=True` the collection "batch_stats", if mutable, receives the moments of **this batch
    alone**; there is no moving average. For evaluation, `evaluation.reestimate_batch_stats` pools
    them over the training set for given parameters.
    """

    epsilon: float = normalization.EPSILON

    @nn.compact
    def __call__(
        self, y: Float[Array, "*batch units"], train: bool
    ) -> Float[Array, "*batch units"]:
        """Normalises the last axis over all others."""
        units = y.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (units,), jnp.float32)
        shift = self.param("shift", nn.initializers.zeros_init(), (units,), jnp.float32)
        if train and not self.is_mutable_collection("batch_stats"):
            return normalization.batch_normalize(y, scale, shift, self.epsilon)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (units,), jnp.float32)
        variance = self.variable("batch_stats", "variance", jnp.ones, (units,), jnp.float32)
        if not train:
            stored = Moments(mean.value, variance.value)
            return normalization.normalize(y, stored, scale, shift, self.epsilon)
        mean.value, variance.value = normalization.moments(jax.lax.stop_gradient(y))
        return normalization.batch_normalize(y, scale, shift, self.epsilon)


def as_rows(y: Float[Array, "*batch units"]) -> Float[Array, "rows units"]:
    """Samples and batch as one axis, within a network.

    With more axes, XLA copies transposed arrays for the weights' gradient, and needs extra kernels
    where batch norm's gradient is reshaped between two layers.
    """
    return y.reshape(-1, y.shape[-1])


class Linear(nn.Module):
    """A linear layer, followed by batch norm (whose shift replaces the bias) or by its own bias."""

    units: int
    batch_norm: bool
    gain: float = 1.0
    batch_norm_epsilon: float = normalization.EPSILON
    bias_init: jax.nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, y: Float[Array, "*batch inputs"], train: bool
    ) -> Float[Array, "*batch units"]:
        """Applies the layer to the last axis."""
        rows = nn.Dense(
            self.units,
            use_bias=not self.batch_norm,
            kernel_init=glorot_normal(self.gain),
            bias_init=self.bias_init,
        )(as_rows(y))
        if self.batch_norm:
            rows = BatchNorm(self.batch_norm_epsilon)(rows, train)
        return rows.reshape(*y.shape[:-1], self.units)


class MLP(nn.Module):
    """d(y) = MLP(y), equations (10) and (13): linear, batch norm, nonlinearity, for each size.

    Fields:
      sizes: units of each hidden layer.
      activation: the nonlinearity, one of `ACTIVATIONS` by name or any function.
      batch_norm: whether each linear layer is followed by `BatchNorm`.
      batch_norm_epsilon: the epsilon of `BatchNorm`.
    """

    sizes: tuple[int, ...]
    activation: Activation
    batch_norm: bool
    batch_norm_epsilon: float = normalization.EPSILON

    @nn.compact
    def __call__(
        self,
        y: Float[Array, "*batch inputs"],
        train: bool,
        condition: Float[Array, "*#examples features"] | None = None,
    ) -> Float[Array, "*batch d"]:
        """Applies the MLP to the last axis; a condition is joined to the input."""
        if condition is not None:
            features = jnp.broadcast_to(condition, (*y.shape[:-1], condition.shape[-1]))
            y = jnp.concatenate([y, features], axis=-1)
        activation = self.activation
        activation = ACTIVATIONS[activation] if isinstance(activation, str) else activation
        rows = as_rows(y)
        for units in self.sizes:
            linear = Linear(units, self.batch_norm, math.sqrt(2.0), self.batch_norm_epsilon)
            rows = activation(linear(rows, train))
        return rows.reshape(*y.shape[:-1], rows.shape[-1])


class GaussianHead(nn.Module):
    """mu = Linear(d), sigma^2 = softplus(Linear(d)) + floor, equations (11), (12), (14), (15).

    Both are one linear layer of twice the units: the same function as two, in half the operations.
    Glorot's fan_out counts the units of both, so weights start a little smaller than in two layers.
    """

    units: int
    batch_norm: bool
    variance_floor: float
    variance_bias: float = 0.0
    batch_norm_epsilon: float = normalization.EPSILON

    @nn.compact
    def __call__(self, d: Float[Array, "*batch d"], train: bool) -> Gaussian:
        """The Gaussian of `units` units for d."""
        linear = Linear(
            2 * self.units,
            self.batch_norm,
            batch_norm_epsilon=self.batch_norm_epsilon,
            bias_init=second_half(self.variance_bias),
        )
        mean, raw_variance = jnp.split(linear(as_rows(d), train), 2, axis=-1)
        variance = jax.nn.softplus(raw_variance) + self.variance_floor
        shape = (*d.shape[:-1], self.units)
        return Gaussian(mean.reshape(shape), variance.reshape(shape))


class WideHead(nn.Module):
    """A linear layer for an observation with several numbers for each observed variable.

    Its parameters lie one level deeper than those of a `Linear`, as a `GaussianHead`'s do.
    """

    units: int
    variance_bias: float = 0.0

    @nn.compact
    def __call__(self, d: Float[Array, "*batch d"], train: bool) -> Float[Array, "*batch units"]:
        """Applies the layer to the last axis."""
        bias_init = second_half(self.variance_bias)
        return Linear(self.units, batch_norm=False, bias_init=bias_init)(d, train)


@dataclasses.dataclass(frozen=True)
class Networks:
    """Makes every network of a model, given its layer and direction.

    The fields are those of `LadderVAE`; its `mlp` and `head` replace the networks made here.
    """

    activation: Activation
    batch_norm: bool
    variance_floor: float
    replace_mlp: Replace | None
    replace_head: Replace | None
    batch_norm_epsilon: float
    variance_bias: float

    def mlp(self, layer: int, direction: Direction, sizes: int | tuple[int, ...]) -> Any:
        """d(y) as a module called with y and `train`; n hidden units mean the paper's (n, n)."""
        sizes = (sizes, sizes) if isinstance(sizes, int) else sizes
        replaced = _replaced("mlp", self.replace_mlp, layer, direction)
        return replaced or MLP(sizes, self.activation, self.batch_norm, self.batch_norm_epsilon)

    def head(self, layer: int, direction: Direction, units: int) -> Any:
        """The head that turns d into a `Gaussian`."""
        replaced = _replaced("head", self.replace_head, layer, direction)
        return replaced or GaussianHead(
            units, self.batch_norm, self.variance_floor, self.variance_bias, self.batch_norm_epsilon
        )

    def observation_head(self, data_dim: int, head_size: int) -> Any:
        """The head that turns d into an observation's parameters, [..., head_size * data_dim]."""
        replaced = _replaced("head", self.replace_head, 0, "down")
        if head_size == 1:
            return replaced or Linear(data_dim, batch_norm=False)
        bias = self.variance_bias if head_size == 2 else 0.0  # of a location and its scale
        return replaced or WideHead(head_size * data_dim, bias)


def _replaced(
    which: str, replace: Replace | None, layer: int, direction: Direction
) -> nn.Module | None:
    module = None if replace is None else replace(layer, direction)
    if not isinstance(module, nn.Module | None):
        raise TypeError(
            f"{which}({layer}, {direction!r}) returned {module!r}; return a flax.linen module, or "
            "None for the paper's network"
        )
    return module
