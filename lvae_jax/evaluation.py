"""Evaluation: batch-norm re-estimation, ELBO and log-likelihood of a data set, active units.

beta is always 1 here. Every draw is derived from (key, image, sample) alone, so that no result
depends on how images or samples are grouped; only `reestimate_batch_stats` draws per batch.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from lvae_jax import bounds, compilation
from lvae_jax.annealing import Bidirectional, bidirectional
from lvae_jax.bounds import Terms
from lvae_jax.checks import check_images, check_whole, per_image, warns_of_values
from lvae_jax.imputation import (
    ConditionalLogLikelihood,
    Conditioning,
    Imputation,
    conditional_log_likelihood,
    impute,
)
from lvae_jax.keys import named_key, threefry
from lvae_jax.mesh import MESH_AXES, split_examples, vary_alike, whole
from lvae_jax.models import Model, given
from lvae_jax.normalization import Moments, pool, without_constant_units
from lvae_jax.outliers import LikelihoodRatio, likelihood_ratio
from lvae_jax.training import Preprocess

__all__ = [
    "Bidirectional",
    "ConditionalLogLikelihood",
    "Conditioning",
    "ElboResult",
    "Imputation",
    "LikelihoodRatio",
    "LogLikelihood",
    "active_units",
    "bidirectional",
    "conditional_log_likelihood",
    "default_chunk_size",
    "elbo",
    "impute",
    "likelihood_ratio",
    "log_likelihood",
    "log_likelihood_program",
    "map_images",
    "reestimate_batch_stats",
]

ACTIVE_VARIANCE = 0.01
"""A unit is active if its posterior mean has a larger variance over the data (Burda, 2016)."""


@functools.partial(jax.jit, static_argnames=("model", "preprocess", "batch_size"))
def reestimate_batch_stats(
    model: Model,
    params: Any,
    preprocess: Preprocess,
    images: Array,
    key: Key[Array, ""] | UInt32[Array, " words"],
    *,
    batch_size: int,
    condition: Float[Array, "images features"] | None = None,
) -> dict[str, Any]:
    """Variables for evaluation: the parameters with batch-norm statistics of the training set.

    One pass in training mode with fixed parameters and one sample per image. The moments of the
    batches are pooled into those of all images by the law of total variance. A unit that is
    constant over them gets an infinite variance, see `normalization.without_constant_units`. As in
    training, images are taken in a random order and the last partial batch is dropped.

    Args:
      model: a model.
      params: its parameters.
      preprocess: makes x of a batch of images.
      images: [n, ...], the training images as stored.
      key: a PRNG key.
      batch_size: the batch size of training.
      condition: [n, features], for a model with a `condition_dim`.

    Returns:
      {"params", "batch_stats"}; {"params"} for a model without batch norm.

    Raises:
      ValueError: there are no images, or not as many conditions, batch_size is less than 1, or the
        model has batch norm other than `networks.BatchNorm`.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model, images = LadderVAE(4, (2,), (3,)), jnp.eye(4)
      >>> def preprocess(key, images):
      ...     return images
      >>> keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
      >>> params = jax.jit(model.init)(keys, images)["params"]
      >>> variables = reestimate_batch_stats(
      ...     model, params, preprocess, images, jax.random.key(2), batch_size=4
      ... )
      >>> sorted(variables)
      ['batch_stats', 'params']
    """
    check_images(images, condition, batch_size)
    images, condition = jax.tree.map(whole, (images, condition))
    batch_size = min(batch_size, images.shape[0])
    batches = images.shape[0] // batch_size
    order = jax.random.permutation(named_key(key, "shuffle"), images.shape[0])

    def batch_moments(_: None, batch: tuple[Array, Array]) -> tuple[None, Any]:
        index, rows = batch
        rows = split_examples(rows)
        x = preprocess(named_key(key, "preprocess", index), images[rows])
        _, updates = model.apply(
            {"params": params},
            x,
            train=True,
            rngs={"sample": named_key(key, "sample", index)},
            mutable=["batch_stats"],
            **given(None if condition is None else condition[rows]),
        )
        return None, updates.get("batch_stats", {})

    def pooled(means: Array, variances: Array) -> dict[str, Array]:
        return without_constant_units(pool(Moments(means, variances)))._asdict()

    rows = order[: batches * batch_size].reshape(batches, batch_size)
    _, moments = jax.lax.scan(batch_moments, None, (jnp.arange(batches), rows))
    by_path = traverse_util.flatten_dict(moments)
    if not by_path:
        return {"params": params}
    layers = sorted({path[:-1] for path in by_path})
    for layer in layers:
        if {path[-1] for path in by_path if path[:-1] == layer} != set(Moments._fields):
            raise ValueError(
                f"batch_stats/{'/'.join(layer)} holds no mean and variance of this batch; use "
                "lvae_jax.networks.BatchNorm"
            )
    statistics = {
        (*layer, name): value
        for layer in layers
        for name, value in pooled(by_path[*layer, "mean"], by_path[*layer, "variance"]).items()
    }
    return {"params": params, "batch_stats": traverse_util.unflatten_dict(statistics)}


class ElboResult(NamedTuple):
    """Means over the images of a data set, in nats."""

    elbo: Float[Array, ""]
    """L_1 with beta = 1."""

    log_px: Float[Array, ""]
    kl_per_unit: tuple[Float[Array, " _units"], ...]
    active: tuple[Bool[Array, " _units"], ...]
    """Burda's criterion: see `active_units`."""


