"""One generative model and two inference models: the VAE, (7)-(9), and the Ladder VAE, (13)-(19).

Layers are numbered i = 1 .. L from the bottom as in the paper; a tuple over layers holds layer i at
position i - 1. x is [batch, data_dim] and z_i is [samples, batch, units].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from lvae_jax import distributions
from lvae_jax.bounds import Terms
from lvae_jax.distributions import Bernoulli, Gaussian
from lvae_jax.networks import ACTIVATIONS, MLP, GaussianHead, Linear

OBSERVATIONS = ("bernoulli", "gaussian")

Prior = Callable[[int, Array], Gaussian]
"""p(z_i | z_{i+1}) as a function of i and z_{i+1}."""

Draw = Callable[[int, Gaussian], Float[Array, "samples batch units"]]
"""z_i as a function of i and q(z_i | ...): a sample of it, or a value that is given."""


class GenerativeModel(nn.Module):
    """p(x | z_1) p(z_1 | z_2) ... p(z_L), equations (1)-(3) with the networks of (10)-(12).

    `mlp` and `head` make the networks of a layer from their sizes; other fields as of `LadderVAE`.
    """

    data_dim: int
    latent_sizes: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    observation: str
    mlp: Callable[..., MLP]
    head: Callable[..., GaussianHead]

    def setup(self) -> None:  # noqa: D102
        self.mlps = [self.mlp((h, h)) for h in self.hidden_sizes]
        self.heads = [self.head(units) for units in self.latent_sizes[:-1]]
        self.observation_head = (
            Linear(self.data_dim, batch_norm=False)
            if self.observation == "bernoulli"
            else self.head(self.data_dim, batch_norm=False)
        )

    def prior(
        self, layer: int, z_above: Float[Array, "*batch above"], train: bool = False
    ) -> Gaussian:
        """p(z_i | z_{i+1}) of layer i < L."""
        return self.heads[layer - 1](self.mlps[layer](z_above, train), train)

    def observe(
        self, z_1: Float[Array, "*batch units"], train: bool = False
    ) -> Bernoulli | Gaussian:
        """p(x | z_1)."""
        head: Any = self.observation_head(self.mlps[0](z_1, train), train)
        return Bernoulli(head) if self.observation == "bernoulli" else head

    def ancestral(
        self,
        z: Float[Array, "samples units"],
        layer: int,
        noise: Sequence[Float[Array, "samples units"]],
    ) -> Float[Array, "samples data_dim"]:
        """Means of p(x | z_1), the layers below `layer` drawn from their priors by the noise."""
        for i in range(layer - 1, 0, -1):
            z = distributions.reparameterize(self.prior(i, z), noise[i - 1])
        return distributions.mean(self.observe(z))


class Inferred(NamedTuple):
    """What an inference model gives for every layer, bottom to top."""

    z: tuple[Float[Array, "samples batch units"], ...]
    posterior: tuple[Gaussian, ...]
    prior: tuple[Gaussian, ...]
    closed_form_kl: tuple[bool, ...]
    """See `bounds.Terms`."""


class LadderInference(nn.Module):
    """The ladder, (13)-(19): a deterministic upward pass, then samples from the top down.

    `mlp` and `head` make the networks of a layer from their sizes; other fields as of `LadderVAE`.
    """

    latent_sizes: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    own_top_down: bool
    mean_upward: bool
    mlp: Callable[..., MLP]
    head: Callable[..., GaussianHead]

    def setup(self) -> None:  # noqa: D102
        self.mlps = [self.mlp((h, h)) for h in self.hidden_sizes]
        self.heads = [self.head(units) for units in self.latent_sizes]
        if self.own_top_down:
            self.top_down_mlps = [self.mlp((h, h)) for h in self.hidden_sizes[1:]]
            self.top_down_heads = [self.head(units) for units in self.latent_sizes[:-1]]

    def encode(self, x: Float[Array, "batch data_dim"], train: bool) -> tuple[Gaussian, ...]:
        """The likelihood N(mu_hat_i, var_hat_i) of every layer, (13)-(15), [batch, units]."""
        likelihoods = []
        d = x
        for mlp, head in zip(self.mlps, self.heads, strict=True):
            d = mlp(d, train)
            likelihood = head(d, train)
            likelihoods.append(likelihood)
            d = likelihood.mean if self.mean_upward else d
        return tuple(likelihoods)

    def infer(
        self,
        likelihoods: tuple[Gaussian, ...],
        draw: Draw,
        prior: Prior,
        train: bool,
    ) -> Inferred:
        """The downward pass, (16)-(19): a layer's posterior is its likelihood times its prior."""
        *lower, top = (jax.tree.map(lambda field: field[None], q) for q in likelihoods)
        z = [draw(len(likelihoods), top)]
        posteriors = [top]
        priors = [distributions.standard_gaussian(z[0].shape)]
        for i in range(len(lower), 0, -1):
            p = prior(i, z[0])
            above = self.top_down(i, z[0], train) if self.own_top_down else p
            q = distributions.precision_weighted(lower[i - 1], above)
            z.insert(0, draw(i, q))
            posteriors.insert(0, q)
            priors.insert(0, p)
        return Inferred(tuple(z), tuple(posteriors), tuple(priors), (True,) * len(z))

    def top_down(self, layer: int, z_above: Float[Array, "*batch above"], train: bool) -> Gaussian:
        """With `own_top_down`: what stands in for p(z_i | z_{i+1}) in the product of (16)-(19)."""
        return self.top_down_heads[layer - 1](self.top_down_mlps[layer - 1](z_above, train), train)


