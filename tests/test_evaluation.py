"""Evaluation against exact evidence, quadrature, NumPy moments and plain loops over samples."""

import functools
import itertools
import zlib

import flax
import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.extend import core
from random_parameters import random_params
from scipy import integrate, special, stats
from tolerances import (
    assert_close,
    assert_different,
    assert_mean,
    assert_trees_within,
    assert_within,
    float32_error,
    size_of_log_weights,
    standard_error,
    threshold,
    value_and_error,
)

from lvae_jax import VAE, LadderVAE, evaluation, latents, training
from lvae_jax.data import binarisation
from lvae_jax.observations import BernoulliObservation

LINEAR = {VAE: lg.ONE_UNIT_LAYERS, LadderVAE: lg.LADDER}


def fold_in_name(key, name, step=0):
    """The key of a name and a step, as documented."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


def identity(key, images):
    return images


@functools.partial(jax.jit, static_argnames=("model", "num_samples"))
def terms_of(model, variables, x, key, num_samples=1):
    return model.apply(variables, x, num_samples=num_samples, rngs={"sample": key})


def np_normal_logpdf(z, p):
    return stats.norm.logpdf(np.float64(z), np.float64(p.mean), np.sqrt(np.float64(p.variance)))


def np_log_weights(terms):
    """log p(x, z) - log q(z | x) of terms in float64, [samples, batch]."""
    log_ratio = sum(
        (np_normal_logpdf(z, q) - np_normal_logpdf(z, p)).sum(-1)
        for z, q, p in zip(terms.z, terms.posterior, terms.prior, strict=True)
    )
    return np.float64(terms.log_px) - log_ratio


# log_likelihood against the exact evidence


@functools.cache
def linear(model_class):
    """A linear-Gaussian model whose inference is a little off, and its variables."""
    generative = LINEAR[model_class]
    inference = lg.worsened(lg.perfectly(generative, model_class))
    return lg.model_and_variables(model_class, generative, inference)


def independent_estimates(model_class, num_samples, repeats):
    """L_K of every image of `lg.X` from independent sets of samples, [repeats, images]."""
    model, variables = linear(model_class)
    x = jnp.float32(np.tile(lg.X, (repeats, 1)))
    result = evaluation.log_likelihood(
        model, variables, x, jax.random.key(1), num_samples=num_samples, chunk_size=50
    )
    return np.float64(result.log_likelihood).reshape(repeats, -1)


@pytest.mark.parametrize("model_class", [VAE, LadderVAE])
def test_log_likelihood_of_many_samples_is_the_evidence(model_class):
    estimates = independent_estimates(model_class, num_samples=1000, repeats=24)
    # exp(L_K), not L_K, is unbiased.
    relative = np.exp(estimates - lg.log_evidence(LINEAR[model_class], lg.X))
    assert np.all(standard_error(relative) < 0.02)
    assert_mean(relative, 1.0, rounding=float32_error(32, 20))


@pytest.mark.parametrize("model_class", [VAE, LadderVAE])
def test_log_likelihood_of_few_samples_is_below_the_evidence_and_rises(model_class):
    generative = LINEAR[model_class]
    inference = lg.worsened(lg.perfectly(generative, model_class))
    evidence = lg.log_evidence(generative, lg.X)
    one, five = (independent_estimates(model_class, k, repeats=8000) for k in (1, 5))
    assert_mean(one, lg.expected_elbo(model_class, generative, inference, lg.X), comparisons=12)
    # The differences are many times the threshold here.
    limit = threshold(comparisons=12)
    rise = five.mean(0) - one.mean(0)
    assert np.all(rise > limit * np.hypot(standard_error(one), standard_error(five)))
    assert np.all(five.mean(0) + limit * standard_error(five) < evidence)


def test_log_likelihood_of_a_non_linear_decoder_is_the_integral_over_z():
    model = LadderVAE(4, (1,), (3,), activation="tanh", batch_norm=False)
    params = random_params(model, seed=2, scale=0.9)
    # A posterior wider than the prior, so that no weight is large.
    head = params["inference"]["heads_0"]["Linear_0"]["Dense_0"]
    head.update(kernel=jnp.zeros_like(head["kernel"]), bias=jnp.float32([0.2, 1.0]))
    networks = jax.tree.map(np.float64, params["generative"])

    def logits(z):
        d = np.atleast_1d(z)
        for name in ("Linear_0", "Linear_1"):
            dense = networks["mlps_0"][name]["Dense_0"]
            d = np.tanh(d @ dense["kernel"] + dense["bias"])
        dense = networks["observation_head"]["Dense_0"]
        return d @ dense["kernel"] + dense["bias"]

    def joint(z, x):
        probability = special.expit(logits(z))
        return stats.norm.pdf(z) * stats.bernoulli.pmf(x, probability).prod()

    x = np.array(list(itertools.product((0, 1), repeat=4)))
    evidence, error = np.transpose(
        [integrate.quad(joint, -9, 9, args=(one,), limit=200) for one in x]
    )
    # Over all 16 images, up to quad's own estimate of its error.
    assert_within(evidence.sum(), 1, error.sum())
    assert np.all(error < 1e-6 * evidence)
    repeats = 24
    result = evaluation.log_likelihood(
        model,
        {"params": params},
        jnp.float32(np.tile(x, (repeats, 1))),
        jax.random.key(3),
        num_samples=1500,
        chunk_size=100,
    )
    estimates = np.float64(result.log_likelihood).reshape(repeats, 16)
    relative = np.exp(estimates - np.log(evidence))
    assert np.all(standard_error(relative) < 0.05)
    assert_mean(relative, 1.0)


# log_likelihood against a loop

LOOPED = 16
"""Roundings of a log weight of the models here and of what it is made of.