def active_units(means: Float[Array, "samples images units"]) -> Bool[Array, " units"]:
    """Which units are active: Var_x(E_q[mean of q(z_i | ...)]) > 0.01 (Burda et al., 2016).

    In a hierarchy the posterior mean of a layer depends on the samples it is conditioned on. With
    two independent samples, the covariance of the two means over the images is an unbiased estimate
    of the variance of their expectation. The variance of one sample would count noise as activity.

    Args:
      means: posterior means for an even number of independent samples of every image.

    Returns:
      [units].

    Raises:
      ValueError: the samples cannot be paired.

    Example:
      >>> means = jnp.float32([[[0.0, 3.0], [0.0, -3.0]]] * 2)  # the second unit follows the image
      >>> active_units(means).tolist()
      [False, True]
    """
    samples = means.shape[0]
    if samples < 2 or samples % 2:
        raise ValueError(f"{samples} samples per image; give an even number, for pairs")
    centred = means - jnp.mean(means, axis=1, keepdims=True)
    one, other = centred[0::2], centred[1::2]
    return jnp.mean(one * other, axis=(0, 1)) > ACTIVE_VARIANCE


def map_images(function: Callable[..., Any], batch_size: int, *arrays: Array | None) -> Any:
    """`jax.vmap` of a function of one image over any number of images, `batch_size` at a time.

    On a mesh (`jax.set_mesh`) the images of a batch are split over its devices, if the number of
    devices divides `batch_size`.

    Args:
      function: of a row of every array; its results are pytrees of arrays.
      batch_size: images at a time.
      *arrays: every array has a row per image; an array may be None, except the first.

    Returns:
      The results of all images, with a leading axis for them.

    Raises:
      ValueError: batch_size is less than 1.
    """
    check_whole(batch_size=batch_size)
    arrays = jax.tree.map(whole, arrays)
    n = len(jax.tree.leaves(arrays)[0])
    batches = -(-n // batch_size)
    # The last batch is filled up with copies of the first images, so that one program serves all.
    rows = (jnp.arange(batches * batch_size) % n).reshape(batches, batch_size)

    def of_batch(batch: Int[Array, " batch"]) -> Any:
        batch = split_examples(batch, MESH_AXES)
        return jax.vmap(function)(*jax.tree.map(lambda array: array[batch], arrays))

    results = jax.lax.map(of_batch, rows)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], results)