class BottomUpInference(nn.Module):
    """The VAE's inference, (7)-(9): q(z_1 | x), then q(z_i | z_{i-1}), sampled from the bottom up.

    `mlp` and `head` make the networks of a layer from their sizes; other fields as of `LadderVAE`.
    """

    latent_sizes: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    mlp: Callable[..., MLP]
    head: Callable[..., GaussianHead]

    def setup(self) -> None:  # noqa: D102
        self.mlps = [self.mlp((h, h)) for h in self.hidden_sizes]
        self.heads = [self.head(units) for units in self.latent_sizes]

    def posterior(self, layer: int, below: Float[Array, "*batch below"], train: bool) -> Gaussian:
        """q(z_i | z_{i-1}); `below` is x for the first layer."""
        return self.heads[layer - 1](self.mlps[layer - 1](below, train), train)

    def encode(self, x: Float[Array, "batch data_dim"], train: bool) -> tuple[Gaussian, ...]:
        """q(z_1 | x), [batch, units]: every layer above depends on a sample of the one below."""
        return (self.posterior(1, x, train),)

    def infer(
        self,
        encoded: tuple[Gaussian, ...],
        draw: Draw,
        prior: Prior,
        train: bool,
    ) -> Inferred:
        """The upward pass: z_1 from q(z_1 | x), then z_i from q(z_i | z_{i-1})."""
        depth = len(self.latent_sizes)
        posteriors = [jax.tree.map(lambda field: field[None], encoded[0])]
        z = [draw(1, posteriors[0])]
        for i in range(2, depth + 1):
            posteriors.append(self.posterior(i, z[-1], train))
            z.append(draw(i, posteriors[-1]))
        priors = [prior(i, z[i]) for i in range(1, depth)]
        priors.append(distributions.standard_gaussian(z[-1].shape))
        closed_form_kl = (False,) * (depth - 1) + (True,)
        return Inferred(tuple(z), tuple(posteriors), tuple(priors), closed_form_kl)