Twice that of the loop over the images' samples, which is of float32 programs too.
"""


@functools.cache
def looped():
    """A model, images, a key; log weights and their sizes of 23 samples, one by one, in float64."""
    model = LadderVAE(5, (2, 1), (4, 3), batch_norm=False)
    variables = {"params": random_params(model, seed=4)}
    x = jnp.float32(np.random.default_rng(5).random((3, 5)) > 0.5)
    key = jax.random.key(6)
    log_weights, sizes = np.empty((2, 23, 3))
    for image, sample in itertools.product(range(3), range(23)):
        sample_key = jax.random.fold_in(jax.random.fold_in(key, image), sample)
        terms = terms_of(model, variables, x[image : image + 1], sample_key)
        log_weights[sample, image] = np_log_weights(terms)[0, 0]
        sizes[sample, image] = size_of_log_weights(terms)[0, 0]
    return model, variables, x, key, log_weights, sizes


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_log_likelihood_of_any_chunk_size_is_that_of_a_loop_over_the_documented_keys(chunk_size):
    model, variables, x, key, log_weights, sizes = looped()
    result = evaluation.log_likelihood(model, variables, x, key, 23, chunk_size)
    expected = special.logsumexp(log_weights, axis=0) - np.log(23)
    # Its error is the mean error of the log weights, weighted by the weights.
    size = np.sum(special.softmax(log_weights, axis=0) * sizes, axis=0)
    assert_close(result.log_likelihood, expected, LOOPED, size)
    weights = np.exp(log_weights)
    effective = weights.sum(0) ** 2 / (weights**2).sum(0)
    assert np.all((effective > 1.5) & (effective < 22))
    # Weights have the errors of their logarithms; they enter a size squared.
    size = sizes.max(0) * effective
    assert_close(result.effective_sample_size, effective, 4 * LOOPED, size)


def largest_size(model, variables, x, num_samples=20):
    """Of the log weights of a few samples, in nats."""
    return size_of_log_weights(terms_of(model, variables, x, jax.random.key(0), num_samples)).max()


def assert_same_estimates(one, other, size):
    """Estimates and sample sizes of two programs, whose log weights have a size."""
    assert_close(one[0], other[0], LOOPED, size)
    assert_close(one[1], other[1], 4 * LOOPED, size * np.float64(other[1]))


def test_estimate_of_an_image_depends_on_its_key_and_not_on_its_company():
    model, variables, x, key, _, sizes = looped()
    same = functools.partial(assert_same_estimates, size=sizes.max())
    together = evaluation.log_likelihood(model, variables, x, key, 23, 7)
    keys = jnp.stack([jax.random.fold_in(key, image) for image in range(3)])
    with_keys = evaluation.log_likelihood(model, variables, x, keys, 23, 7)
    backwards = evaluation.log_likelihood(model, variables, x[::-1], keys[::-1], 23, 7)
    for image in range(3):
        row = slice(image, image + 1)
        alone = evaluation.log_likelihood(model, variables, x[row], keys[row], 23, 7)
        same([field[row] for field in together], alone)
    same(together, with_keys)
    same(together, [field[::-1] for field in backwards])


def test_estimates_of_other_keys_are_independent():
    model, variables, x, key, *_ = looped()
    same_image = jnp.repeat(x[:1], 3, axis=0)
    result = evaluation.log_likelihood(model, variables, same_image, key, 23, 7)
    assert len(np.unique(result.log_likelihood)) == 3


class Device:
    """Stands in for a device that says how much memory it has."""

    def __init__(self, memory, in_use):
        self.stats = {"bytes_limit": memory, "bytes_in_use": in_use}

    def memory_stats(self):
        return self.stats


@pytest.mark.parametrize(
    ("backend", "memory", "images", "expected"),
    [
        # 4 (16 + 2 * 8 + 4) = 144 floats are 576 bytes a sample, of a quarter of the memory.
        ("cpu", 2**40, 250, 10),
        ("gpu", 2**40, 250, 100),
        ("gpu", 4 * 576 * 600, 200, 3),
        ("cpu", 4 * 576 * 600, 200, 3),
        ("gpu", 0, 250, 1),
        ("cpu", 2**40, 10_000, 1),
    ],
)
def test_default_chunk_size_fits_the_device_and_is_the_same_at_every_start(
    monkeypatch, backend, memory, images, expected
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = LadderVAE(16, (3, 1), (6, 2))
    for in_use in (0, memory // 2):
        monkeypatch.setattr(jax, "local_devices", lambda in_use=in_use: [Device(memory, in_use)])
        assert evaluation.default_chunk_size(model, images) == expected


def test_default_chunk_size_of_a_device_that_is_absent():
    model = LadderVAE(16, (3, 1), (6, 2))
    given = [("cpu", 2**40), ("tpu", 2**40), ("tpu", 4 * 576 * 600)]
    assert [evaluation.default_chunk_size(model, 200, *device) for device in given] == [12, 125, 3]


def test_log_likelihood_chooses_its_chunk_size_where_none_is_given():
    model = VAE(4, (2,), ((3,),), batch_norm=False)
    x = jnp.zeros((3, 4))
    variables = {"params": random_params(model)}
    one, other = (
        evaluation.log_likelihood(model, variables, x, jax.random.key(2), 9, chunk_size)
        for chunk_size in (None, 4)
    )
    assert_same_estimates(one, other, largest_size(model, variables, x))


@pytest.mark.parametrize(
    ("num_samples", "chunk_size", "named"),
    [
        (0, 100, "num_samples=0"),
        (-1, 1, "num_samples=-1"),
        (5e3, 1, "num_samples=5000.0"),
        (10, 0, "chunk_size=0"),
        (10, 2.5, "chunk_size=2.5"),
    ],
)
def test_log_likelihood_needs_a_sample(num_samples, chunk_size, named):
    model, variables, x, key, *_ = looped()
    with pytest.raises(ValueError, match=f"^{named}; give a whole number of at least 1"):
        evaluation.log_likelihood(model, variables, x, key, num_samples, chunk_size)


def far_off(offset):
    """A model of data within 0.01 of `offset`, all its images at zero; samples differ a little."""
    decoder = lg.LADDER[0]._replace(offset=np.full(3, offset), variance=np.full(3, 1e-4))
    inference = lg.exact_likelihoods(lg.LADDER[:1])
    return lg.model_and_variables(VAE, (decoder,), inference)


def test_log_weights_of_any_size_give_a_finite_estimate():
    model, variables = far_off(1e6)  # log weights of about -1e16, far apart
    key, x = jax.random.key(7), jnp.zeros((2, 3), jnp.float32)
    result = evaluation.log_likelihood(model, variables, x, key, 30, 7)
    largest = [
        max(
            np_log_weights(
                terms_of(
                    model,
                    variables,
                    x[:1],
                    jax.random.fold_in(jax.random.fold_in(key, image), sample),
                )
            )[0, 0]
            for sample in range(30)
        )
        for image in range(2)
    ]
    assert max(largest) < -1e15
    # One pixel's deviation of 1e6 squared, over 1e-4: three pixels, each with a few roundings.
    assert_close(result.log_likelihood, largest, roundings=32)
    assert np.all((result.effective_sample_size >= 1) & (result.effective_sample_size <= 30))


def test_weights_too_small_for_a_float_are_zeros():
    model, variables = far_off(1e30)
    x = jnp.zeros((2, 3), jnp.float32)
    result = evaluation.log_likelihood(model, variables, x, jax.random.key(7), 30, 7)
    np.testing.assert_array_equal(result.log_likelihood, -np.inf)


def test_memory_of_the_log_likelihood_depends_on_the_chunk_and_not_on_the_samples():
    model, variables, x, key, *_ = looped()

    def temporary_bytes(num_samples, chunk_size):
        lowered = evaluation.log_likelihood.lower(model, variables, x, key, num_samples, chunk_size)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(100, 50), temporary_bytes(5000, 50)
    # The index of the last chunk is all that may differ.
    assert abs(many - few) <= 64
    assert temporary_bytes(5000, 500) > 5 * many


def products_with(jaxpr, weight_shape, in_loop=False):
    """(shape of the left factor, inside a loop?) of all products with such a right factor."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (v.aval.shape for v in equation.invars)
            if right == weight_shape:
                found.append((left, in_loop))
        looping = in_loop or equation.primitive.name in ("scan", "while")
        for inner in core.jaxprs_in_params(equation.params):
            found += products_with(inner, weight_shape, looping)
    return found