@warns_of_values
@functools.partial(jax.jit, static_argnames=("model", "preprocess", "num_samples", "batch_size"))
def elbo(
    model: Model,
    variables: Any,
    preprocess: Preprocess,
    images: Array,
    key: Key[Array, ""] | UInt32[Array, " words"],
    *,
    num_samples: int = 2,
    batch_size: int = 250,
    condition: Float[Array, "images features"] | None = None,
) -> ElboResult:
    """L_1 of a data set and its parts, per layer and unit.

    Args:
      model: a model.
      variables: the result of `reestimate_batch_stats`.
      preprocess: makes x of images; called for every image separately.
      images: [n, ...], as stored.
      key: a PRNG key.
      num_samples: samples per image that the bound is averaged over; an even number.
      batch_size: images at a time; the result does not depend on it.
      condition: [n, features], for a model with a `condition_dim`.

    Returns:
      Means over the images, and the active units.

    Raises:
      ValueError: num_samples is odd, batch_size is less than 1, there are no images, or not as many
        conditions.

    Warns:
      UserWarning: the batch statistics are those of `init`; only outside `jit` is that known.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model, images = LadderVAE(4, (2,), (3,), batch_norm=False), jnp.eye(4)
      >>> keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
      >>> variables = jax.jit(model.init)(keys, images)
      >>> def preprocess(key, images):
      ...     return images
      >>> result = elbo(model, variables, preprocess, images, jax.random.key(2))
      >>> result.elbo.shape, [kl.shape for kl in result.kl_per_unit]
      ((), [(2,)])
    """
    check_images(images, condition, batch_size)
    key = threefry(key)

    def of_image(index: Int[Array, ""], image: Array, condition: Any) -> tuple[Any, ...]:
        image_key = jax.random.fold_in(key, index)
        x = preprocess(named_key(image_key, "preprocess"), image[None])
        rngs = {"sample": named_key(image_key, "sample")}
        conditioned = given(None if condition is None else condition[None])
        terms = cast(Terms, model.apply(variables, x, num_samples, rngs=rngs, **conditioned))
        kl_per_unit = tuple(jnp.mean(kl, axis=(0, 1)) for kl in bounds.kl_per_unit(terms))
        means = tuple(q.mean[:, 0] for q in terms.posterior)
        return bounds.elbo(terms)[0], jnp.mean(terms.log_px), kl_per_unit, means

    bound, log_px, kl_per_unit, means = map_images(
        of_image, batch_size, jnp.arange(images.shape[0]), images, condition
    )
    return ElboResult(
        elbo=jnp.mean(bound),
        log_px=jnp.mean(log_px),
        kl_per_unit=tuple(jnp.mean(kl, axis=0) for kl in kl_per_unit),
        active=tuple(active_units(jnp.swapaxes(layer, 0, 1)) for layer in means),
    )


class LogLikelihood(NamedTuple):
    """The importance-sampled estimate for every image."""

    log_likelihood: Float[Array, " batch"]
    """L_K in nats: log 1/K sum_k p(x, z_k) / q(z_k | x)."""

    effective_sample_size: Float[Array, " batch"]
    """(sum w)^2 / sum w^2, between 1 and K: the number of samples that matter to the estimate."""


class _RunningSums(NamedTuple):
    """Sums of w / e^largest and of its square over the samples so far, and the largest log w."""

    largest: Float[Array, " batch"]
    weights: Float[Array, " batch"]
    squares: Float[Array, " batch"]


