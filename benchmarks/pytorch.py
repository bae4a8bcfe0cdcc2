"""The ladder variational autoencoder in PyTorch, written for speed.

The model of `lvae_jax.LadderVAE` with Bernoulli observations, from the same equations, with
PyTorch's fused batch norm and loss, one linear layer for mean and variance, and fused Adam. PyTorch
is an optional dependency: `pip install "lvae-jax[benchmarks]"`. Before anything is timed,
`differences` and `check` compare the numbers of the two models.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.sizes import Sizes
from lvae_jax import LadderVAE, bounds

EPSILON = 1e-5
VARIANCE_FLOOR = 1e-5

Gaussian = tuple[torch.Tensor, torch.Tensor]
"""Mean and variance, [rows, units]."""


class BatchNorm(nn.Module):
    """Normalises by the batch's own moments in training, by stored ones in evaluation.

    As in `lvae_jax`, training keeps no moving average, because nothing would read it.
    """

    def __init__(self, units: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units))
        self.bias = nn.Parameter(torch.zeros(units))
        self.register_buffer("mean", torch.zeros(units))
        self.register_buffer("variance", torch.ones(units))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """[rows, units] -> [rows, units]."""
        if self.training:
            return functional.batch_norm(
                y, None, None, self.weight, self.bias, training=True, eps=EPSILON
            )
        return functional.batch_norm(
            y, self.mean, self.variance, self.weight, self.bias, training=False, eps=EPSILON
        )


class Linear(nn.Sequential):
    """A linear layer and batch norm, whose shift replaces the bias."""

    def __init__(self, inputs: int, units: int):
        super().__init__(nn.Linear(inputs, units, bias=False), BatchNorm(units))


class MLP(nn.Sequential):
    """Two hidden layers."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__(
            Linear(inputs, hidden), nn.LeakyReLU(0.1), Linear(hidden, hidden), nn.LeakyReLU(0.1)
        )


