"""What a model draws for its figures."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_params
from scipy import stats
from small_runs import SMALL
from tolerances import FALSE_ALARM, assert_plausible, assert_within, float32_error

from experiments.run import draws
from experiments.run.setup import make_experiment
from lvae_jax import VAE, LadderVAE
from lvae_jax.data import Dataset
from lvae_jax.models import HierarchicalVAE


@pytest.mark.parametrize("layer", [None, 1])
def test_a_run_draws_its_test_images_in_whole_rows_and_one_of_each_label(layer, monkeypatch):
    rng = np.random.default_rng(3)
    images, labels = rng.random((25, 3, 2), np.float32), np.int32([2, 1, 1, 0, *[2] * 21])
    dataset = Dataset("tiny", images, labels, images, labels, "bernoulli", "dynamic")
    settings = dataclasses.replace(SMALL, batch_size=5, batch_norm=False, replicas=2)
    experiment = make_experiment(settings, dataset)
    variables = {"params": random_params(experiment.model)}
    found = draws.draw(experiment, variables, layer)
    x = experiment.test_x
    np.testing.assert_array_equal(found.images, x[:20])
    np.testing.assert_array_equal(found.first_images, x[[3, 1, 0, 2, *range(4, 10)]])
    np.testing.assert_array_equal(found.labels, labels)
    assert found.image_shape == (3, 2)
    assert found.layer == (layer or 2)
    assert found.reconstructions.shape == (20, 6)
    assert found.known.shape == (2, 2, 10, 6)
    assert [z.shape for z in found.z] == [(25, 4), (25, 2)]
    monkeypatch.setattr(draws, "ENCODED", 15)
    few = draws.draw(experiment, variables, layer)
    assert [z.shape for z in few.z] == [(15, 4), (15, 2)]
    np.testing.assert_array_equal(few.labels, labels[:15])
    # The draws are those of this key, whatever else is drawn.
    first = x[[3, 1, 0, 2, *range(4, 10)]]
    key = experiment.key(0, "figures")
    expected = drawn_by(experiment.model, variables, x, first, found.layer, key)
    np.testing.assert_array_equal(found.interpolations, expected.interpolations)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0, 2, 1, 0, 1], [1, 3, 0, 2, 4, 5]),  # fewer images than ten: all of them
        ([3] * 12, list(range(10))),
        ([-1] * 25, list(range(10))),  # unlabelled
        ([-1, 3, 3, -1, 5, -1], [1, 4, 0, 2, 3, 5]),
        ([*range(12, -1, -1)], [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]),  # more classes than ten
        ([1] * 11 + [0], [11, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([5], [0]),
    ],
)
def test_one_of_each_label_is_shown_and_others_fill_up_to_ten(labels, expected):
    assert draws.one_of_each(np.array(labels)).tolist() == expected


LADDER = LadderVAE(
    data_dim=6,
    latent_sizes=(3, 2, 2),
    hidden_sizes=(8, 6, 5),
    batch_norm=False,
    variance_floor=1e-12,
)
KEY = jax.random.key(5)
IMAGES = np.random.default_rng(0).integers(0, 2, (500, 6)).astype(np.float32)
A, B = np.zeros(6, np.float32), np.ones(6, np.float32)
FIRST = np.tile([A, B], (150, 1))
RECONSTRUCTED = 30


def certain_at_the_top(model: LadderVAE) -> dict:
    """Random parameters, but z_L is its posterior's mean: the variance there is next to nothing."""
    params = random_params(model)
    units = model.latent_sizes[-1]
    head = params["inference"][f"heads_{model.depth - 1}"]["Linear_0"]["Dense_0"]
    head["kernel"] = head["kernel"].at[:, units:].set(0.0)
    head["bias"] = head["bias"].at[units:].set(-60.0)
    return {"params": params}


def drawn_by(model: HierarchicalVAE, variables: dict, x, first, layer: int, key=KEY, **kwargs):
    found = draws.draw_images(model, variables, x, first, key, layer, RECONSTRUCTED, **kwargs)
    return SimpleNamespace(**jax.tree.map(np.asarray, found))


def drawn(first: np.ndarray, key: jax.Array = KEY) -> SimpleNamespace:
    return drawn_by(LADDER, certain_at_the_top(LADDER), IMAGES, first, 3, key)


@pytest.fixture(scope="module")
def of_ladder() -> SimpleNamespace:
    return drawn(FIRST)


@pytest.fixture(scope="module")
def generated() -> dict[str, np.ndarray]:
    """A thousand images for the top layer of A, of B, and of the prior, with noise of their own."""
    variables = certain_at_the_top(LADDER)
    encode = jax.jit(LADDER.apply, static_argnames="method")
    *_, top = encode(variables, np.stack([A, B]), method="encode")
    prior = jax.random.normal(jax.random.key(1), (1000, 2))
    generate = jax.jit(
        lambda z: LADDER.apply(variables, z, method="generate", rngs={"sample": jax.random.key(2)})
    )
    sources = {"A": jnp.tile(top.mean[:1], (1000, 1)), "B": jnp.tile(top.mean[1:], (1000, 1))}
    return {name: np.asarray(generate(z)) for name, z in (sources | {"prior": prior}).items()}


def same_distribution(one: np.ndarray, other: np.ndarray) -> bool:
    """Kolmogorov and Smirnov's test of every pixel."""
    return bool(np.min(stats.ks_2samp(one, other).pvalue) > FALSE_ALARM / one.shape[1])


