"""Pictures of images, whatever their shape, and what a model draws for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_parameters import random_params
from scipy import stats
from tolerances import FALSE_ALARM, assert_plausible, assert_within, float32_error

from experiments.show import pictures
from lvae_jax import VAE, LadderVAE


@pytest.mark.parametrize(
    ("image_shape", "drawn"),
    [
        ((6,), (1, 6)),
        ((3, 2), (3, 2)),
        ((3, 2, 1), (3, 2)),
        ((1, 2, 3), (1, 2, 3)),  # colours
        ((2, 3, 4), (6, 4)),  # two slices of 3×4, one under the other
    ],
)
def test_images_are_drawn_in_their_own_shape(image_shape, drawn):
    size = int(np.prod(image_shape))
    x = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    found = pictures.as_pictures(x, image_shape)
    assert found.shape == (2, *drawn)
    np.testing.assert_array_equal(found.ravel(), x.ravel())


@pytest.mark.parametrize(
    ("image_shape", "drawn"),
    [
        ((8,), (1, 8)),
        ((784,), (28, 28)),
        ((1400, 1), (38, 37)),  # 37 parts of 38
        ((500, 2), (32, 32)),
        ((2, 500), (32, 32)),
        ((3000, 2, 3), (77, 78, 3)),  # 39 parts of 77
    ],
)
def test_long_pictures_are_cut_into_parts(image_shape, drawn):
    size = int(np.prod(image_shape))
    x = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    found = pictures.as_pictures(x, image_shape)
    assert found.shape == (2, *drawn)
    for one, values in zip(found, x, strict=True):
        np.testing.assert_array_equal(np.sort(one[np.isfinite(one)]), values)


def test_the_parts_of_a_long_picture_lie_side_by_side():
    x = np.arange(9, dtype=np.float32)[None]
    expected = [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    np.testing.assert_array_equal(pictures.as_pictures(x, (9, 1)), [expected])
    np.testing.assert_array_equal(pictures.as_pictures(x, (9,)), [np.transpose(expected)])


def test_a_grid_lays_pictures_out_row_by_row_a_grey_pixel_apart():
    black, white = np.zeros((1, 2)), np.ones((1, 2))
    drawn = pictures.grid(np.stack([white, black, white]), columns=2, low=0.0, high=1.0)
    g = 128
    expected = [
        [g, g, g, g, g, g, g],
        [g, 255, 255, g, 0, 0, g],
        [g, g, g, g, g, g, g],
        [g, 255, 255, g, g, g, g],
        [g, g, g, g, g, g, g],
    ]
    np.testing.assert_array_equal(drawn, expected)


def test_values_are_scaled_to_the_range_given_and_cut_off_beyond_it():
    drawn = pictures.grid(np.array([[[-5.0, -1.0, 0.0, 1.0, 9.0]]]), columns=1, low=-1.0, high=1.0)
    assert drawn[1, 1:-1].tolist() == [0, 0, 128, 255, 255]


def test_images_that_are_all_of_one_value_can_be_drawn():
    drawn = pictures.grid(np.full((1, 1, 2), 3.0), columns=1, low=3.0, high=3.0)
    assert drawn[1, 1:-1].tolist() == [0, 0]


def test_a_small_picture_is_enlarged_by_a_whole_factor(tmp_path):
    pictures.write_png(tmp_path / "new" / "a.png", np.array([[0, 255]], np.uint8), least_width=5)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert np.asarray(image).tolist() == [[0] * 3 + [255] * 3] * 3


def test_values_that_are_not_finite_are_drawn_all_the_same():
    values = np.array([[[np.nan, np.inf, -np.inf, 1.0]]])
    drawn = pictures.grid(values, columns=1, low=0.0, high=1.0)
    assert drawn[1, 1:-1].tolist() == [0, 255, 0, 255]


def test_colours_are_drawn_as_they_are():
    red_and_white = np.array([[[[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]])
    drawn = pictures.grid(red_and_white, columns=1, low=0.0, high=1.0)
    assert drawn[1, 1:-1].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_rows_stand_above_each_other_ten_by_ten():
    upper, lower = np.arange(14), 100 + np.arange(14)
    found = pictures.interleaved([upper, lower], columns=10)
    expected = [*range(10), *range(100, 110), *range(10, 14), *range(110, 114)]
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0, 2, 1, 0, 1], [1, 3, 0, 2, 4, 5]),  # fewer images than ten: all of them
        ([3] * 12, list(range(10))),
        ([-1] * 25, list(range(10))),  # unlabelled
        ([*range(12, -1, -1)], [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]),  # more classes than ten
        ([1] * 11 + [0], [11, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([5], [0]),
    ],
)
def test_one_of_each_label_is_shown_and_others_fill_up_to_ten(labels, expected):
    assert pictures.one_of_each(np.array(labels)).tolist() == expected


# What a model draws.

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


def certain_at_the_top(model: LadderVAE) -> dict:
    """Random parameters, but z_L is its posterior's mean: the variance there is next to nothing."""
    params = random_params(model)
    units = model.latent_sizes[-1]
    head = params["inference"][f"heads_{model.depth - 1}"]["Linear_0"]["Dense_0"]
    head["kernel"] = head["kernel"].at[:, units:].set(0.0)
    head["bias"] = head["bias"].at[units:].set(-60.0)
    return {"params": params}


