"""One generative model and two inference models: the VAE, (7)-(9), and the Ladder VAE, (13)-(19).

Layers are numbered i = 1 .. L from the bottom as in the paper; a tuple over layers holds layer i at
position i - 1. x is [batch, data_dim] and z_i is [samples, batch, units].
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key, UInt32

from lvae_jax import distributions, normalization, observations
from lvae_jax.bounds import PerLayer, Terms
from lvae_jax.checks import as_examples, as_int, as_tuples, check_whole
from lvae_jax.distributions import Bernoulli, Gaussian
from lvae_jax.networks import ACTIVATIONS, Activation, Networks, Replace
from lvae_jax.observations import BernoulliObservation, GaussianObservation, Head, Observation

Examples = Float[Array | np.ndarray, "batch data_dim"] | Bool[Array | np.ndarray, "batch data_dim"]
"""x as a model takes it; booleans are zeros and ones."""

Condition = Float[Array, "*#examples features"] | None
"""A further input of all networks: a row of features per example, or one row for all of them; None
for a model without a condition."""


def given(condition: Condition) -> dict[str, Any]:
    """Keyword arguments with the condition, if there is one; other modules may not accept it."""
    return {} if condition is None else {"condition": condition}


Sizes = tuple[int | tuple[int, ...], ...]
"""Hidden units of the MLPs at each layer; n means (n, n)."""

Combine = Callable[[Gaussian, Gaussian], Gaussian]
"""A layer's posterior as a function of its likelihood and its prior."""

COMBINATIONS: dict[str, Combine] = {"precision_weighted": distributions.precision_weighted}
"""Combinations that a ladder can be given by name."""

Prior = Callable[[int, Array], Gaussian]
"""p(z_i | z_{i+1}) as a function of i and z_{i+1}."""

Draw = Callable[[int, Gaussian], Float[Array, "samples batch units"]]
"""z_i as a function of i and q(z_i | ...): a sample, or a given value."""


def apply_mlp(mlp: Any, y: Array, train: bool, condition: Condition) -> Array:
    """d(y). The condition is passed only if there is one, so your own MLP need not accept it."""
    d = mlp(y, train) if condition is None else mlp(y, train, condition)
    _check_shape("an MLP", d, y, d.shape[-1])
    return d


def apply_head(head: Any, d: Array, train: bool, units: int) -> Gaussian:
    """A head's Gaussian of so many units."""
    q: Gaussian = head(d, train)
    _check_shape("a head", q.mean, d, units)
    return q


def _check_shape(network: str, output: Array, y: Array, units: int) -> None:
    """Refuses outputs of your own networks that would be broadcast to others.

    Raises:
      ValueError: they have other axes than the input, or another number of units.
    """
    expected = (*y.shape[:-1], units)
    if output.shape != expected:
        raise ValueError(
            f"{network} returned shape {list(output.shape)} for an input of shape "
            f"{list(y.shape)}; return {list(expected)}"
        )


