"""What uses a trained model takes conditions: each image is under its own, in every function.

So each image's result is the one that it has where all images are under its label. (At one label, a
model is one without conditions that has the label's row of weights as a bias: see test_models.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from random_parameters import random_params
from tolerances import assert_close

from lvae_jax import LadderVAE, evaluation, latents, objective, training
from lvae_jax.imputation import Conditioning

LABELS = np.array([0, 1, 1, 0, 1])
Y = jax.nn.one_hot(LABELS, 2)
X = jnp.float32(np.random.default_rng(0).random((5, 4)) > 0.5)
KEY = jax.random.key(0)
SIZES = {"data_dim": 4, "latent_sizes": (3, 2), "hidden_sizes": ((5,), (4,)), "batch_norm": False}
EFFORT = Conditioning(num_samples=8, chains=2, steps=2, rounds=2)


def first_two(x):
    """Where x is observed: its first two values; split over devices as x is."""
    return jnp.cumsum(x == x, axis=-1) <= 2


USES = {
    "encode": lambda m, v, x, **y: latents.encode(m, v, x, **y).posterior,
    "encode-sampled": lambda m, v, x, **y: latents.encode(m, v, x, KEY, **y).z,
    "likelihood_ratio": lambda m, v, x, **y: evaluation.likelihood_ratio(
        m, v, x, KEY, above=1, num_samples=4, **y
    ),
    "impute": lambda m, v, x, **y: (
        evaluation.impute(m, v, x, first_two(x), X[0], KEY, num_draws=2, effort=EFFORT, **y).mean
    ),
    "conditional_log_likelihood": lambda m, v, x, **y: (
        evaluation.conditional_log_likelihood(
            m, v, x, first_two(x), X[0], KEY, effort=EFFORT, **y
        ).log_likelihood
    ),
    "bidirectional": lambda m, v, x, **y: evaluation.bidirectional(
        m, v, jax.random.split(KEY, 5), temperatures=4, leapfrog_steps=2, **y
    ),
    "log_likelihood": lambda m, v, x, **y: evaluation.log_likelihood(m, v, x, KEY, 6, **y),
}


@pytest.mark.parametrize("use", USES)
def test_each_image_is_under_its_own_condition(use):
    model = LadderVAE(**SIZES, condition_dim=2)
    variables = {"params": random_params(model, scale=0.4)}

    def found(labels):
        result = USES[use](model, variables, X, condition=jnp.float32(np.eye(2)[labels]))
        return jax.tree.map(np.asarray, jax.tree.leaves(result))

    # Of the same program, and so bit for bit.
    for each, zero, one in zip(*map(found, (LABELS, 0 * LABELS, 0 * LABELS + 1)), strict=True):
        of_labels = np.stack([zero, one])
        np.testing.assert_array_equal(each, of_labels[LABELS, np.arange(len(X))])
        assert np.any(zero != one)


@pytest.mark.parametrize("use", USES)
def test_a_condition_has_a_row_for_every_image(use):
    model = LadderVAE(**SIZES, condition_dim=2)
    variables = {"params": random_params(model)}
    for rows in (4, 1):
        message = rf"condition has shape \[{rows}, 2\].*one row of features per"
        with pytest.raises(ValueError, match=message):
            USES[use](model, variables, X, condition=Y[:rows])
    with pytest.raises(ValueError, match="condition_dim=2; give a condition of shape"):
        USES[use](model, variables, X)


@pytest.mark.parametrize("use", USES)
def test_images_and_conditions_may_be_split_over_an_explicit_axis(use):
    # Types are checked when a function is traced; on one device no value could differ.
    model = LadderVAE(**SIZES, condition_dim=2)
    traced = functools.partial(USES[use], model, {"params": random_params(model)})
    plain = jax.eval_shape(lambda x, y: traced(x, condition=y), X, Y)
    mesh = jax.make_mesh((1,), ("theirs",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = functools.partial(
            jax.device_put, device=NamedSharding(mesh, PartitionSpec("theirs"))
        )
        for x, y in ((split(X), Y), (X, split(Y))):
            found = jax.eval_shape(lambda x, y: traced(x, condition=y), x, y)
            assert jax.tree.map(lambda leaf: leaf.shape, found) == jax.tree.map(
                lambda leaf: leaf.shape, plain
            )


@functools.cache
def initial():
    """A model with batch norm, and its variables as `init` makes them."""
    model = LadderVAE(**{**SIZES, "batch_norm": True})
    return model, jax.jit(model.init)({"params": KEY, "sample": KEY}, X)


@pytest.mark.parametrize("use", USES)
def test_initial_statistics_are_warned_of(use):
    model, variables = initial()
    # An error in tests, and so before anything is compiled.
    with pytest.raises(UserWarning, match="zeros and ones of init"):
        USES[use](model, variables, X)


@pytest.mark.parametrize("use", [use for use in USES if use != "bidirectional"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[0], r"x has shape \[4\] .*give x\[None\] for one example"),
        (X.reshape(5, 2, 2), r"x has shape \[5, 2, 2\] .*flatten the images"),
        (X[:, :3], r"x has shape \[5, 3\] and the model has data_dim=4: give \[batch, 4\]"),
        (255 * X.astype(jnp.uint8), "x has dtype uint8: give grey values as x / 255"),
    ],
    ids=["one", "images", "narrow", "grey"],
)
def test_x_of_another_shape_or_of_grey_values_is_refused(use, x, message):
    model = LadderVAE(**SIZES)
    with pytest.raises(ValueError, match=message):
        USES[use](model, {"params": random_params(model)}, x)


def test_bidirectional_takes_a_key_per_image_and_generate_a_key_or_z():
    model = LadderVAE(**SIZES)
    variables = {"params": random_params(model)}
    with pytest.raises(ValueError, match=r"keys has shape \[\]; give one key per image"):
        evaluation.bidirectional(model, variables, KEY)
    with pytest.raises(ValueError, match=r"z has shape \(\);.*or give a key such as"):
        model.apply(variables, 0, method="generate")


def test_an_epoch_takes_each_image_with_its_condition():
    """By a loop over the epoch's batches."""
    model = LadderVAE(4, (2,), ((3,),), batch_norm=False, condition_dim=2)
    params = random_params(model)
    _, batches = jax.jit(training.epoch_batches, static_argnums=(2, 3))(KEY, 0, 5, 2)
    step = jax.jit(functools.partial(objective.loss_and_gradients, model))
    for i, rows in enumerate(np.asarray(batches)):
        key = training.named_key(KEY, "sample", i)
        x, y = (jnp.asarray(np.asarray(of_all)[rows]) for of_all in (X, Y))
        _, _, gradients = step(params, x, key, condition=y)
        params = jax.tree.map(lambda p, g: p - np.float32(0.1) * np.asarray(g), params, gradients)

    def identity(key, images):
        return images

    optimizer = optax.sgd(0.1)
    state = training.fresh_state(random_params(model), optimizer, model.depth)
    state, _ = training.train_epoch(
        model, optimizer, identity, state, X, KEY, batch_size=2, condition=Y
    )
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        # Two programs, and some fifty roundings on the way to a gradient.
        assert_close(one, other, roundings=2 * 50, size=1 + np.abs(other))


def test_one_row_is_the_condition_of_all_examples():
    model = LadderVAE(**SIZES, condition_dim=2)
    variables = {"params": random_params(model)}

    @jax.jit
    def of_all(one, each):
        """Draws and pictures under either."""
        apply = functools.partial(model.apply, variables)
        return [
            (
                apply(X, condition=y, rngs={"sample": KEY}).log_px,
                apply(KEY, num_samples=5, condition=y, method="generate"),
            )
            for y in (one, each)
        ]

    of_one, of_each = of_all(Y[1:2], jnp.tile(Y[1:2], (5, 1)))
    for found, expected in zip(of_one, of_each, strict=True):
        np.testing.assert_array_equal(found, expected)