@pytest.mark.parametrize("model_class", [VAE, LadderVAE])
def test_an_image_is_encoded_once_whatever_the_number_of_samples(model_class):
    model = model_class(11, (2, 1), (7, 3), batch_norm=False)
    variables = {"params": random_params(model)}
    x = jnp.zeros((4, 11), jnp.float32)
    jaxpr = jax.make_jaxpr(
        functools.partial(evaluation.log_likelihood, model, num_samples=20, chunk_size=5)
    )(variables, x, jax.random.key(0))
    assert products_with(jaxpr.jaxpr, weight_shape=(11, 7)) == [((4, 11), False)]
    # The decoder, in contrast, is applied to every sample: within the loop over chunks.
    decoded = products_with(jaxpr.jaxpr, weight_shape=(7, 11))
    assert [(shape[:2], in_loop) for shape, in_loop in decoded] == [((5, 4), True)]


# Batch-norm statistics


@functools.cache
def reestimated(n, batch_size, seed=8):
    """A ladder with batch norm, its training images, and its re-estimated variables."""
    model = LadderVAE(5, (2, 1), ((4,), (3,)))
    params = random_params(model, seed=9)
    images = np.float32(np.random.default_rng(10).standard_normal((n, 5)))
    variables = evaluation.reestimate_batch_stats(
        model, params, identity, jnp.asarray(images), jax.random.key(seed), batch_size=batch_size
    )
    return model, params, np.float64(images), variables