def drawn(first: np.ndarray, key: jax.Array = KEY) -> pictures.Draws:
    variables = certain_at_the_top(LADDER)
    return jax.tree.map(np.asarray, pictures.draw(LADDER, variables, IMAGES, first, key, 3))


@pytest.fixture(scope="module")
def draws() -> pictures.Draws:
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


def test_draws_have_the_shapes_of_what_is_asked_for(draws):
    assert draws.samples.shape == (80, 6)
    assert draws.reconstructions.shape == (500, 6)
    assert draws.known.shape == (3, 2, 300, 6)
    assert draws.interpolations.shape == (150, 10, 6)
    assert [z.shape for z in draws.z] == [(500, 3), (500, 2), (500, 2)]
    for x in (draws.samples, draws.reconstructions, draws.known, draws.interpolations):
        assert x.min() >= 0  # probabilities
        assert x.max() <= 1


BOTTOM_UP = VAE(data_dim=6, latent_sizes=(3, 2), hidden_sizes=(8, 6), batch_norm=False)


@pytest.mark.parametrize(("model", "layer"), [(LADDER, 3), (BOTTOM_UP, 1)])
def test_z_are_samples_of_the_posteriors_of_the_images(model, layer):
    variables = {"params": random_params(model)}
    draws = pictures.draw(model, variables, IMAGES, FIRST, KEY, layer)
    z = [layer[None] for layer in draws.z]
    terms = jax.jit(lambda z: model.apply(variables, IMAGES, z, method="densities"))(z)
    for z_i, q in zip(z, terms.posterior, strict=True):
        z_i, mean, variance = map(np.float64, (z_i, q.mean, q.variance))
        standardised = ((z_i - mean) / np.sqrt(variance))[0]
        assert_plausible(stats.kstest(standardised, "norm").pvalue)


def test_reconstructions_are_decoded_from_the_same_z(draws):
    params = certain_at_the_top(LADDER)
    expected = LADDER.apply(params, jnp.asarray(draws.z[0]), layer=1, method="generate")
    assert_same_probabilities(draws.reconstructions, expected)


def test_samples_are_distributed_as_those_of_the_prior(draws, generated):
    assert same_distribution(draws.samples, generated["prior"])
    assert not same_distribution(draws.samples, generated["A"])


def test_the_bottom_layer_keeps_everything_and_a_layer_above_leaves_something_open(draws):
    np.testing.assert_array_equal(draws.known[0, 0], draws.known[0, 1])
    for upper in draws.known[1:]:
        difference = np.abs(upper[0] - upper[1]).max(axis=1)
        assert difference.min() > 0
        assert np.median(difference) > 0.1


def test_what_the_top_layer_leaves_open_is_drawn_from_the_priors_below(draws, generated):
    for draw in draws.known[2]:
        assert same_distribution(draw[0::2], generated["A"])
        assert same_distribution(draw[1::2], generated["B"])
        assert not same_distribution(draw[0::2], generated["B"])


def test_a_line_ends_in_what_its_ends_generate_with_the_noise_of_the_line(draws):
    # z at the top is certain, so that of two images that are alike the whole line is one point.
    for end, image in ((0, A), (-1, B)):
        alike = drawn(np.tile(image, (300, 1))).interpolations
        assert_same_probabilities(alike, np.broadcast_to(alike[:, :1], alike.shape))
        assert_same_probabilities(draws.interpolations[:, end], alike[:, end])
    # Another line has other noise, and on the way something changes.
    assert np.ptp(draws.interpolations[:, 0], axis=0).min() > 0.01
    assert np.ptp(draws.interpolations, axis=1).max() > 0.01


def test_a_line_is_straight_in_z():
    # With one layer there is no noise: z is encoded, and what is between is decoded.
    model = LadderVAE(
        data_dim=6, latent_sizes=(2,), hidden_sizes=(8,), batch_norm=False, variance_floor=1e-12
    )
    variables = certain_at_the_top(model)
    draws = pictures.draw(model, variables, IMAGES[:3], np.stack([A, B, A]), KEY, 1, num_samples=2)
    ((z_a, z_b),) = (q.mean for q in model.apply(variables, np.stack([A, B]), method="encode"))
    z = np.linspace(z_a, z_b, pictures.INTERPOLATION_STEPS)
    expected = model.apply(variables, jnp.asarray(z), method="generate")
    assert draws.interpolations.shape == (1, 10, 6)  # the third image has no partner
    assert_same_probabilities(draws.interpolations[0], expected)


def test_lines_in_the_bottom_layer_end_in_what_that_layer_knows():
    variables = {"params": random_params(BOTTOM_UP)}
    draws = pictures.draw(BOTTOM_UP, variables, IMAGES, FIRST, KEY, 1)
    draws = jax.tree.map(np.asarray, draws)
    assert_same_probabilities(draws.interpolations[:, 0], draws.known[0, 0, 0::2])
    assert_same_probabilities(draws.interpolations[:, -1], draws.known[0, 0, 1::2])


def test_draws_are_reproduced_by_their_key_and_by_no_other(draws):
    again, other = drawn(FIRST), drawn(FIRST, key=jax.random.key(6))
    leaves = zip(*map(jax.tree.leaves, (draws, again, other)), strict=True)
    for one, same, another in leaves:
        np.testing.assert_array_equal(one, same)
        if one is not draws.z[2]:  # which is certain
            assert np.abs(one - another).max() > 1e-3
