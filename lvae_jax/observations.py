"""Choices of p(x | z_1): Bernoulli, Gaussian, discretised logistic, or your own `Observation`.

The decoder's head returns `head_size` numbers for each observed variable; an observation computes a
density and a mean from them. Pure functions of arrays: no Flax.
"""

import dataclasses
import math
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvae_jax import distributions
from lvae_jax.distributions import Bernoulli, Gaussian

Head = tuple[Float[Array, "*shape data_dim"], ...]
"""The decoder head's output: `head_size` arrays, each with a number per observed variable."""


@runtime_checkable
class Observation(Protocol):
    """p(x | z_1) given the decoder head's output. Must be hashable, because models hold it."""

    @property
    def head_size(self) -> int:
        """The number of values that the decoder's head returns per observed variable."""

    def log_prob(self, head: Head, x: Float[Array, "*#shape data_dim"]) -> Float[Array, "*shape"]:
        """log p(x | z_1), summed over x, in nats. x may have fewer samples, to be broadcast."""

    def mean(self, head: Head) -> Float[Array, "*shape data_dim"]:
        """The mean of x, which pictures show."""


@dataclasses.dataclass(frozen=True)
class BernoulliObservation:
    """Binary x, or grey values as probabilities: the head returns logits."""

    head_size: ClassVar[int] = 1

    def log_prob(self, head: Head, x: Float[Array, "*#shape data_dim"]) -> Float[Array, "*shape"]:
        """See `Observation`."""
        return distributions.sum_log_prob(self.distribution(head), x)

    def mean(self, head: Head) -> Float[Array, "*shape data_dim"]:
        """The probabilities of ones."""
        return distributions.mean(self.distribution(head))

    def distribution(self, head: Head) -> Bernoulli:
        """p(x | z_1), unit by unit."""
        (logits,) = head
        return Bernoulli(logits)


@dataclasses.dataclass(frozen=True)
class GaussianObservation:
    """Real x: the head returns the mean, and the variance before `softplus` and the floor.

    Fields:
      variance_floor: added to every variance.
    """

    variance_floor: float = 1e-5
    head_size: ClassVar[int] = 2

    def log_prob(self, head: Head, x: Float[Array, "*#shape data_dim"]) -> Float[Array, "*shape"]:
        """See `Observation`."""
        return distributions.sum_log_prob(self.distribution(head), x)

    def mean(self, head: Head) -> Float[Array, "*shape data_dim"]:
        """The means."""
        return self.distribution(head).mean

    def distribution(self, head: Head) -> Gaussian:
        """p(x | z_1), unit by unit."""
        mean, raw_variance = head
        return Gaussian(mean, jax.nn.softplus(raw_variance) + self.variance_floor)


@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic:
    """Grey values 0, 1/(n-1), .., 1: the logistic density's mass in the bin of each value.

    With n = 256, x = k / 255 has the mass of [k - 1/2, k + 1/2] / 255; the first and the last bin
    extend to infinity. The head returns the logistic's mean, and its scale before `softplus` and a
    floor. The floor is PixelCNN++'s bound on the scale, exp(-7) for values from -1 to 1.

    Source: Salimans, Karpathy, Chen, Kingma 2017, PixelCNN++, arXiv:1701.05517, section 2.1.

    Fields:
      values: n, how many grey values there are.

    Example:
      >>> head = (jnp.zeros((256, 1)), jnp.zeros((256, 1)))
      >>> x = jnp.arange(256.0)[:, None] / 255
      >>> round(float(jnp.sum(jnp.exp(DiscretizedLogistic().log_prob(head, x)))), 4)
      1.0
    """

    values: int = 256
    head_size: ClassVar[int] = 2

    def log_prob(self, head: Head, x: Float[Array, "*#shape data_dim"]) -> Float[Array, "*shape"]:
        """See `Observation`; x between two grey values counts as the bin around it."""
        mean, scale = self._mean_and_scale(head)
        half = 0.5 / (self.values - 1)
        below, above = (x - half - mean) / scale, (x + half - mean) / scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)) takes no difference
        # of numbers near 1. The first bin begins at -inf, and the last one ends at inf.
        first, last = x < half, x > 1 - half
        log_mass = jnp.where(last, 0.0, jax.nn.log_sigmoid(above))
        log_mass += jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
        log_mass += jnp.where(first | last, 0.0, jnp.log(-jnp.expm1(-2 * half / scale)))
        return jnp.sum(log_mass, axis=-1)

    def mean(self, head: Head) -> Float[Array, "*shape data_dim"]:
        """The mean over the grey values: the sum over k of P(x >= k / (n - 1)) / (n - 1)."""
        mean, scale = self._mean_and_scale(head)
        edges = (jnp.arange(1, self.values, dtype=jnp.float32) - 0.5) / (self.values - 1)

        def add(k: Array, total: Array) -> Array:
            return total + jax.nn.sigmoid((mean - edges[k]) / scale)

        total = jax.lax.fori_loop(0, self.values - 1, add, jnp.zeros_like(mean))
        return total / (self.values - 1)

    def _mean_and_scale(self, head: Head) -> tuple[Array, Array]:
        mean, raw_scale = head
        return mean, jax.nn.softplus(raw_scale) + 0.5 * math.exp(-7)


NAMES = ("bernoulli", "gaussian", "discretized_logistic")
"""Observations that a model can be given by name."""


def named(observation: str | Observation, variance_floor: float) -> Observation:
    """The observation with a name, or the given object.

    Args:
      observation: one of `NAMES`, or an object.
      variance_floor: the floor of a Gaussian given by name.

    Returns:
      The observation.

    Raises:
      ValueError: there is no observation of that name, or the object is not one, such as a class.
    """
    if isinstance(observation, type):
        name = observation.__name__
        raise ValueError(f"observation={name} is a class; give an object of it, such as {name}()")
    if observation == "bernoulli":
        return BernoulliObservation()
    if observation == "gaussian":
        return GaussianObservation(variance_floor)
    if observation == "discretized_logistic":
        return DiscretizedLogistic()
    if not isinstance(observation, Observation):
        raise ValueError(
            f"observation={observation!r}; give one of {', '.join(NAMES)}, or an object with "
            "head_size, log_prob and mean"
        )
    return observation