def moments_of(variables, *path):
    return functools.reduce(lambda tree, name: tree[name], path, variables["batch_stats"])[
        "BatchNorm_0"
    ]


def assert_moments_of_products(moments, x, kernel):
    """Mean and variance of x @ kernel over the rows of x."""

    def by_hand(x, kernel):
        y = x @ kernel
        return {"mean": y.mean(0), "variance": y.var(0)}

    expected, errors = value_and_error(by_hand, x, kernel, roundings=8)
    for name, value in expected.items():
        assert_within(moments[name], value, errors[name])


def test_statistics_of_the_first_layer_are_the_moments_of_the_training_set():
    _, params, images, variables = reestimated(n=24, batch_size=8)
    kernel = params["inference"]["mlps_0"]["Linear_0"]["Dense_0"]["kernel"]
    moments = moments_of(variables, "inference", "mlps_0", "Linear_0")
    assert_moments_of_products(moments, images, kernel)


def test_statistics_of_all_layers_are_those_of_full_batches_in_training_mode():
    _, params, images, variables = reestimated(n=27, batch_size=8)
    order = jax.random.permutation(fold_in_name(jax.random.key(8), "shuffle"), 27)

    def by_hand(params, images):
        """Batch norm of each batch by its own moments; the moments of all batches' inputs."""
        collected = {}

        def linear(y, network, name):
            layer = params["inference"][network][name]
            y = y @ layer["Dense_0"]["kernel"]
            collected.setdefault((network, name), []).append(y)
            y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
            return y * layer["BatchNorm_0"]["scale"] + layer["BatchNorm_0"]["shift"]

        for rows in np.asarray(order)[:24].reshape(3, 8):
            d = images[rows]
            for network, head in (("mlps_0", "heads_0"), ("mlps_1", "heads_1")):
                y = linear(d, network, "Linear_0")
                d = np.where(y > 0, y, 0.1 * y)
                linear(d, head, "Linear_0")
        together = {path: np.concatenate(batches) for path, batches in collected.items()}
        return {path: {"mean": y.mean(0), "variance": y.var(0)} for path, y in together.items()}

    expected, errors = value_and_error(by_hand, params, images, roundings=24)
    assert len(expected) == 4
    for (network, name), by_name in expected.items():
        moments = moments_of(variables, "inference", network, name)
        for moment, value in by_name.items():
            assert_within(moments[moment], value, errors[network, name][moment])


def test_statistics_are_deterministic_for_a_key_and_cover_every_layer():
    model, params, images, variables = reestimated(n=24, batch_size=8)
    again, other = (
        evaluation.reestimate_batch_stats(
            model, params, identity, jnp.float32(images), jax.random.key(seed), batch_size=8
        )
        for seed in (8, 11)
    )
    for one, same in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, same)
    sampled = ("generative", "mlps_0", "Linear_0")
    assert np.all(moments_of(variables, *sampled)["mean"] != moments_of(other, *sampled)["mean"])
    key = jax.random.key(0)
    like = jax.eval_shape(model.init, {"params": key, "sample": key}, jnp.float32(images))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, like)


def test_a_batch_larger_than_the_training_set_is_the_training_set():
    _, params, images, variables = reestimated(n=6, batch_size=100)
    kernel = params["inference"]["mlps_0"]["Linear_0"]["Dense_0"]["kernel"]
    moments = moments_of(variables, "inference", "mlps_0", "Linear_0")
    assert_moments_of_products(moments, images, kernel)


def test_preprocessing_of_every_batch_has_a_key_of_its_own():
    model = LadderVAE(5, (1,), ((2,),))
    params = random_params(model)

    def noise_alone(key, images):
        return jax.random.normal(key, (len(images), 5), jnp.float32)

    key = jax.random.key(12)
    variables = evaluation.reestimate_batch_stats(
        model, params, noise_alone, jnp.zeros((12, 1)), key, batch_size=4
    )
    x = np.concatenate(
        [noise_alone(fold_in_name(key, "preprocess", batch), range(4)) for batch in range(3)]
    )
    kernel = params["inference"]["mlps_0"]["Linear_0"]["Dense_0"]["kernel"]
    moments = moments_of(variables, "inference", "mlps_0", "Linear_0")
    assert_moments_of_products(moments, x, kernel)