class GenerativeModel(nn.Module):
    """p(x | z_1) p(z_1 | z_2) ... p(z_L), equations (1)-(3) with the networks of (10)-(12).

    `networks` makes the network of each place; other fields as of `LadderVAE`.
    """

    data_dim: int
    latent_sizes: tuple[int, ...]
    hidden_sizes: Sizes
    observation: Observation
    networks: Networks

    def setup(self) -> None:  # noqa: D102
        self.mlps = [self.networks.mlp(i, "down", h) for i, h in enumerate(self.hidden_sizes)]
        self.heads = [
            self.networks.head(i, "down", units)
            for i, units in enumerate(self.latent_sizes[:-1], start=1)
        ]
        self.observation_head = self.networks.observation_head(
            self.data_dim, self.observation.head_size
        )

    def prior(
        self,
        layer: int,
        z_above: Float[Array, "*batch above"],
        train: bool = False,
        condition: Condition = None,
    ) -> Gaussian:
        """p(z_i | z_{i+1}) of layer i < L."""
        d = apply_mlp(self.mlps[layer], z_above, train, condition)
        return apply_head(self.heads[layer - 1], d, train, self.latent_sizes[layer - 1])

    def decode(
        self, z_1: Float[Array, "*batch units"], train: bool = False, condition: Condition = None
    ) -> Head:
        """The output of the decoder's head, from which `observation` computes p(x | z_1)."""
        d = apply_mlp(self.mlps[0], z_1, train, condition)
        numbers, size = self.observation_head(d, train), self.observation.head_size
        _check_shape("the observation's head", numbers, d, size * self.data_dim)
        return (numbers,) if size == 1 else tuple(jnp.split(numbers, size, axis=-1))

    def ancestral(
        self,
        z: Float[Array, "samples units"],
        layer: int,
        noise: Sequence[Float[Array, "samples _units"]],
        condition: Condition = None,
    ) -> Float[Array, "samples data_dim"]:
        """Means of p(x | z_1); the noise draws the layers below `layer` from their priors."""
        for i in range(layer - 1, 0, -1):
            prior = self.prior(i, z, condition=condition)
            z = distributions.reparameterize(prior, noise[i - 1])
        return self.observation.mean(self.decode(z, condition=condition))


class Inferred(NamedTuple):
    """An inference model's results for every layer, bottom to top."""

    z: PerLayer
    posterior: tuple[Gaussian, ...]
    prior: tuple[Gaussian, ...]
    closed_form_kl: tuple[bool, ...]
    """See `bounds.Terms`."""


class LadderInference(nn.Module):
    """The ladder, (13)-(19): a deterministic upward pass, then samples from the top down.

    `networks` makes the network of each place; other fields as of `LadderVAE`.
    """

    latent_sizes: tuple[int, ...]
    hidden_sizes: Sizes
    own_top_down: bool
    mean_upward: bool
    combine: Combine
    networks: Networks

    def setup(self) -> None:  # noqa: D102
        mlp, head = self.networks.mlp, self.networks.head
        self.mlps = [mlp(i, "up", h) for i, h in enumerate(self.hidden_sizes, 1)]
        self.heads = [head(i, "up", units) for i, units in enumerate(self.latent_sizes, 1)]
        if self.own_top_down:
            self.top_down_mlps = [
                mlp(i, "top_down", h) for i, h in enumerate(self.hidden_sizes[1:], 1)
            ]
            self.top_down_heads = [
                head(i, "top_down", units) for i, units in enumerate(self.latent_sizes[:-1], 1)
            ]

    def encode(
        self, x: Float[Array, "batch data_dim"], train: bool, condition: Condition = None
    ) -> tuple[Gaussian, ...]:
        """The likelihood N(mu_hat_i, var_hat_i) of every layer, (13)-(15), [batch, units]."""
        likelihoods = []
        d = x
        for mlp, head, units in zip(self.mlps, self.heads, self.latent_sizes, strict=True):
            d = apply_mlp(mlp, d, train, condition)
            likelihood = apply_head(head, d, train, units)
            likelihoods.append(likelihood)
            d = likelihood.mean if self.mean_upward else d
        return tuple(likelihoods)

    def infer(
        self,
        likelihoods: tuple[Gaussian, ...],
        draw: Draw,
        prior: Prior,
        train: bool,
        condition: Condition = None,
    ) -> Inferred:
        """The downward pass, (16)-(19): a layer's posterior is its likelihood times its prior."""
        *lower, top = (jax.tree.map(lambda field: field[None], q) for q in likelihoods)
        z = [draw(len(likelihoods), top)]
        posteriors = [top]
        priors = [distributions.standard_gaussian(z[0].shape)]
        for i in range(len(lower), 0, -1):
            p = prior(i, z[0])
            above = self.top_down(i, z[0], train, condition) if self.own_top_down else p
            q = self.combine(lower[i - 1], above)
            z.insert(0, draw(i, q))
            posteriors.insert(0, q)
            priors.insert(0, p)
        return Inferred(tuple(z), tuple(posteriors), tuple(priors), (True,) * len(z))

    def top_down(
        self,
        layer: int,
        z_above: Float[Array, "*batch above"],
        train: bool,
        condition: Condition = None,
    ) -> Gaussian:
        """With `own_top_down`: replaces p(z_i | z_{i+1}) in the product of (16)-(19)."""
        d = apply_mlp(self.top_down_mlps[layer - 1], z_above, train, condition)
        return apply_head(self.top_down_heads[layer - 1], d, train, self.latent_sizes[layer - 1])