class HierarchicalVAE(nn.Module):
    """What `VAE` and `LadderVAE` share: all but the inference model. Fields as of `LadderVAE`."""

    data_dim: int
    latent_sizes: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    observation: str = "bernoulli"
    activation: str = "leaky_relu"
    batch_norm: bool = True
    variance_floor: float = 1e-5

    def setup(self) -> None:  # noqa: D102
        self._check_fields()
        mlp = functools.partial(MLP, activation=self.activation, batch_norm=self.batch_norm)
        head = functools.partial(
            GaussianHead, batch_norm=self.batch_norm, variance_floor=self.variance_floor
        )
        self.generative = GenerativeModel(
            self.data_dim, self.latent_sizes, self.hidden_sizes, self.observation, mlp, head
        )
        self.inference = self._inference_model(mlp, head)

    def _inference_model(
        self, mlp: Callable[..., MLP], head: Callable[..., GaussianHead]
    ) -> LadderInference | BottomUpInference:
        raise TypeError("HierarchicalVAE has no inference model; use LadderVAE or VAE")

    def _check_fields(self) -> None:
        if not self.latent_sizes or len(self.latent_sizes) != len(self.hidden_sizes):
            raise ValueError(
                f"latent_sizes={self.latent_sizes} and hidden_sizes={self.hidden_sizes}: "
                "give one of each a layer, and at least one layer"
            )
        if min(self.data_dim, *self.latent_sizes, *self.hidden_sizes) < 1:
            raise ValueError(
                f"data_dim={self.data_dim}, latent_sizes={self.latent_sizes}, "
                f"hidden_sizes={self.hidden_sizes}: every size must be at least 1"
            )
        if self.observation not in OBSERVATIONS:
            raise ValueError(
                f"observation={self.observation!r}; give one of {', '.join(OBSERVATIONS)}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation={self.activation!r}; give one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def depth(self) -> int:
        """L, the number of layers of latents."""
        return len(self.latent_sizes)

    def __call__(
        self, x: Float[Array, "batch data_dim"], num_samples: int = 1, train: bool = False
    ) -> Terms:
        """Infers z and evaluates every density; draws from the "sample" stream.

        Args:
          x: the examples.
          num_samples: samples of z an example.
          train: batch norm by the batch's own moments, stored in "batch_stats" where mutable.

        Returns:
          The terms of every bound: see `bounds`.
        """
        return self.infer(x, self.encode(x, train), num_samples, train)

    def encode(
        self, x: Float[Array, "batch data_dim"], train: bool = False
    ) -> tuple[Gaussian, ...]:
        """The part of inference that no sample changes: compute it once an example.

        Returns:
          The likelihood of every layer for the ladder, q(z_1 | x) for the VAE; [batch, units].
        """
        return self.inference.encode(x, train)

    def infer(
        self,
        x: Float[Array, "batch data_dim"],
        encoded: tuple[Gaussian, ...],
        num_samples: int = 1,
        train: bool = False,
    ) -> Terms:
        """The rest of `__call__`, from what `encode` gave."""
        noise = self._noise(self.make_rng("sample"), (num_samples, x.shape[0]))
        return self._terms(
            x, encoded, lambda i, q: distributions.reparameterize(q, noise[i - 1]), train
        )

    def densities(
        self,
        x: Float[Array, "batch data_dim"],
        z: Sequence[Float[Array, "samples batch units"]],
        train: bool = False,
    ) -> Terms:
        """Evaluates every density as `__call__` does, at a z that is given: nothing is drawn.

        Each q(z_i | ...) and p(z_i | z_{i+1}) is the one given the neighbouring layer of this z, so
        that it can be differentiated by z alone, or by the parameters alone.

        Args:
          x: the examples.
          z: of every layer, bottom to top.
          train: see `__call__`.

        Returns:
          The terms of every bound, with this z.

        Raises:
          ValueError: z does not have the layers, the examples and the units that it should.
        """
        expected = [(x.shape[0], units) for units in self.latent_sizes]
        if [layer.shape[1:] for layer in z] != expected:
            raise ValueError(
                f"z has shapes {', '.join(str(layer.shape) for layer in z)}; give [samples, "
                f"{x.shape[0]}, units] for each of the units {self.latent_sizes}, bottom to top"
            )
        return self._terms(x, self.encode(x, train), lambda i, q: z[i - 1], train)

    def _terms(
        self,
        x: Float[Array, "batch data_dim"],
        encoded: tuple[Gaussian, ...],
        draw: Draw,
        train: bool,
    ) -> Terms:
        """Every density at the z that `draw` gives."""
        prior = functools.partial(self.generative.prior, train=train)
        inferred = self.inference.infer(encoded, draw, prior, train)
        observed = self.generative.observe(inferred.z[0], train)
        return Terms(
            log_px=distributions.sum_log_prob(observed, x[None]),
            z=inferred.z,
            posterior=tuple(
                Gaussian(jnp.broadcast_to(q.mean, z.shape), jnp.broadcast_to(q.variance, z.shape))
                for q, z in zip(inferred.posterior, inferred.z, strict=True)
            ),
            prior=inferred.prior,
            closed_form_kl=inferred.closed_form_kl,
        )

    def prior(self, layer: int, z_above: Float[Array, "*batch above"]) -> Gaussian:
        """p(z_i | z_{i+1}) of layer i = 1 .. L - 1, given z_{i+1}; that of layer L is N(0, I)."""
        return self.generative.prior(layer, z_above)

    def observe(self, z_1: Float[Array, "*batch units"]) -> Bernoulli | Gaussian:
        """p(x | z_1), unit by unit."""
        return self.generative.observe(z_1)

    def generate(
        self,
        z_or_key: Float[Array, "samples units"] | Key[Array, ""],
        layer: int | None = None,
        num_samples: int = 1,
    ) -> Float[Array, "samples data_dim"]:
        """Ancestral samples: the means of p(x | z_1).

        Args:
          z_or_key: values of z of `layer`, the layers below being drawn from the "sample" stream;
            or a PRNG key, and `num_samples` of all layers are drawn from it.
          layer: which layer z belongs to, 1 .. L; the top one where it is not given.
          num_samples: how many samples to draw where a key is given.

        Returns:
          One row a sample: probabilities for Bernoulli, means for Gaussian observations.

        Raises:
          ValueError: there is no such layer, or z has another number of units.
        """
        layer = self.depth if layer is None else layer
        if not 1 <= layer <= self.depth:
            raise ValueError(f"layer={layer}; this model has layers 1 to {self.depth}")
        if jnp.issubdtype(z_or_key.dtype, jax.dtypes.prng_key):
            *noise, z = self._noise(z_or_key, (num_samples,))
            return self.generative.ancestral(z, self.depth, noise)
        if z_or_key.ndim != 2 or z_or_key.shape[1] != self.latent_sizes[layer - 1]:
            raise ValueError(
                f"z has shape {z_or_key.shape}; "
                f"layer {layer} takes [samples, {self.latent_sizes[layer - 1]}]"
            )
        noise = [] if layer == 1 else self._noise(self.make_rng("sample"), z_or_key.shape[:1])
        return self.generative.ancestral(z_or_key, layer, noise)

    def reconstruct(self, x: Float[Array, "batch data_dim"]) -> Float[Array, "batch data_dim"]:
        """Means of p(x | z_1) with z_1 drawn from the posterior of x, from the "sample" stream."""
        return distributions.mean(self.generative.observe(self(x).z[0][0]))

    def _noise(self, key: Key[Array, ""], shape: tuple[int, ...]) -> list[Float[Array, "..."]]:
        """Standard normal noise of every layer, [*shape, units], drawn in one call."""
        ends = [sum(self.latent_sizes[:i]) for i in range(1, self.depth)]
        noise = jax.random.normal(key, (*shape, sum(self.latent_sizes)), jnp.float32)
        return jnp.split(noise, ends, axis=-1)


class LadderVAE(HierarchicalVAE):
    """The Ladder VAE: inference runs down the ladder that generation runs down.

    Fields:
      data_dim: D, the number of observed variables.
      latent_sizes: units of z_1 .. z_L.
      hidden_sizes: units of both hidden layers of the MLPs at each layer: position 0 between x and
        z_1 (or d_1), position i between z_i and z_{i+1}, in both directions.
      observation: p(x | z_1), "bernoulli" or "gaussian".
      activation: "leaky_relu" (slope 0.1) or "tanh".
      batch_norm: in every MLP and on the mean and variance heads of the latents.
      variance_floor: added to every variance.
      own_top_down: the downward inference has MLPs of its own instead of the generative ones.
      mean_upward: mu_hat_{i-1} is fed upward instead of d_{i-1}.
    """

    own_top_down: bool = False
    mean_upward: bool = False

    def _inference_model(
        self, mlp: Callable[..., MLP], head: Callable[..., GaussianHead]
    ) -> LadderInference:
        return LadderInference(
            self.latent_sizes, self.hidden_sizes, self.own_top_down, self.mean_upward, mlp, head
        )


class VAE(HierarchicalVAE):
    """The hierarchical VAE with bottom-up inference, (7)-(9). Fields as of `LadderVAE`."""

    def _inference_model(
        self, mlp: Callable[..., MLP], head: Callable[..., GaussianHead]
    ) -> BottomUpInference:
        return BottomUpInference(self.latent_sizes, self.hidden_sizes, mlp, head)