def test_a_model_without_batch_norm_has_no_statistics():
    model, variables, x, key, *_ = looped()
    result = evaluation.reestimate_batch_stats(
        model, variables["params"], identity, x, key, batch_size=2
    )
    assert result.keys() == {"params"}
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rounding_is_not_amplified_where_all_training_images_are_the_same():
    model = LadderVAE(5, (2, 2), (6, 6))
    params = random_params(model)
    images = jnp.full((8, 5), 0.7)
    variables = evaluation.reestimate_batch_stats(
        model, params, identity, images, jax.random.key(0), batch_size=4
    )
    encode = jax.jit(functools.partial(model.apply, method="encode"))
    likelihoods, rounded = (encode(variables, x) for x in (images, images * (1 + 2**-22)))
    # Not 316 times as much in each of six layers: at most a few roundings in each.
    for one, other in zip(jax.tree.leaves(likelihoods), jax.tree.leaves(rounded), strict=True):
        assert_close(one, other, roundings=6 * 8)


def test_with_statistics_an_image_is_evaluated_alone_as_among_others():
    model, _, images, variables = reestimated(n=24, batch_size=8)
    x = jnp.float32(images[:3] > 0)
    keys = jax.random.split(jax.random.key(13), 3)
    together = evaluation.log_likelihood(model, variables, x, keys, 20, 6)
    size = largest_size(model, variables, x)
    for image in range(3):
        row = slice(image, image + 1)
        alone = evaluation.log_likelihood(model, variables, x[row], keys[row], 20, 6)
        assert_same_estimates([field[row] for field in together], alone, size)


# The ELBO of a data set

IMAGES = np.random.default_rng(14).integers(0, 256, (10, 5), np.uint8)
SAMPLES = 4


@functools.cache
def elbo(batch_size):
    model, _, _, variables = reestimated(n=24, batch_size=8)
    return evaluation.elbo(
        model,
        variables,
        binarisation.binarise,
        jnp.asarray(IMAGES),
        jax.random.key(15),
        num_samples=SAMPLES,
        batch_size=batch_size,
    )


@functools.cache
def elbo_looped():
    """ELBO, log p(x | z), KL per unit, posterior means of every image, in float64, by a loop.

    And the size of what the ELBO adds up.
    """
    model, _, _, variables = reestimated(n=24, batch_size=8)
    elbos, log_px, kl_per_unit, means, sizes = [], [], [], [], []
    for index, image in enumerate(IMAGES):
        key = jax.random.fold_in(jax.random.key(15), index)
        x = binarisation.binarise(fold_in_name(key, "preprocess"), image[None])
        terms = terms_of(model, variables, x, fold_in_name(key, "sample"), SAMPLES)
        kl = []
        for q, p in zip(terms.posterior, terms.prior, strict=True):
            (m_q, v_q), (m_p, v_p) = (jax.tree.map(np.float64, tuple(g)) for g in (q, p))
            kl.append(0.5 * (v_q / v_p + (m_q - m_p) ** 2 / v_p - 1 + np.log(v_p / v_q)))
        log_px.append(np.float64(terms.log_px).mean())
        kl_per_unit.append([one.mean((0, 1)) for one in kl])
        elbos.append(log_px[-1] - sum(one.sum() for one in kl_per_unit[-1]))
        means.append([np.float64(q.mean[:, 0]) for q in terms.posterior])
        sizes.append(size_of_log_weights(terms).mean())
    return np.array(elbos), np.array(log_px), kl_per_unit, means, np.mean(sizes)


@pytest.mark.parametrize("batch_size", [1, 4, 250])
def test_elbo_of_any_batch_size_is_that_of_a_loop_over_the_images(batch_size):
    result = elbo(batch_size)
    elbos, log_px, kl_per_unit, _, size = elbo_looped()
    # The loop is over float32 terms: both have the roundings of a log weight, and of the mean.
    assert_close(result.elbo, elbos.mean(), LOOPED, size)
    assert_close(result.log_px, log_px.mean(), LOOPED, size)
    for actual, *by_image in zip(result.kl_per_unit, *kl_per_unit, strict=True):
        expected = np.mean(by_image, axis=0)
        assert_close(actual, expected, LOOPED, size=1 + 2 * expected)


def test_elbo_finds_the_units_whose_mean_moves_with_the_image():
    *_, means, _ = elbo_looped()
    for actual, *by_image in zip(elbo(4).active, *means, strict=True):
        # Samples 0 and 1, and 2 and 3, are independent pairs.
        centred = np.array(by_image) - np.mean(by_image, axis=0)
        one, other = centred[:, 0::2], centred[:, 1::2]
        np.testing.assert_array_equal(actual, (one * other).mean((0, 1)) > 0.01)