class BottomUpInference(nn.Module):
    """The VAE's inference, (7)-(9): q(z_1 | x), then q(z_i | z_{i-1}), sampled from the bottom up.

    `networks` makes the network of each place; other fields as of `LadderVAE`.
    """

    latent_sizes: tuple[int, ...]
    hidden_sizes: Sizes
    networks: Networks

    def setup(self) -> None:  # noqa: D102
        mlp, head = self.networks.mlp, self.networks.head
        self.mlps = [mlp(i, "up", h) for i, h in enumerate(self.hidden_sizes, 1)]
        self.heads = [head(i, "up", units) for i, units in enumerate(self.latent_sizes, 1)]

    def posterior(
        self,
        layer: int,
        below: Float[Array, "*batch below"],
        train: bool,
        condition: Condition = None,
    ) -> Gaussian:
        """q(z_i | z_{i-1}); `below` is x for the first layer."""
        d = apply_mlp(self.mlps[layer - 1], below, train, condition)
        return apply_head(self.heads[layer - 1], d, train, self.latent_sizes[layer - 1])

    def encode(
        self, x: Float[Array, "batch data_dim"], train: bool, condition: Condition = None
    ) -> tuple[Gaussian, ...]:
        """q(z_1 | x), [batch, units]: every layer above depends on a sample of the one below."""
        return (self.posterior(1, x, train, condition),)

    def infer(
        self,
        encoded: tuple[Gaussian, ...],
        draw: Draw,
        prior: Prior,
        train: bool,
        condition: Condition = None,
    ) -> Inferred:
        """The upward pass: z_1 from q(z_1 | x), then z_i from q(z_i | z_{i-1})."""
        depth = len(self.latent_sizes)
        posteriors = [jax.tree.map(lambda field: field[None], encoded[0])]
        z = [draw(1, posteriors[0])]
        for i in range(2, depth + 1):
            posteriors.append(self.posterior(i, z[-1], train, condition))
            z.append(draw(i, posteriors[-1]))
        priors = [prior(i, z[i]) for i in range(1, depth)]
        priors.append(distributions.standard_gaussian(z[-1].shape))
        closed_form_kl = (False,) * (depth - 1) + (True,)
        return Inferred(tuple(z), tuple(posteriors), tuple(priors), closed_form_kl)


@runtime_checkable
class Model(Protocol):
    """What `training` and `evaluation` require of a model: your own Flax module can provide it.

    It is a static argument of compiled functions, so it must be hashable, as Flax modules are. It
    draws from the "sample" stream, and its batch norm is `networks.BatchNorm`. The gradients "stl"
    and "dreg" also take `densities` and the parameters of inference under `params["inference"]`,
    as `LadderVAE` and `VAE` have them.
    """

    @property
    def data_dim(self) -> int:
        """D, the number of observed variables."""

    @property
    def depth(self) -> int:
        """L, the number of layers of latents."""

    @property
    def init(self) -> Callable[..., Any]:
        """Flax's: variables from keys for "params" and "sample" and an x."""

    @property
    def apply(self) -> Callable[..., Any]:
        """Flax's: calls one of the methods below with variables."""

    def __call__(self, x: Array, num_samples: int = 1, train: bool = False) -> Terms:
        """Infers z and evaluates every density."""

    def encode(self, x: Array, train: bool = False) -> Any:
        """The part of inference that involves no samples, as a tree of arrays [batch, ...]."""

    def infer(self, x: Array, encoded: Any, num_samples: int = 1, train: bool = False) -> Terms:
        """The rest of `__call__`, given the result of `encode`."""


