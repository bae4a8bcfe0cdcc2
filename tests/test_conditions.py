"""What uses a trained model takes conditions: each image is under its own, in every function.

A model that is conditioned on a label is, at one label, a model without conditions: the label's row
of weights is a bias. So each image's result is that of the model of its label.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from random_parameters import random_params, without_condition
from tolerances import assert_close, assert_different, assert_within, value_and_error

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
    model, plain = LadderVAE(**SIZES, condition_dim=2), LadderVAE(**SIZES)
    params = random_params(model, scale=0.4)
    actual = USES[use](model, {"params": params}, X, condition=Y)

    def by_label(params):
        params = jax.tree.map(jnp.float32, params)
        each = [without_condition(params, label) for label in np.eye(2, dtype=np.float32)]
        return [USES[use](plain, {"params": params}, X) for params in each]

    # Twice: the two programs round differently, and so do the inputs of each.
    (zero, one), (error_zero, error_one) = value_and_error(by_label, params, roundings=8)
    for leaf, *of_labels in zip(
        *map(jax.tree.leaves, (actual, zero, one, error_zero, error_one)), strict=True
    ):
        for label, (value, error) in enumerate(zip(of_labels[:2], of_labels[2:], strict=True)):
            rows = label == LABELS
            assert_within(np.asarray(leaf)[rows], value[rows], error[rows])
        assert_different(*of_labels[:2], of_labels[2])


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
        for x, y in ((split(X), split(Y)), (split(X), Y), (X, split(Y))):
            found = jax.eval_shape(lambda x, y: traced(x, condition=y), x, y)
            assert jax.tree.map(lambda leaf: leaf.shape, found) == jax.tree.map(
                lambda leaf: leaf.shape, plain
            )


@pytest.mark.parametrize("use", USES)
def test_initial_statistics_are_warned_of(use):
    model = LadderVAE(**{**SIZES, "batch_norm": True})
    variables = jax.jit(model.init)({"params": KEY, "sample": KEY}, X)
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
    """By a loop of optax's own over the epoch's batches."""
    model = LadderVAE(4, (2,), (3,), batch_norm=False, condition_dim=2)
    optimizer = optax.sgd(0.1)
    state = training.init_state(model, optimizer, KEY)
    params, opt_state = state.params, state.opt_state
    _, batches = training.epoch_batches(KEY, 0, 5, 2)
    step = jax.jit(functools.partial(objective.loss_and_gradients, model))
    for i, rows in enumerate(batches):
        key = training.named_key(KEY, "sample", i)
        _, _, gradients = step(params, X[rows], key, condition=Y[rows])
        updates, opt_state = optimizer.update(gradients, opt_state)
        params = optax.apply_updates(params, updates)

    def identity(key, images):
        return images

    state, _ = training.train_epoch(
        model, optimizer, identity, state, X, KEY, batch_size=2, condition=Y
    )
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        # Two programs, and some fifty roundings on the way to a gradient.
        assert_close(one, other, roundings=2 * 50, size=1 + np.abs(other))


def test_one_row_is_the_condition_of_all_examples():
    model = LadderVAE(**SIZES, condition_dim=2)
    variables = {"params": random_params(model)}
    one, each = Y[1:2], jnp.tile(Y[1:2], (5, 1))
    draws = [
        model.apply(variables, X, condition=y, rngs={"sample": KEY}).log_px for y in (one, each)
    ]
    np.testing.assert_array_equal(*draws)
    pictures = [
        model.apply(variables, KEY, num_samples=5, condition=y, method="generate")
        for y in (one, each)
    ]
    np.testing.assert_array_equal(*pictures)