def np_means(spread, noise, images=400, samples=2):
    """Posterior means of one unit: of variance spread^2 over the images, plus noise a sample."""
    rng = np.random.default_rng(16)
    data = rng.standard_normal(images)
    data = spread * (data - data.mean()) / data.std()
    return data + noise * rng.standard_normal((samples, images))


def test_units_are_active_if_their_mean_varies_with_the_data_and_not_with_the_samples():
    units = {
        "above the threshold": (np_means(spread=0.12, noise=0.0), True),
        "below the threshold": (np_means(spread=0.09, noise=0.0), False),
        "active under noise": (np_means(spread=0.5, noise=1.0), True),
        # The covariance of independent noise is about 1 / sqrt(images) = 0.0016 here.
        "noise of the samples": (np_means(0.0, noise=1.0, images=400_000), False),
        "constant": (np.full((2, 400), 3.0), False),
    }
    for name, (means, expected) in units.items():
        assert evaluation.active_units(jnp.float32(means[..., None])).tolist() == [expected], name
    # One sample's variance would call the noise active.
    assert units["noise of the samples"][0].var(axis=1).min() > 0.01


def test_active_units_average_over_pairs_of_samples():
    means = np.random.default_rng(17).standard_normal((6, 7, 5)) * np.array([0.1, 0.3, 1, 2, 3])
    covariances = [
        [np.cov(means[s, :, u], means[s + 1, :, u], bias=True)[0, 1] for s in (0, 2, 4)]
        for u in range(5)
    ]
    expected = np.mean(covariances, axis=1) > 0.01
    assert set(expected) == {True, False}
    np.testing.assert_array_equal(evaluation.active_units(jnp.float32(means)), expected)


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_active_units_need_pairs_of_samples(samples):
    message = f"{samples} samples per image; give an even number, for pairs"
    with pytest.raises(ValueError, match=message):
        evaluation.active_units(jnp.zeros((samples, 7, 5), jnp.float32))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_images_are_mapped_in_order_whatever_the_batch_size(batch_size):
    values = np.arange(14.0, dtype=np.float32).reshape(7, 2)

    def of_image(index, row):
        return row**2, jnp.sum(row) + index

    mapped = jax.jit(functools.partial(evaluation.map_images, of_image, batch_size))
    squares, sums = mapped(np.arange(7, dtype=np.float32), values)
    np.testing.assert_array_equal(squares, values**2)
    np.testing.assert_array_equal(sums, values.sum(1) + np.arange(7))


# Models, keys, conditions and statistics of other people


SMALL = LadderVAE(4, (2,), ((3,),), batch_norm=False)
X = jnp.float32(np.random.default_rng(40).random((6, 4)) > 0.5)


@functools.cache
def small_variables():
    return {"params": random_params(SMALL)}


def small_log_likelihood(key, chunk_size=5, x=X):
    return evaluation.log_likelihood(
        SMALL, small_variables(), x, key, num_samples=20, chunk_size=chunk_size
    ).log_likelihood


def test_old_style_keys_give_what_typed_ones_do():
    one, other = (small_log_likelihood(key(3)) for key in (jax.random.key, jax.random.PRNGKey))
    np.testing.assert_array_equal(one, other)
    keys = jax.random.split(jax.random.PRNGKey(3), 6)
    np.testing.assert_array_equal(
        small_log_likelihood(keys), small_log_likelihood(jax.random.wrap_key_data(keys))
    )
    elbos = [
        evaluation.elbo(SMALL, small_variables(), identity, X, key(3)).elbo
        for key in (jax.random.key, jax.random.PRNGKey)
    ]
    np.testing.assert_array_equal(*elbos)


def test_another_number_of_keys_than_of_images_is_refused():
    for several in (jax.random.split(jax.random.key(3), 5), jax.random.split(jax.random.key(3), 1)):
        message = rf"key has shape \[{len(several)}\] and there are 6 images; give one key, or one"
        with pytest.raises(ValueError, match=message):
            small_log_likelihood(several)


def test_no_result_depends_on_the_chunk_whatever_the_generator():
    key = jax.random.key(3, impl="rbg")
    size = largest_size(SMALL, small_variables(), X)
    one, other = (small_log_likelihood(key, chunk_size) for chunk_size in (3, 20))
    assert_close(one, other, LOOPED, size)
    of_another_key = small_log_likelihood(jax.random.key(4, impl="rbg"), 3)
    assert_different(one, of_another_key, float32_error(LOOPED, size))
    one, other = (
        evaluation.elbo(SMALL, small_variables(), identity, X, key, batch_size=n).elbo
        for n in (2, 6)
    )
    assert_close(one, other, LOOPED, size)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_integers_are_refused_and_booleans_are_converted(dtype):
    with pytest.raises(ValueError, match=r"x has dtype .*: give grey values as x / 255"):
        small_log_likelihood(jax.random.key(0), x=X.astype(dtype))
    np.testing.assert_array_equal(
        small_log_likelihood(jax.random.key(0), x=X.astype(bool)),
        small_log_likelihood(jax.random.key(0)),
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [(X[0], "give x\\[None\\]"), (X[:, :1], "data_dim=4"), (X.reshape(6, 2, 2), "flatten")],
)
def test_an_x_of_another_shape_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        small_log_likelihood(jax.random.key(0), x=x)