class GaussianHead(nn.Module):
    """Mean and variance from d, [rows, d] -> two of [rows, units]."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.linear = Linear(inputs, 2 * units)

    def forward(self, d: torch.Tensor) -> Gaussian:
        """Equations (11), (12)."""
        mean, raw_variance = self.linear(d).chunk(2, dim=-1)
        return mean, functional.softplus(raw_variance) + VARIANCE_FLOOR


class Ladder(nn.Module):
    """The Ladder VAE, (1)-(3) and (13)-(19). Position i - 1 of a list belongs to layer i."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        latent, hidden = sizes.latent, sizes.hidden
        below = (sizes.data_dim, *hidden[:-1])
        self.latent = latent
        self.up_mlps = nn.ModuleList(MLP(n, h) for n, h in zip(below, hidden, strict=True))
        self.up_heads = nn.ModuleList(
            GaussianHead(h, units) for h, units in zip(hidden, latent, strict=True)
        )
        self.down_mlps = nn.ModuleList(
            MLP(units, h) for units, h in zip(latent, hidden, strict=True)
        )
        self.down_heads = nn.ModuleList(
            GaussianHead(h, units) for h, units in zip(hidden[1:], latent[:-1], strict=True)
        )
        self.logits = nn.Linear(hidden[0], sizes.data_dim)

    def encode(self, x: torch.Tensor) -> list[Gaussian]:
        """The likelihood of every layer, (13)-(15)."""
        likelihoods = []
        d = x
        for mlp, head in zip(self.up_mlps, self.up_heads, strict=True):
            d = mlp(d)
            likelihoods.append(head(d))
        return likelihoods

    def infer(
        self, likelihoods: Sequence[Gaussian], noise: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[Gaussian], list[Gaussian]]:
        """The downward pass, (16)-(19), with given noise.

        Returns:
          The logits of x, and z, posterior and prior of every layer.
        """
        depth = len(self.latent)
        z: list[Any] = [None] * depth
        posterior: list[Any] = [None] * depth
        prior: list[Any] = [None] * depth
        mean, variance = posterior[-1] = likelihoods[-1]
        prior[-1] = (torch.zeros_like(mean), torch.ones_like(variance))
        z[-1] = mean + variance.sqrt() * noise[-1]
        for i in range(depth - 2, -1, -1):
            p_mean, p_variance = prior[i] = self.down_heads[i](self.down_mlps[i + 1](z[i + 1]))
            l_mean, l_variance = likelihoods[i]
            weight = p_variance / (l_variance + p_variance)
            mean = torch.lerp(p_mean, l_mean, weight)
            variance = weight * l_variance
            posterior[i] = (mean, variance)
            z[i] = mean + variance.sqrt() * noise[i]
        return self.logits(self.down_mlps[0](z[0])), z, posterior, prior

    def terms(
        self, x: torch.Tensor, noise: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """log p(x | z_1), and the KL divergence of every layer in closed form: batch means."""
        logits, _, posterior, prior = self.infer(self.encode(x), noise)
        log_px = -functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kls = []
        for (q_mean, q_variance), (p_mean, p_variance) in zip(posterior, prior, strict=True):
            ratio = q_variance / p_variance
            scaled = (q_mean - p_mean).square() / p_variance
            kls.append(0.5 * (scaled + ratio - 1 - ratio.log()).sum() / len(x))
        return log_px / len(x), kls

    def loss(self, x: torch.Tensor, noise: Sequence[torch.Tensor], beta: float) -> torch.Tensor:
        """The negative ELBO with its KL weighted by beta, (20): the mean over the batch, nats."""
        log_px, kls = self.terms(x, noise)
        return beta * torch.stack(kls).sum() - log_px

    def log_weights(
        self, x: torch.Tensor, likelihoods: Sequence[Gaussian], noise: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """log p(x, z) - log q(z | x) of every sample, in nats.

        Args:
          x: [images, data_dim].
          likelihoods: the result of `encode`.
          noise: of every layer, [samples * images, units], ordered by sample, then image.

        Returns:
          [samples, images].
        """
        samples = len(noise[0]) // len(x)
        repeated = [
            (mean.repeat(samples, 1), variance.repeat(samples, 1)) for mean, variance in likelihoods
        ]
        logits, z, posterior, prior = self.infer(repeated, noise)
        logits = logits.view(samples, *x.shape)
        log_w = -functional.binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        ).sum(-1)
        for z_i, (q_mean, q_variance), (p_mean, p_variance) in zip(
            z, posterior, prior, strict=True
        ):
            log_q = q_variance.log() + (z_i - q_mean).square() / q_variance
            log_p = p_variance.log() + (z_i - p_mean).square() / p_variance
            log_w = log_w + 0.5 * (log_q - log_p).sum(-1).view(samples, -1)
        return log_w

    def draw_noise(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Standard normal noise of every layer, [rows, units], drawn in one call."""
        noise = torch.randn(rows, sum(self.latent), device=self.logits.weight.device)
        return noise.split(list(self.latent), dim=-1)


# ----------------------------------------------------------------------------------------------
# Training and the likelihood
# ----------------------------------------------------------------------------------------------


def device() -> torch.device:
    """A GPU if PyTorch finds one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_epoch(
    sizes: Sizes, images: np.ndarray, batch_size: int, compiled: bool
) -> Callable[[], Any]:
    """One pass over a training set, shuffled and binarised anew.

    Args:
      sizes: the model's sizes.
      images: grey, uint8, [n, data_dim].
      batch_size: images per step; the last partial batch is dropped.
      compiled: whether `torch.compile` compiles the loss, forward and backward.

    Returns:
      A function that trains for an epoch and returns the mean training ELBO.
    """
    model = Ladder(sizes).to(device()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    stored = torch.from_numpy(images).to(device())

    def loss(grey: torch.Tensor) -> torch.Tensor:
        x = torch.bernoulli(grey.float() / 255)
        return model.loss(x, model.draw_noise(len(x)), beta=1.0)

    if compiled:
        mode = "reduce-overhead" if device().type == "cuda" else None
        loss = torch.compile(loss, mode=mode)

    def epoch() -> float:
        steps = len(stored) // batch_size
        order = torch.randperm(len(stored), device=stored.device)[: steps * batch_size]
        total = torch.zeros((), device=stored.device)
        for rows in order.view(steps, batch_size):
            optimizer.zero_grad(set_to_none=True)
            value = loss(stored[rows])
            value.backward()
            optimizer.step()
            total += value.detach()
        return -float(total) / steps

    return epoch


def make_log_likelihood(
    model: Ladder, x: torch.Tensor, num_samples: int, chunk_size: int
) -> Callable[[], Any]:
    """The importance-sampled log-likelihood, (6), of every image.

    Args:
      model: in evaluation mode.
      x: [images, data_dim].
      num_samples: K, a multiple of chunk_size.
      chunk_size: samples per image at a time.

    Returns:
      A function that returns [images], in nats.
    """

    def chunk(likelihoods: Sequence[Gaussian]) -> torch.Tensor:
        noise = model.draw_noise(chunk_size * len(x))
        return torch.logsumexp(model.log_weights(x, likelihoods, noise), dim=0)

    def log_likelihood() -> np.ndarray:
        with torch.inference_mode():
            likelihoods = model.encode(x)
            sums = [chunk(likelihoods) for _ in range(num_samples // chunk_size)]
            return (torch.logsumexp(torch.stack(sums), dim=0) - math.log(num_samples)).cpu().numpy()

    return log_likelihood


# ----------------------------------------------------------------------------------------------
# The same parameters, the same numbers
# ----------------------------------------------------------------------------------------------


def load(model: Ladder, variables: Any) -> None:
    """Copies the parameters of an `lvae_jax.LadderVAE`, and its batch-norm statistics if given.

    Args:
      model: a model of the same sizes; it is changed.
      variables: {"params"}, or {"params", "batch_stats"}.
    """
    modules = dict(model.named_modules())
    for tree in variables.values():
        for path, value in jax.tree_util.tree_leaves_with_path(tree):
            tensor, is_kernel = _counterpart(modules, [entry.key for entry in path])
            array = np.asarray(value)
            with torch.no_grad():
                tensor.copy_(torch.tensor(array.T if is_kernel else array))


def gradients(model: Ladder, params: Any) -> Any:
    """The gradients of a model, as a tree like the parameters of the `lvae_jax.LadderVAE`."""
    modules = dict(model.named_modules())

    def gradient(path: Any, _: Any) -> np.ndarray:
        tensor, is_kernel = _counterpart(modules, [entry.key for entry in path])
        array = tensor.grad.cpu().numpy()
        return array.T if is_kernel else array

    return jax.tree_util.tree_map_with_path(gradient, params)


def _counterpart(modules: dict[str, Any], path: list[str]) -> tuple[Any, bool]:
    """The tensor of a path in lvae_jax's variables, and whether it is a (transposed) kernel."""
    part, network, *rest = path
    if network == "observation_head":
        module = modules["logits"]
    else:
        kind, number = network.rsplit("_", 1)
        name = f"{'up' if part == 'inference' else 'down'}_{kind}.{number}"
        linears = [m for n, m in modules.items() if n.startswith(name) and isinstance(m, Linear)]
        linear = linears[int(rest[0].rsplit("_", 1)[1])]
        module = linear[1] if rest[1].startswith("BatchNorm") else linear[0]
    names = {"kernel": "weight", "scale": "weight", "shift": "bias"}
    return getattr(module, names.get(path[-1], path[-1])), path[-1] == "kernel"


LIMITS = {"elbo_terms": 1e-4, "gradient": 1e-2, "log_weights": 1e-4}
"""Limits of `differences`. If rounding moves a pre-activation across the kink of a leaky ReLU, the
whole gradient changes by up to a thousandth; everything else agrees to float32's precision."""


def check(differences: dict[str, float]) -> None:
    """Refuses to time two models that do not compute the same.

    Raises:
      ValueError: a difference exceeds its limit.
    """
    for name, limit in LIMITS.items():
        if not differences[name] <= limit:
            raise ValueError(
                f"PyTorch's {name} differ from lvae_jax's by {differences[name]:.2g} of their "
                f"size; expected at most {limit:g}: correct the model in benchmarks/pytorch.py"
            )


def differences(
    sizes: Sizes, jax_model: LadderVAE, variables: Any, x: np.ndarray, key: jax.Array
) -> dict[str, float]:
    """Relative differences of the two models, given the same parameters, images and noise.

    Args:
      sizes: the sizes of both models.
      jax_model: the model of `lvae_jax`.
      variables: its {"params", "batch_stats"}.
      x: binary images.
      key: for the noise.

    Returns:
      Relative differences of the ELBO's terms, of their gradient (the whole vector, in the
      Euclidean norm), and of the logarithms of the importance weights in evaluation.
    """
    model = Ladder(sizes).to(device())
    load(model, variables)
    images = torch.tensor(x, device=device())
    with jax.default_matmul_precision("highest"):

        def infer(params: Any, train: bool) -> Any:
            # Separate dicts, so that training does not read the statistics.
            kept = {"params": params} if train else {**variables, "params": params}
            return jax_model.apply(kept, jnp.asarray(x), train=train, rngs={"sample": key})

        def loss(params: Any) -> tuple[jax.Array, Any]:
            terms = infer(params, True)
            return -jnp.mean(bounds.elbo(terms)), terms

        gradient, terms = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        evaluated = jax.jit(infer, static_argnums=1)(variables["params"], False)

    def noise_of(terms: Any) -> list[torch.Tensor]:
        layers = zip(terms.z, terms.posterior, strict=True)
        noise = [(z - q.mean) / jnp.sqrt(q.variance) for z, q in layers]
        return [torch.tensor(np.asarray(layer[0]), device=device()) for layer in noise]

    log_px, kls = model.train().terms(images, noise_of(terms))
    model.loss(images, noise_of(terms), beta=1.0).backward()
    kl_per_layer = [float(jnp.mean(kl)) for kl in bounds.sum_units(bounds.kl_per_unit(terms))]
    ours, theirs = (
        np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (gradient, gradients(model, gradient))
    )
    with torch.inference_mode():
        model.eval()
        log_w = model.log_weights(images, model.encode(images), noise_of(evaluated)).cpu().numpy()
    return {
        "elbo_terms": max(
            abs(a / b - 1)
            for a, b in zip(
                [term.item() for term in (log_px, *kls)],
                [float(jnp.mean(terms.log_px)), *kl_per_layer],
                strict=True,
            )
        ),
        "gradient": float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours)),
        "log_weights": float(np.max(np.abs(log_w / np.asarray(bounds.log_weights(evaluated)) - 1))),
    }