class HierarchicalVAE(nn.Module):
    """The common part of `VAE` and `LadderVAE`: all but inference. Fields as in `LadderVAE`."""

    data_dim: int
    latent_sizes: tuple[int, ...]
    hidden_sizes: Sizes
    observation: str | Observation = "bernoulli"
    activation: Activation = "leaky_relu"
    batch_norm: bool = True
    variance_floor: float = 1e-5
    condition_dim: int = 0
    mlp: Replace | None = None
    head: Replace | None = None
    generative_hidden_sizes: Sizes | None = None
    batch_norm_epsilon: float = normalization.EPSILON
    variance_bias: float = 0.0

    if TYPE_CHECKING:
        # Flax's own type, a union of results with and without variables, fits no function's input.
        def apply(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102

    def __post_init__(self) -> None:
        """Converts sizes to integers and tuples of them, and checks the fields.

        Raises:
          ValueError: a field has an invalid value.
        """
        object.__setattr__(self, "data_dim", as_int(self.data_dim))
        object.__setattr__(self, "latent_sizes", as_tuples("latent_sizes", self.latent_sizes))
        object.__setattr__(self, "hidden_sizes", as_tuples("hidden_sizes", self.hidden_sizes))
        object.__setattr__(self, "condition_dim", as_int(self.condition_dim))
        if self.generative_hidden_sizes is not None:
            generative = as_tuples("generative_hidden_sizes", self.generative_hidden_sizes)
            object.__setattr__(self, "generative_hidden_sizes", generative)
        self._check_fields()
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        networks = Networks(
            self.activation,
            self.batch_norm,
            self.variance_floor,
            self.mlp,
            self.head,
            self.batch_norm_epsilon,
            self.variance_bias,
        )
        self.observed = observations.named(self.observation, self.variance_floor)
        self.generative = GenerativeModel(
            self.data_dim, self.latent_sizes, self._generative_sizes, self.observed, networks
        )
        self.inference = self._inference_model(networks)

    def _inference_model(self, networks: Networks) -> LadderInference | BottomUpInference:
        raise TypeError("HierarchicalVAE has no inference model; use LadderVAE or VAE")

    @property
    def _generative_sizes(self) -> Sizes:
        sizes = self.generative_hidden_sizes
        return self.hidden_sizes if sizes is None else sizes

    def _check_fields(self) -> None:
        if not self.latent_sizes or len(self.latent_sizes) != len(self.hidden_sizes):
            raise ValueError(
                f"latent_sizes={self.latent_sizes} and hidden_sizes={self.hidden_sizes}: "
                "give one of each per layer, and at least one layer"
            )
        sizes = [self.data_dim, *self.latent_sizes, *_flattened(self.hidden_sizes)]
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ValueError(
                f"data_dim={self.data_dim!r}, latent_sizes={self.latent_sizes}, "
                f"hidden_sizes={self.hidden_sizes}: every size must be an integer of at least 1"
            )
        generative = self._generative_sizes
        if len(generative) != self.depth or not all(
            isinstance(size, int) and size >= 1 for size in _flattened(generative)
        ):
            raise ValueError(
                f"generative_hidden_sizes={generative}: give integers of at least 1, one entry for "
                f"each of the {self.depth} layers"
            )
        if not isinstance(self.condition_dim, int) or self.condition_dim < 0:
            raise ValueError(
                f"condition_dim={self.condition_dim!r}; give the number of features of a "
                "condition, or 0 for none"
            )
        for name in ("variance_floor", "batch_norm_epsilon"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}; give at least 0")
        observations.named(self.observation, self.variance_floor)
        _check_function("activation", self.activation, ACTIVATIONS)

    @property
    def depth(self) -> int:
        """L, the number of layers of latents."""
        return len(self.latent_sizes)

    @property
    def is_bernoulli(self) -> bool:
        """Whether p(x | z_1) is Bernoulli."""
        return self.observation in ("bernoulli", BernoulliObservation())

    @property
    def numbers_per_sample(self) -> int:
        """The number of values computed per sample of z: in x, in the hidden layers and in z."""
        hidden = [2 * h if isinstance(h, int) else sum(h) for h in self._generative_sizes]
        return self.data_dim + sum(hidden) + sum(self.latent_sizes)

    def __call__(
        self,
        x: Examples,
        num_samples: int = 1,
        train: bool = False,
        condition: Condition = None,
    ) -> Terms:
        """Infers z and evaluates every density; draws from the "sample" stream.

        Args:
          x: the examples.
          num_samples: samples of z per example.
          train: batch norm by the batch's own moments, stored in "batch_stats" if it is mutable.
          condition: [batch, condition_dim], a further input of all MLPs, or [1, condition_dim] for
            all examples alike; only for a model with a `condition_dim`. `init` does not need it.

        Returns:
          The terms of every bound: see `bounds`.

        Raises:
          ValueError: x or the condition does not have the model's shape, or x has integers that may
            be grey values.
        """
        encoded = self.encode(x, train, condition)
        return self.infer(x, encoded, num_samples, train, condition)

    def encode(
        self,
        x: Examples,
        train: bool = False,
        condition: Condition = None,
    ) -> tuple[Gaussian, ...]:
        """The part of inference that involves no samples; compute it once per example.

        Returns:
          The likelihood of every layer for the ladder, q(z_1 | x) for the VAE; [batch, units].
        """
        x = as_examples(x, self.data_dim)
        return self.inference.encode(x, train, self._condition_of(condition, x.shape[0]))

    def infer(
        self,
        x: Examples,
        encoded: tuple[Gaussian, ...],
        num_samples: int = 1,
        train: bool = False,
        condition: Condition = None,
    ) -> Terms:
        """The rest of `__call__`, given the result of `encode`."""
        check_whole(num_samples=num_samples)
        noise = self._noise(self.make_rng("sample"), (num_samples, x.shape[0]))

        def draw(i: int, q: Gaussian) -> Array:
            return distributions.reparameterize(q, noise[i - 1])

        return self._terms(x, encoded, draw, train, condition)

    def densities(
        self,
        x: Examples,
        z: Sequence[Float[Array | np.ndarray, "samples batch _units"]],
        train: bool = False,
        condition: Condition = None,
    ) -> Terms:
        """Evaluates every density as `__call__` does, but at a given z, without drawing.

        Each q(z_i | ...) and p(z_i | z_{i+1}) is conditioned on the neighbouring layer of this z,
        so the densities can be differentiated by z alone, or by the parameters alone.

        Args:
          x: the examples.
          z: of every layer, bottom to top.
          train: see `__call__`.
          condition: see `__call__`.

        Returns:
          The terms of every bound, with this z.

        Raises:
          ValueError: z has the wrong number of layers, examples or units, or not equally many
            samples of every layer; also see `__call__`.
        """
        samples = z[0].shape[:1] if len(z) else ()
        expected = [(*samples, x.shape[0], units) for units in self.latent_sizes]
        if [layer.shape for layer in z] != expected:
            raise ValueError(
                f"z has shapes {', '.join(str(layer.shape) for layer in z)}; give [samples, "
                f"{x.shape[0]}, units] for each of the units {self.latent_sizes}, bottom to top"
            )
        encoded = self.encode(x, train, condition)
        values = [jnp.asarray(layer) for layer in z]
        return self._terms(x, encoded, lambda i, q: values[i - 1], train, condition)

    def along_means(self, x: Examples, condition: Condition = None) -> Terms:
        """Evaluates every density as `__call__` does, where each z_i is its posterior's mean.

        One deterministic point per example: the posterior of the next layer is conditioned on this
        mean. Samples: 1.
        """
        encoded = self.encode(x, condition=condition)
        return self._terms(x, encoded, lambda i, q: q.mean, train=False, condition=condition)

    def _terms(
        self,
        x: Examples,
        encoded: tuple[Gaussian, ...],
        draw: Draw,
        train: bool,
        condition: Condition,
    ) -> Terms:
        """Every density at the z that `draw` returns."""
        x = as_examples(x, self.data_dim)
        condition = self._condition_of(condition, x.shape[0])
        prior = functools.partial(self.generative.prior, train=train, condition=condition)
        inferred = self.inference.infer(encoded, draw, prior, train, condition)
        head = self.generative.decode(inferred.z[0], train, condition)
        log_px = self.observed.log_prob(head, x[None])
        if log_px.shape != inferred.z[0].shape[:-1]:
            raise ValueError(
                f"the observation's log_prob has shape {list(log_px.shape)}; return [samples, "
                f"batch], here {list(inferred.z[0].shape[:-1])}: the sum over the variables of x"
            )
        return Terms(
            log_px=log_px,
            z=inferred.z,
            posterior=tuple(
                Gaussian(jnp.broadcast_to(q.mean, z.shape), jnp.broadcast_to(q.variance, z.shape))
                for q, z in zip(inferred.posterior, inferred.z, strict=True)
            ),
            prior=inferred.prior,
            closed_form_kl=inferred.closed_form_kl,
        )

    def prior(
        self, layer: int, z_above: Float[Array, "*batch above"], condition: Condition = None
    ) -> Gaussian:
        """p(z_i | z_{i+1}) of layer i = 1 .. L - 1, given z_{i+1}; that of layer L is N(0, I).

        Raises:
          ValueError: there is no such layer, or no layer above it, or the condition does not have
            the model's shape.
        """
        if not 1 <= layer < self.depth:
            priors = (
                f"priors of layers 1 to {self.depth - 1} given the layer above, and N(0, I) for "
                f"layer {self.depth}"
            )
            if self.depth == 1:
                priors = "one layer, and its prior is N(0, I)"
            raise ValueError(f"layer={layer}; this model has {priors}")
        condition = self._condition_of(condition)
        return self.generative.prior(layer, z_above, condition=condition)

    def observe(
        self, z_1: Float[Array, "*batch units"], condition: Condition = None
    ) -> Bernoulli | Gaussian:
        """p(x | z_1), unit by unit.

        Raises:
          ValueError: the observation is neither Bernoulli nor Gaussian.
        """
        if not isinstance(self.observed, BernoulliObservation | GaussianObservation):
            raise ValueError(
                f"observation={self.observation!r} has no distribution of single variables; this "
                "needs a model with bernoulli or gaussian observations"
            )
        condition = self._condition_of(condition)
        return self.observed.distribution(self.generative.decode(z_1, condition=condition))

    def generate(
        self,
        z_or_key: Float[Array, "samples units"] | Key[Array, ""] | UInt32[Array, " words"],
        layer: int | None = None,
        num_samples: int | None = None,
        condition: Condition = None,
    ) -> Float[Array, "samples data_dim"]:
        """Ancestral samples: the means of p(x | z_1).

        Args:
          z_or_key: values of z of `layer`; the layers below are drawn from the "sample" stream. Or
            a PRNG key, from which `num_samples` samples of all layers are drawn.
          layer: the layer that z belongs to, 1 to L; the top one by default. Not with a key.
          num_samples: how many samples to draw by a key, by default 1. Not with z, each of whose
            rows gives one.
          condition: [samples, condition_dim], for a model with a `condition_dim`.

        Returns:
          One row per sample: the means of the observed variables, such as the probabilities of ones
          for Bernoulli observations.

        Raises:
          ValueError: there is no such layer, z or the condition does not have the model's shape, or
            an argument belongs to a key and z is given, or the other way round.
        """
        is_key = _is_key(z_or_key)
        if is_key and layer is not None:
            raise ValueError(f"layer={layer}, but a key draws all layers; give z of that layer")
        if not is_key and num_samples is not None:
            raise ValueError(
                f"num_samples={num_samples}, but each row of z gives one sample; give as many rows"
            )
        layer = self.depth if layer is None else layer
        if not 1 <= layer <= self.depth:
            raise ValueError(f"layer={layer}; this model has layers 1 to {self.depth}")
        if is_key:
            num_samples = 1 if num_samples is None else num_samples
            check_whole(num_samples=num_samples)
            condition = self._condition_of(condition, num_samples)
            *noise, z = self._noise(z_or_key, (num_samples,))
            return self.generative.ancestral(z, self.depth, noise, condition)
        shape = np.shape(z_or_key)
        if len(shape) != 2 or shape[1] != self.latent_sizes[layer - 1]:
            what_to_do = "" if shape else ", or give a key such as jax.random.key(0)"
            raise ValueError(
                f"z has shape {shape}; layer {layer} takes "
                f"[samples, {self.latent_sizes[layer - 1]}]{what_to_do}"
            )
        condition = self._condition_of(condition, shape[0])
        noise = [] if layer == 1 else self._noise(self.make_rng("sample"), shape[:1])
        z = jnp.asarray(z_or_key, jnp.float32)
        return self.generative.ancestral(z, layer, noise, condition)

    def reconstruct(
        self, x: Examples, condition: Condition = None
    ) -> Float[Array, "batch data_dim"]:
        """Means of p(x | z_1) with z_1 drawn from the posterior of x, from the "sample" stream."""
        z_1 = self(x, condition=condition).z[0][0]
        condition = self._condition_of(condition, x.shape[0])
        return self.observed.mean(self.generative.decode(z_1, condition=condition))

    def _noise(self, key: Any, shape: tuple[int, ...]) -> list[Float[Array, "..."]]:
        """Standard normal noise of every layer, [*shape, units], drawn in one call.

        Examples and units are drawn as one axis: a TPU counts along each further axis in kernels of
        their own. Samples are not, so that a mesh can split the examples.
        """
        ends = [sum(self.latent_sizes[:i]) for i in range(1, self.depth)]
        samples, *others = (*shape, sum(self.latent_sizes))
        noise = jax.random.normal(key, (samples, math.prod(others)), jnp.float32)
        return jnp.split(noise.reshape(samples, *others), ends, axis=-1)

    def _condition_of(self, condition: Condition, examples: Any = None) -> Condition:
        """The condition as float32, with a row per example; zeros if `init` is called without one.

        With `examples=None` its rows are left unchanged, to fit the caller's arrays. Otherwise it
        is their number, or a symbolic dimension of `jax.export`.
        """
        shape = (1 if examples is None else examples, self.condition_dim)
        if condition is None:
            if self.condition_dim == 0:
                return None
            if self.is_initializing():
                return jnp.zeros(shape, jnp.float32)
            raise ValueError(
                f"this model has condition_dim={self.condition_dim}; give a condition of shape "
                f"{list(shape)}"
            )
        if self.condition_dim == 0:
            raise ValueError("a condition was given to a model without one; set condition_dim")
        condition = jnp.asarray(condition, jnp.float32)
        rows = condition.shape[:-1] in ((examples,), (1,)) or examples is None
        if not rows or condition.shape[-1:] != (self.condition_dim,):
            raise ValueError(
                f"the condition has shape {list(condition.shape)}; this model takes "
                f"{list(shape)}: one row of features per example, such as "
                f"jax.nn.one_hot(labels, {self.condition_dim})"
            )
        return condition if examples is None else jnp.broadcast_to(condition, shape)


def _is_key(z_or_key: Array) -> bool:
    """Whether it is a PRNG key: typed, or made by `jax.random.PRNGKey`, which has dtype uint32."""
    dtype = getattr(z_or_key, "dtype", None)
    return dtype == jnp.uint32 or (dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key))