def test_sizes_that_make_no_batch_are_refused():
    variables, key = small_variables(), jax.random.key(0)
    for images, batch_size, message in (
        (X, 0, "batch_size=0; give a whole number of at least 1"),
        (X, 2.0, "batch_size=2.0; give a whole number of at least 1"),
        (X[:0], 2, "0 images; give at least 1"),
    ):
        for function, given in (
            (evaluation.elbo, variables),
            (evaluation.reestimate_batch_stats, variables["params"]),
        ):
            with pytest.raises(ValueError, match=f"^{message}"):
                function(SMALL, given, identity, images, key, batch_size=batch_size)
    with pytest.raises(ValueError, match="batch_size=0; give a whole number of at least 1"):
        evaluation.map_images(lambda image: image, 0, X)


def test_initial_batch_statistics_are_warned_of():
    model = LadderVAE(4, (3,), ((5,),))
    keys, key = {"params": jax.random.key(0), "sample": jax.random.key(1)}, jax.random.key(2)
    initial = jax.jit(model.init)(keys, X)
    program = evaluation.log_likelihood_program()
    assert program.lower(model, initial, X, key, num_samples=3).as_text()
    for evaluate in (
        lambda v: evaluation.log_likelihood(model, v, X, key, num_samples=3),
        lambda v: program(model, v, X, key, num_samples=3),
        lambda v: evaluation.elbo(model, v, identity, X, key),
    ):
        with pytest.warns(UserWarning, match="zeros and ones of init.*give .*reestimate_batch"):
            evaluate(initial)
        evaluate(
            evaluation.reestimate_batch_stats(
                model, initial["params"], identity, X, key, batch_size=6
            )
        )


@pytest.mark.parametrize("part", ["no statistics", "bare parameters", "a state"])
def test_what_lacks_a_part_of_the_variables_is_refused(part):
    model = LadderVAE(4, (2,), (3,))
    state = training.init_state(model, training.make_optimizer(), jax.random.key(0))
    given = {"no statistics": {"params": state.params}, "bare parameters": state.params}
    with pytest.raises(ValueError, match="variables lack parameters or batch statistics; give"):
        evaluation.log_likelihood(model, given.get(part, state), X, jax.random.key(1), 3)


def test_variables_may_be_any_mapping():
    variables, key = small_variables(), jax.random.key(1)
    expected = evaluation.log_likelihood(SMALL, variables, X, key, 3)
    found = evaluation.log_likelihood(SMALL, flax.core.freeze(variables), X, key, 3)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_values_that_are_no_probabilities_are_warned_of_before_a_bernoulli_takes_them():
    variables, key = small_variables(), jax.random.key(2)
    grey = 255 * X
    message = (
        "x has values from 0 to 255, and a Bernoulli observation takes values from 0 to 1; give "
        "grey values divided by 255"
    )
    for x in (grey, np.asarray(grey)):
        with pytest.warns(UserWarning, match=message):
            evaluation.log_likelihood(
                SMALL.clone(observation=BernoulliObservation()), variables, x, key, num_samples=3
            )
        for evaluate in (
            functools.partial(evaluation.log_likelihood, num_samples=3),
            functools.partial(evaluation.log_likelihood_program(), num_samples=3),
            functools.partial(latents.encode, key=key),
        ):
            given = () if evaluate.func is latents.encode else (key,)
            with pytest.warns(UserWarning, match=message):
                evaluate(SMALL, variables, x, *given)
    # Not within jit, where no value is known; not of a Gaussian; not of what is not observed.
    jax.jit(lambda x: evaluation.log_likelihood(SMALL, variables, x, key, 3))(grey)
    gaussian = LadderVAE(4, (2,), (3,), observation="gaussian", batch_norm=False)
    evaluation.log_likelihood(gaussian, {"params": random_params(gaussian)}, grey, key, 3)
    effort = evaluation.Conditioning(num_samples=4, chains=2, steps=1, rounds=1)
    evaluation.impute(SMALL, variables, grey, grey < 200, X[0], key, num_draws=1, effort=effort)