def default_chunk_size(
    model: Model, images: int, platform: str | None = None, memory: int | None = None
) -> int:
    """The default number of importance samples per image and chunk, from the device and its memory.

    Args:
      model: a model.
      images: number of images per call.
      platform: the device's platform, such as "cpu" or "tpu"; None for the default backend.
      memory: the device's memory in bytes; None for that of the first local device.

    Returns:
      At least 1, and always the same on a device. All images together get about 2,500 samples at a
      time on a CPU, which fit into its caches, and 25,000 on other devices; fewer if these would
      take more than a quarter of the device's memory.
    """
    # A few times the numbers that a sample computes; a guess for models that do not tell.
    floats = 4 * getattr(model, "numbers_per_sample", 8 * model.data_dim)
    at_once = 2_500 if (platform or jax.default_backend()) == "cpu" else 25_000
    memory = _memory_bytes() if memory is None else memory
    at_once = min(at_once, memory // 4 // (4 * floats))
    return max(1, at_once // max(1, images))


def _memory_bytes() -> int:
    """Memory of the first device; the host's if the device does not report it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system counts its pages
        return 2**30


_LIKELIHOOD = ("model", "num_samples", "chunk_size")


@warns_of_values
@functools.partial(jax.jit, static_argnames=_LIKELIHOOD)
def log_likelihood(
    model: Model,
    variables: Any,
    x: Float[Array, "batch data_dim"] | Bool[Array, "batch data_dim"],
    key: Key[Array, "*batch"] | UInt32[Array, "*batch words"],
    num_samples: int = 5000,
    chunk_size: int | None = None,
    condition: Float[Array, "batch features"] | None = None,
) -> LogLikelihood:
    """L_K, equation (6), of every image: a lower bound of log p(x), close to it for large K.

    The encoding of an image involves no samples and is computed once. Samples are vmapped in
    chunks, and their weights are summed chunk by chunk, relative to the largest so far, so that
    memory depends on `chunk_size` and not on K. An image's estimate depends only on its key and K.

    Args:
      model: a model.
      variables: its variables, batch-norm statistics included.
      x: the images, as floating-point numbers or booleans.
      key: one key, from which image i takes `fold_in(key, i)`; or a key for every image. Draws use
        threefry, whatever the key's own generator.
      num_samples: K.
      chunk_size: samples per image at a time; None for `default_chunk_size`.
      condition: of every image, for a model with a `condition_dim`.

    Returns:
      [batch] each: the estimates, and their effective sample sizes.

    Raises:
      ValueError: num_samples or chunk_size is less than 1, x does not have the model's shape, x
        has integers, which may be grey values, or the number of keys or of rows of the condition is
        not the number of images.

    Warns:
      UserWarning: the batch statistics are those of `init`; only outside `jit` is that known.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model, x = LadderVAE(4, (2,), (3,), batch_norm=False), jnp.eye(4)
      >>> keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
      >>> variables = jax.jit(model.init)(keys, x)
      >>> result = log_likelihood(model, variables, x, jax.random.key(2), num_samples=10)
      >>> result.log_likelihood.shape
      (4,)
    """
    rows = per_image(x, key, condition, model.data_dim)
    x, keys, condition = jax.tree.map(lambda array: split_examples(array, MESH_AXES), rows)
    images = x.shape[0]
    if chunk_size is None:
        chunk_size = default_chunk_size(model, images)
    check_whole(num_samples=num_samples, chunk_size=chunk_size)
    chunk_size = min(chunk_size, num_samples)
    encoded = model.apply(variables, x, method="encode", **given(condition))

    def log_weight(
        x: Array, encoded: Any, condition: Any, key: Key[Array, ""], sample: Array
    ) -> Array:
        x, encoded, condition = jax.tree.map(lambda a: a[None], (x, encoded, condition))
        rngs = {"sample": jax.random.fold_in(key, sample)}
        inferred = model.apply(variables, x, encoded, rngs=rngs, method="infer", **given(condition))
        # Float32 for float64 parameters, too.
        return bounds.log_weights(cast(Terms, inferred))[0, 0].astype(jnp.float32)

    # [samples, images]; samples beyond K, in the last chunk, have weight 0.
    over_images = jax.vmap(log_weight, (0, 0, 0, 0, None))
    over_samples = jax.vmap(over_images, (None, None, None, None, 0))

    def add_chunk(chunk: Array, sums: _RunningSums) -> _RunningSums:
        samples = chunk * chunk_size + jnp.arange(chunk_size)
        log_w = over_samples(x, encoded, condition, keys, samples)
        log_w = jnp.where((samples < num_samples)[:, None], log_w, -jnp.inf)
        largest = jnp.maximum(sums.largest, jnp.max(log_w, axis=0))
        scale = jnp.exp(sums.largest - largest)
        w = jnp.exp(log_w - largest[None])
        return _RunningSums(
            largest,
            sums.weights * scale + jnp.sum(w, axis=0),
            sums.squares * scale**2 + jnp.sum(w**2, axis=0),
        )

    zeros = jnp.zeros((images,), jnp.float32)
    # The least float, not -inf: a chunk whose weights are all zero must not give inf - inf.
    least = jnp.finfo(jnp.float32).min
    start = _RunningSums(jnp.full((images,), least, jnp.float32), zeros, zeros)
    chunks = -(-num_samples // chunk_size)
    sums = jax.lax.fori_loop(0, chunks, add_chunk, vary_alike(start, variables, *rows))
    return LogLikelihood(
        log_likelihood=sums.largest + jnp.log(sums.weights / num_samples),
        effective_sample_size=sums.weights**2 / sums.squares,
    )


@functools.cache
def log_likelihood_program() -> Callable[..., LogLikelihood]:
    """`log_likelihood` compiled with options for many images: faster on a CPU.

    JAX accepts compiler options only for a whole program, so do not call it within `jax.jit`.

    Returns:
      A function like `log_likelihood`, which also warns of the batch statistics of `init`.
    """
    options = compilation.compiler_options("likelihood")
    # Within `jit`, log_likelihood itself does not see the values of the batch statistics.
    return warns_of_values(
        jax.jit(log_likelihood, static_argnames=_LIKELIHOOD, compiler_options=options)
    )