def _check_function(field: str, value: Any, named: Mapping[str, Any]) -> None:
    """Refuses a field that is neither the name of a function nor a function."""
    if not (value in named if isinstance(value, str) else callable(value)):
        raise ValueError(f"{field}={value!r}; give one of {', '.join(named)}, or a function")


def _flattened(sizes: Sizes) -> list[int]:
    """Every number of units; 0, which is none, for a layer without any."""
    entries = [size if isinstance(size, tuple) else (size,) for size in sizes]
    return [units for entry in entries for units in entry or (0,)]


class LadderVAE(HierarchicalVAE):
    """The Ladder VAE: inference runs from the top down, as generation does.

    Fields:
      data_dim: D, the number of observed variables.
      latent_sizes: units of z_1 .. z_L.
      hidden_sizes: hidden units of the MLPs at each layer: position 0 between x and z_1 (or d_1),
        position i between z_i and z_{i+1}, in both directions. n means the paper's two hidden
        layers of n units; a tuple lists the sizes of all hidden layers.
      observation: p(x | z_1): "bernoulli", "gaussian", "discretized_logistic", or an
        `observations.Observation`.
      activation: "leaky_relu" (slope 0.1), "leaky_relu_0.01" (slope 0.01), "tanh", or a function
        such as `jax.nn.gelu`.
      batch_norm: in every MLP and on the mean and variance heads of the latents.
      variance_floor: added to every variance.
      condition_dim: number of features of the condition, a further input of all MLPs; 0 for a model
        without one.
      mlp: replaces MLPs: a function of a layer and a direction, see `networks.Replace`, that
        returns a Flax module called as `module(y, train)`, with the condition as a third argument
        if there is one; or None for the paper's MLP.
      head: replaces heads in the same way by `module(d, train)`, which returns a `Gaussian`, or, at
        layer 0, the observation's parameters, [..., head_size * data_dim].
      generative_hidden_sizes: hidden units of the generative model's MLPs, if they differ from
        `hidden_sizes`.
      batch_norm_epsilon: added to variances within batch norm (the authors: 1e-10).
      variance_bias: initial bias of variances before softplus, in heads without batch norm (the
        authors: 1).
      own_top_down: the downward inference has separate MLPs instead of the generative ones.
      mean_upward: mu_hat_{i-1} is fed upward instead of d_{i-1}.
      combine: how a layer's likelihood and prior form its posterior: "precision_weighted",
        (16)-(18), or a function of the two Gaussians that returns a third.

    Raises:
      ValueError: a field has an invalid value.

    Example:
      >>> model = LadderVAE(data_dim=4, latent_sizes=(3, 2), hidden_sizes=((8, 8, 8), 6))
      >>> keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
      >>> terms, variables = jax.eval_shape(
      ...     lambda: model.init_with_output(keys, jnp.zeros((5, 4)), num_samples=10)
      ... )
      >>> terms.log_px.shape, [z.shape for z in terms.z]
      ((10, 5), [(10, 5, 3), (10, 5, 2)])
    """

    own_top_down: bool = False
    mean_upward: bool = False
    combine: str | Combine = "precision_weighted"

    def _check_fields(self) -> None:
        super()._check_fields()
        _check_function("combine", self.combine, COMBINATIONS)

    def _inference_model(self, networks: Networks) -> LadderInference:
        combine = COMBINATIONS[self.combine] if isinstance(self.combine, str) else self.combine
        return LadderInference(
            self.latent_sizes,
            self.hidden_sizes,
            self.own_top_down,
            self.mean_upward,
            combine,
            networks,
        )


class VAE(HierarchicalVAE):
    """The hierarchical VAE with bottom-up inference, (7)-(9).

    Fields as in `LadderVAE`, but for `own_top_down`, `mean_upward` and `combine`.
    """

    def _inference_model(self, networks: Networks) -> BottomUpInference:
        return BottomUpInference(self.latent_sizes, self.hidden_sizes, networks)