def test_conditions_are_given_to_the_model_image_by_image():
    """The statistics and the likelihood of a conditional model, by a loop over images."""
    model = LadderVAE(4, (2,), ((3,),), condition_dim=2)
    params, key = random_params(model), jax.random.key(5)
    x, y = np.asarray(X), np.random.default_rng(41).standard_normal((6, 2)).astype(np.float32)
    variables = evaluation.reestimate_batch_stats(
        model, params, identity, X, key, batch_size=6, condition=jnp.asarray(y)
    )
    order = np.asarray(jax.random.permutation(fold_in_name(key, "shuffle"), 6))
    apply = jax.jit(model.apply, static_argnames=("train", "mutable"))

    def statistics(params):
        _, updated = apply(
            {"params": jax.tree.map(jnp.float32, params)}, x[order], train=True,
            condition=y[order], rngs={"sample": fold_in_name(key, "sample")}, mutable="batch_stats",
        )  # fmt: skip
        return updated["batch_stats"]

    expected, error = value_and_error(statistics, params, roundings=24)  # as for the others above
    assert_trees_within(variables["batch_stats"], expected, error)
    actual = evaluation.log_likelihood(
        model, variables, X, key, num_samples=2, condition=jnp.asarray(y)
    )

    def log_likelihoods(variables):
        variables = jax.tree.map(jnp.float32, variables)
        log_w = np.empty((2, 6))
        for sample, image in np.ndindex(log_w.shape):
            of_sample = jax.random.fold_in(jax.random.fold_in(key, image), sample)
            row = slice(image, image + 1)
            terms = apply(variables, x[row], condition=y[row], rngs={"sample": of_sample})
            log_w[sample, image] = np_log_weights(terms).item()
        return special.logsumexp(log_w, axis=0) - np.log(2)

    expected, error = value_and_error(log_likelihoods, variables, roundings=8)
    assert_within(actual.log_likelihood, expected, error)
    one, other = (
        evaluation.elbo(model, variables, identity, X, key, condition=jnp.asarray(condition)).elbo
        for condition in (y, -y)
    )
    assert np.isfinite(one)
    assert float(one) != float(other)


class Wrapped(nn.Module):
    """Somebody's own module around a ladder, with what `models.Model` lists and no more."""

    ladder: LadderVAE

    data_dim = property(lambda self: self.ladder.data_dim)
    depth = property(lambda self: self.ladder.depth)

    def __call__(self, x, num_samples=1, train=False):
        return self.ladder(x, num_samples, train)

    def encode(self, x, train=False):
        return self.ladder.encode(x, train)

    def infer(self, x, encoded, num_samples=1, train=False):
        return self.ladder.infer(x, encoded, num_samples, train)


def test_a_composite_model_is_trained_and_evaluated_as_its_ladder():
    ladder = LadderVAE(4, (3, 2), ((5,), (4,)))
    model, key, optimizer = Wrapped(ladder), jax.random.key(6), optax.sgd(0.01)
    state = jax.eval_shape(functools.partial(training.init_state, model, optimizer), key)
    epoch = functools.partial(training.train_epoch, model, optimizer, identity, batch_size=3)
    trained, metrics = jax.eval_shape(epoch, state, X, key)
    assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, state)
    assert metrics.kl_per_layer.shape == (ladder.depth,)
    params = random_params(model)
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, params)
    variables = evaluation.reestimate_batch_stats(model, params, identity, X, key, batch_size=3)
    assert set(variables) == {"params", "batch_stats"}
    of_ladder = {collection: tree["ladder"] for collection, tree in variables.items()}
    encoded, expected = (
        jax.jit(functools.partial(one.apply, method="encode"))(its, X)
        for one, its in ((model, variables), (ladder, of_ladder))
    )
    assert_trees_within(encoded, expected, error=0)
    # Flax derives a module's key, so its noise, from its path: log weights are the ladder's up to
    # chance.
    draws = 1000
    found, expected = (
        evaluation.log_likelihood(one, its, jnp.tile(X, (draws, 1)), key, num_samples=1)
        for one, its in ((model, variables), (ladder, of_ladder))
    )
    found, expected = (
        np.float64(result.log_likelihood).reshape(draws, -1) for result in (found, expected)
    )
    limit = threshold(len(X), draws - 1) * np.hypot(standard_error(found), standard_error(expected))
    assert_within(found.mean(0), expected.mean(0), limit)
    elbo = jax.eval_shape(
        lambda x: evaluation.elbo(model, variables, identity, x, key).kl_per_unit, X
    )
    assert [layer.shape for layer in elbo] == [(3,), (2,)]


def test_batch_norm_of_others_is_refused_by_name():
    class Others(nn.Module):
        @nn.compact
        def __call__(self, y, train):
            return nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(y))

    model = LadderVAE(4, (3,), (5,), mlp=lambda i, d: Others() if (i, d) == (1, "up") else None)
    with pytest.raises(ValueError, match=r"batch_stats/inference/mlps_0/BatchNorm_0 holds no mean"):
        evaluation.reestimate_batch_stats(
            model, random_params(model), identity, X, jax.random.key(0), batch_size=6
        )