def assert_same_probabilities(one, other):
    """To the rounding of the logits: of a few layers of 8 units, and of z with a floor of 1e-6."""
    logit = 16  # and z_2, which is certain, has a deviation of the root of the variances' floor
    assert_within(one, other, float32_error(64, logit) + 4 * np.sqrt(LADDER.variance_floor))


def test_draws_have_the_shapes_of_what_is_asked_for(of_ladder):
    assert of_ladder.samples.shape == (80, 6)
    assert of_ladder.reconstructions.shape == (30, 6)
    assert of_ladder.known.shape == (3, 2, 300, 6)
    assert of_ladder.interpolations.shape == (150, 10, 6)
    assert [z.shape for z in of_ladder.z] == [(500, 3), (500, 2), (500, 2)]
    for x in (
        of_ladder.samples,
        of_ladder.reconstructions,
        of_ladder.known,
        of_ladder.interpolations,
    ):
        assert x.min() >= 0  # probabilities
        assert x.max() <= 1


BOTTOM_UP = VAE(data_dim=6, latent_sizes=(3, 2), hidden_sizes=(8, 6), batch_norm=False)


@pytest.mark.parametrize(("model", "layer"), [(LADDER, 3), (BOTTOM_UP, 1)])
def test_z_are_samples_of_the_posteriors_of_the_images(model, layer):
    variables = {"params": random_params(model)}
    found = drawn_by(model, variables, IMAGES, FIRST, layer)
    z = [layer[None] for layer in found.z]
    terms = jax.jit(lambda z: model.apply(variables, IMAGES, z, method="densities"))(z)
    for z_i, q in zip(z, terms.posterior, strict=True):
        z_i, mean, variance = map(np.float64, (z_i, q.mean, q.variance))
        standardised = ((z_i - mean) / np.sqrt(variance))[0]
        assert_plausible(stats.kstest(standardised, "norm").pvalue)


def test_reconstructions_are_decoded_from_the_same_z(of_ladder):
    params = certain_at_the_top(LADDER)
    expected = LADDER.apply(params, jnp.asarray(of_ladder.z[0][:30]), layer=1, method="generate")
    assert_same_probabilities(of_ladder.reconstructions, expected)


def test_samples_are_distributed_as_those_of_the_prior(of_ladder, generated):
    assert same_distribution(of_ladder.samples, generated["prior"])
    assert not same_distribution(of_ladder.samples, generated["A"])


def test_the_bottom_layer_keeps_everything_and_a_layer_above_leaves_something_open(of_ladder):
    np.testing.assert_array_equal(of_ladder.known[0, 0], of_ladder.known[0, 1])
    for upper in of_ladder.known[1:]:
        difference = np.abs(upper[0] - upper[1]).max(axis=1)
        assert difference.min() > 0
        assert np.median(difference) > 0.1


def test_what_the_top_layer_leaves_open_is_drawn_from_the_priors_below(of_ladder, generated):
    for draw in of_ladder.known[2]:
        assert same_distribution(draw[0::2], generated["A"])
        assert same_distribution(draw[1::2], generated["B"])
        assert not same_distribution(draw[0::2], generated["B"])


def test_a_line_ends_in_what_its_ends_generate_with_the_noise_of_the_line(of_ladder):
    # z at the top is certain, so that of two images that are alike the whole line is one point.
    for end, image in ((0, A), (-1, B)):
        alike = drawn(np.tile(image, (300, 1))).interpolations
        assert_same_probabilities(alike, np.broadcast_to(alike[:, :1], alike.shape))
        assert_same_probabilities(of_ladder.interpolations[:, end], alike[:, end])
    # Another line has other noise, and on the way something changes.
    assert np.ptp(of_ladder.interpolations[:, 0], axis=0).min() > 0.01
    assert np.ptp(of_ladder.interpolations, axis=1).max() > 0.01


def test_a_line_is_straight_in_z():
    # With one layer there is no noise: z is encoded, and what is between is decoded.
    model = LadderVAE(
        data_dim=6, latent_sizes=(2,), hidden_sizes=(8,), batch_norm=False, variance_floor=1e-12
    )
    variables = certain_at_the_top(model)
    found = drawn_by(model, variables, IMAGES[:3], np.stack([A, B, A]), 1, num_samples=2)
    ((z_a, z_b),) = (q.mean for q in model.apply(variables, np.stack([A, B]), method="encode"))
    z = np.linspace(z_a, z_b, draws.INTERPOLATION_STEPS)
    expected = model.apply(variables, jnp.asarray(z), method="generate")
    assert found.interpolations.shape == (1, 10, 6)  # the third image has no partner
    assert_same_probabilities(found.interpolations[0], expected)


def test_lines_in_the_bottom_layer_end_in_what_that_layer_knows():
    variables = {"params": random_params(BOTTOM_UP)}
    found = drawn_by(BOTTOM_UP, variables, IMAGES, FIRST, 1)
    assert_same_probabilities(found.interpolations[:, 0], found.known[0, 0, 0::2])
    assert_same_probabilities(found.interpolations[:, -1], found.known[0, 0, 1::2])


def test_draws_are_reproduced_by_their_key_and_by_no_other(of_ladder):
    again, other = drawn(FIRST), drawn(FIRST, key=jax.random.key(6))
    leaves = [jax.tree.leaves(vars(found)) for found in (of_ladder, again, other)]
    for one, same, another in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one, same)
        if one is not of_ladder.z[2]:  # which is certain
            assert np.abs(one - another).max() > 1e-3
