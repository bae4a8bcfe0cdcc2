"""Layers, MLPs and Gaussian heads against a NumPy float64 forward pass from the same parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from tolerances import (
    assert_close,
    assert_different,
    assert_plausible,
    assert_within,
    float32_error,
    threshold,
    value_and_error,
)

from lvae_jax import networks
from lvae_jax.distributions import Gaussian
from lvae_jax.networks import MLP, GaussianHead, Linear
from lvae_jax.normalization import EPSILON

FLOOR = 1e-5
ROUNDINGS = 8
"""Of an input of a layer: a product over up to 8 inputs, and what normalises it."""


def make_inputs(shape=(12, 5), seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0.5, 2.0, shape), jnp.float32)


def random_variables(module, y, seed=1):
    """Variables of the module's own structure with random values; stored variances are positive."""
    rng = np.random.default_rng(seed)
    structure = jax.eval_shape(lambda: module.init(jax.random.key(0), y, train=False))
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.asarray(
            rng.uniform(0.5, 2.0, leaf.shape)
            if path[-1].key in ("variance", "scale")
            else rng.normal(0, 0.5, leaf.shape),
            jnp.float32,
        ),
        structure,
    )


def apply(module, variables, y, train):
    """The module, compiled whole."""
    return jax.jit(lambda v, y: module.apply(v, y, train=train))(variables, y)


def apply_and_store(module, variables, y):
    """A training pass with batch_stats mutable: the output and the new collection."""
    output, updates = jax.jit(lambda v, y: module.apply(v, y, train=True, mutable=["batch_stats"]))(
        variables, y
    )
    return output, updates["batch_stats"]


def as_float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def pre_activations(params, y):
    """The linear map of a layer alone, in float64."""
    dense = params["Dense_0"]
    return y @ dense["kernel"] + dense.get("bias", 0.0)


def linear_in_float64(params, stored, y):
    """A layer in float64; `stored` is its batch_stats, or None for the batch's own moments."""
    y = pre_activations(params, y)
    if "BatchNorm_0" not in params:
        return y
    axes = tuple(range(y.ndim - 1))
    mean, variance = y.mean(axes), y.var(axes)
    if stored is not None:
        mean, variance = stored["BatchNorm_0"]["mean"], stored["BatchNorm_0"]["variance"]
    norm = params["BatchNorm_0"]
    return (y - mean) / np.sqrt(variance + EPSILON) * norm["scale"] + norm["shift"]


ACTIVATIONS = {
    "leaky_relu": lambda y: np.where(y > 0, y, 0.1 * y),
    "leaky_relu_0.01": lambda y: np.where(y > 0, y, 0.01 * y),
    "tanh": np.tanh,
}


def mlp_in_float64(variables, activation, y, train):
    variables, y = as_float64(variables), np.float64(y)
    for name in sorted(variables["params"]):
        stored = None if train else variables.get("batch_stats", {}).get(name)
        y = ACTIVATIONS[activation](linear_in_float64(variables["params"][name], stored, y))
    return y


def mlp_error(variables, y, train):
    """The error in float32 of an MLP of two layers of leaky ReLUs."""

    def by_hand(variables, y):
        return mlp_in_float64(variables, "leaky_relu", y, train)

    return value_and_error(by_hand, variables, y, roundings=2 * ROUNDINGS)[1]


def head_error(variables, y, train):
    """Those of a head: of means and variances."""

    def by_hand(variables, y):
        return head_in_float64(variables, y, train)

    return value_and_error(by_hand, variables, y, roundings=ROUNDINGS)[1]


def head_in_float64(variables, y, train):
    variables = as_float64(variables)
    stored = None if train else variables.get("batch_stats", {}).get("Linear_0")
    both = linear_in_float64(variables["params"]["Linear_0"], stored, np.float64(y))
    mean, raw_variance = np.split(both, 2, axis=-1)
    return mean, np.logaddexp(0, raw_variance) + FLOOR


# --- Forward passes ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 5), (3, 4, 5)], ids=["batch", "samples"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["batch_norm", "bias"])
def test_linear_is_the_float64_forward_pass(batch_norm, train, shape):
    module, y = Linear(7, batch_norm), make_inputs(shape)
    variables = random_variables(module, y)

    def by_hand(variables, y):
        stored = None if train else variables.get("batch_stats")
        return linear_in_float64(variables["params"], stored, y)

    expected, error = value_and_error(by_hand, variables, y, roundings=ROUNDINGS)
    assert_within(apply(module, variables, y, train), expected, error)


@pytest.mark.parametrize(
    ("batch_norm", "train", "activation"),
    [
        (True, True, "leaky_relu"),
        (True, False, "leaky_relu"),
        (False, True, "leaky_relu"),
        (True, True, "leaky_relu_0.01"),
        (True, True, "tanh"),
    ],
)
def test_mlp_is_the_float64_forward_pass(batch_norm, train, activation):
    module, y = MLP((8, 6), activation, batch_norm), make_inputs()
    variables = random_variables(module, y)

    def by_hand(variables, y):
        return mlp_in_float64(variables, activation, y, train)

    expected, error = value_and_error(by_hand, variables, y, roundings=2 * ROUNDINGS)
    assert expected.shape == (12, 6)
    assert_within(apply(module, variables, y, train), expected, error)


@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["batch_norm", "bias"])
def test_gaussian_head_is_the_float64_forward_pass(batch_norm, train):
    module, y = GaussianHead(3, batch_norm, FLOOR), make_inputs()
    variables = random_variables(module, y)

    def by_hand(variables, y):
        return head_in_float64(variables, y, train)

    (mean, variance), errors = value_and_error(by_hand, variables, y, roundings=ROUNDINGS)
    actual = apply(module, variables, y, train)
    assert isinstance(actual, Gaussian)
    assert mean.shape == (12, 3)
    assert_within(actual.mean, mean, errors[0])
    assert_within(actual.variance, variance, errors[1])


def test_samples_and_batch_are_normalised_together():
    module, y = MLP((8, 6), "leaky_relu", batch_norm=True), make_inputs((3, 4, 5))
    variables = random_variables(module, y)
    together = apply(module, variables, y, train=True)
    flat = apply(module, variables, y.reshape(12, 5), train=True)
    error = mlp_error(variables, y, train=True)
    assert_within(together, flat.reshape(3, 4, 6), 2 * error)
    one_sample = apply(module, variables, y[0], train=True)
    assert_different(together[0], one_sample, 2 * error[0])


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("leaky_relu", [-0.2, -0.05, 0.0, 0.5, 2.0]), ("tanh", np.tanh([-2.0, -0.5, 0.0, 0.5, 2.0]))],
)
def test_activations_are_what_their_names_say(activation, expected):
    actual = networks.ACTIVATIONS[activation](jnp.float32([-2.0, -0.5, 0.0, 0.5, 2.0]))
    assert_close(actual, expected, roundings=4)


@pytest.mark.parametrize(("activation", "slope"), [("leaky_relu", 0.1), ("leaky_relu_0.01", 0.01)])
def test_the_derivative_of_a_leaky_relu_is_one_of_two_slopes(activation, slope):
    y = jnp.float32([-1e30, -2.0, -1e-30, 1e-30, 0.5, 1e30])
    expected = np.float32([slope, slope, slope, 1, 1, 1])
    function = networks.ACTIVATIONS[activation]
    backward = jax.vmap(jax.grad(function))(y)
    _, forward = jax.jvp(function, (y,), (jnp.ones_like(y),))
    np.testing.assert_array_equal(backward, expected)
    np.testing.assert_array_equal(forward, expected)


# --- Parameters ----------------------------------------------------------------------------------


def shapes_of(variables):
    """Shapes by path."""
    leaves = jax.tree.leaves_with_path(variables)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): a.shape for p, a in leaves}


def test_parameters_with_batch_norm_have_no_bias():
    variables = jax.eval_shape(
        lambda: MLP((8, 6), "tanh", True).init(jax.random.key(0), make_inputs(), train=False)
    )
    assert shapes_of(variables) == {
        "params/Linear_0/Dense_0/kernel": (5, 8),
        "params/Linear_0/BatchNorm_0/scale": (8,),
        "params/Linear_0/BatchNorm_0/shift": (8,),
        "params/Linear_1/Dense_0/kernel": (8, 6),
        "params/Linear_1/BatchNorm_0/scale": (6,),
        "params/Linear_1/BatchNorm_0/shift": (6,),
        "batch_stats/Linear_0/BatchNorm_0/mean": (8,),
        "batch_stats/Linear_0/BatchNorm_0/variance": (8,),
        "batch_stats/Linear_1/BatchNorm_0/mean": (6,),
        "batch_stats/Linear_1/BatchNorm_0/variance": (6,),
    }


def test_parameters_without_batch_norm_have_a_bias_and_no_statistics():
    variables = jax.eval_shape(
        lambda: MLP((8, 6), "tanh", False).init(jax.random.key(0), make_inputs(), train=True)
    )
    assert shapes_of(variables) == {
        "params/Linear_0/Dense_0/kernel": (5, 8),
        "params/Linear_0/Dense_0/bias": (8,),
        "params/Linear_1/Dense_0/kernel": (8, 6),
        "params/Linear_1/Dense_0/bias": (6,),
    }


def test_a_head_is_one_linear_layer_of_twice_its_units():
    variables = jax.eval_shape(
        lambda: GaussianHead(3, True, FLOOR).init(jax.random.key(0), make_inputs(), train=False)
    )
    assert shapes_of(variables["params"]) == {
        "Linear_0/Dense_0/kernel": (5, 6),
        "Linear_0/BatchNorm_0/scale": (6,),
        "Linear_0/BatchNorm_0/shift": (6,),
    }


def test_initial_values_leave_a_normalised_layer_alone():
    variables = Linear(4, batch_norm=True).init(jax.random.key(0), make_inputs(), train=False)
    assert np.array_equal(variables["params"]["BatchNorm_0"]["scale"], np.ones(4))
    assert np.array_equal(variables["params"]["BatchNorm_0"]["shift"], np.zeros(4))
    assert np.array_equal(variables["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(4))
    assert np.array_equal(variables["batch_stats"]["BatchNorm_0"]["variance"], np.ones(4))
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    # A weakly typed leaf would make a training step compile a second time.
    assert not any(a.weak_type for a in jax.tree.leaves(variables))


def assert_is_normal(weights, std):
    """The standard deviation `std` up to its standard error, and the shape of a normal."""
    weights = np.asarray(weights, np.float64).ravel()
    assert abs(weights.std() - std) < threshold() * std / np.sqrt(2 * weights.size)
    assert_plausible(stats.kstest(weights, stats.norm(0, std).cdf).pvalue)


@pytest.mark.parametrize("gain", [0.5, 1.0, np.sqrt(2)])
@pytest.mark.parametrize(("fan_in", "fan_out"), [(300, 200), (100, 400)])
def test_glorot_normal_has_its_standard_deviation(fan_in, fan_out, gain):
    weights = networks.glorot_normal(gain)(jax.random.key(1), (fan_in, fan_out), jnp.float32)
    assert_is_normal(weights, gain * np.sqrt(2 / (fan_in + fan_out)))


@pytest.mark.parametrize(
    ("module", "gain"),
    [(MLP((200,), "tanh", True), np.sqrt(2)), (GaussianHead(100, True, FLOOR), 1.0)],
    ids=["mlp", "head"],
)
def test_kernels_start_with_the_gain_of_their_place(module, gain):
    params = module.init(jax.random.key(2), jnp.zeros((2, 300)), train=False)["params"]
    assert_is_normal(params["Linear_0"]["Dense_0"]["kernel"], gain * np.sqrt(2 / 500))


def test_the_bias_of_a_variance_starts_as_given_and_that_of_a_mean_at_zero():
    y = make_inputs()
    head = GaussianHead(2, batch_norm=False, variance_floor=FLOOR, variance_bias=1.0)
    dense = head.init(jax.random.key(0), y, train=False)["params"]["Linear_0"]["Dense_0"]
    np.testing.assert_array_equal(dense["bias"], [0, 0, 1, 1])
    assert dense["bias"].dtype == jnp.float32
    normalised = GaussianHead(2, batch_norm=True, variance_floor=FLOOR, variance_bias=1.0)
    linear = normalised.init(jax.random.key(0), y, train=False)["params"]["Linear_0"]
    assert "bias" not in linear["Dense_0"]
    np.testing.assert_array_equal(linear["BatchNorm_0"]["shift"], 0)


# --- Batch statistics ----------------------------------------------------------------------------


def test_a_mutable_training_pass_stores_the_moments_of_that_batch_alone():
    module, y = MLP((8, 6), "leaky_relu", batch_norm=True), make_inputs((3, 4, 5))
    variables = random_variables(module, y)
    _, stored = apply_and_store(module, variables, y)

    def by_hand(params, inputs):
        moments = {}
        for name in ("Linear_0", "Linear_1"):
            before = pre_activations(params[name], inputs)
            moments[name] = {"mean": before.mean((0, 1)), "variance": before.var((0, 1))}
            inputs = ACTIVATIONS["leaky_relu"](linear_in_float64(params[name], None, inputs))
        return moments

    params = variables["params"]
    expected, errors = value_and_error(by_hand, params, y, roundings=2 * ROUNDINGS)
    for name, moments in expected.items():
        for moment, value in moments.items():
            found = stored[name]["BatchNorm_0"][moment]
            assert_within(found, value, errors[name][moment])


def test_a_training_pass_gives_the_same_output_whether_or_not_it_stores():
    module, y = MLP((8, 6), "leaky_relu", batch_norm=True), make_inputs()
    variables = random_variables(module, y)
    output, _ = apply_and_store(module, variables, y)
    without = apply(module, {"params": variables["params"]}, y, train=True)
    assert_within(output, without, 2 * mlp_error(variables, y, train=True))


def test_a_training_pass_ignores_the_stored_statistics():
    module, y = Linear(7, batch_norm=True), make_inputs()
    variables = random_variables(module, y)
    other = {**variables, "batch_stats": jax.tree.map(lambda a: a + 9, variables["batch_stats"])}
    assert np.array_equal(apply(module, variables, y, True), apply(module, other, y, True))
    with_stored, with_others = (apply(module, each, y, False) for each in (variables, other))
    assert_different(with_stored, with_others, float32_error(ROUNDINGS, with_stored))


def test_an_evaluation_pass_treats_every_example_alone_and_writes_nothing():
    module, y = MLP((8, 6), "leaky_relu", batch_norm=True), make_inputs()
    variables = random_variables(module, y)
    whole, updates = module.apply(variables, y, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    part = apply(module, variables, y[:2], train=False)
    assert_within(whole[:2], part, 2 * mlp_error(variables, y[:2], train=False))


def test_evaluation_with_the_stored_moments_of_a_batch_repeats_its_training_pass():
    module, y = GaussianHead(3, batch_norm=True, variance_floor=FLOOR), make_inputs()
    variables = random_variables(module, y)
    trained, stored = apply_and_store(module, variables, y)
    evaluated = apply(
        module, {"params": variables["params"], "batch_stats": stored}, y, train=False
    )
    for one, other, error in zip(
        evaluated, trained, head_error(variables, y, train=True), strict=True
    ):
        assert_within(one, other, 2 * error)


# --- Variances -----------------------------------------------------------------------------------

RAW_VARIANCES = np.float32([-200.0, -80.0, -10.0, -1.0, 0.0, 1.0, 10.0, 80.0, 200.0])


def variance_of_raw(raw_variance, floor):
    """A head's variance where its raw variance is the given one: no weights, all bias."""
    units = len(raw_variance)
    bias = jnp.concatenate([jnp.zeros(units), raw_variance])
    params = {"Linear_0": {"Dense_0": {"kernel": jnp.zeros((1, 2 * units)), "bias": bias}}}
    head = GaussianHead(units, batch_norm=False, variance_floor=floor)
    return head.apply({"params": params}, jnp.ones((1, 1)), train=False).variance[0]


@pytest.mark.parametrize("floor", [1e-5, 1e-3])
def test_variance_is_softplus_plus_floor_at_any_raw_variance(floor):
    actual = variance_of_raw(jnp.asarray(RAW_VARIANCES), floor)
    expected = np.logaddexp(0, RAW_VARIANCES.astype(np.float64)) + floor
    assert_close(actual, expected, roundings=8)
    assert np.all(np.asarray(actual) >= np.float32(floor))
    # Above the floor wherever float32 can tell softplus from nothing beside it.
    assert np.all(np.asarray(actual)[RAW_VARIANCES >= -10] > np.float32(floor))


def test_variance_has_the_sigmoid_as_its_gradient_at_any_raw_variance():
    gradient = jax.grad(lambda raw: variance_of_raw(raw, FLOOR).sum())(jnp.asarray(RAW_VARIANCES))
    expected = special.expit(RAW_VARIANCES.astype(np.float64))
    # exp makes an absolute error of its argument a relative one.
    size = expected * (1 + np.abs(np.float64(RAW_VARIANCES)))
    assert_close(gradient, expected, roundings=8, size=size)


# --- Transformations and dtypes ------------------------------------------------------------------

MODULES = {
    "linear": Linear(7, batch_norm=True),
    "mlp": MLP((8, 6), "leaky_relu", batch_norm=True),
    "head": GaussianHead(3, batch_norm=True, variance_floor=FLOOR),
}

ERRORS = {
    "linear": lambda variables, y: value_and_error(
        lambda v, y: linear_in_float64(v["params"], None, y), variables, y, roundings=ROUNDINGS
    )[1],
    "mlp": lambda variables, y: mlp_error(variables, y, train=True),
    "head": lambda variables, y: head_error(variables, y, train=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_vmap_over_parameters_equals_a_loop(name):
    module, y = MODULES[name], make_inputs()
    models = [random_variables(module, y, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    batched = jax.jit(jax.vmap(lambda v: module.apply(v, y, train=True)))(stacked)
    looped = [apply(module, variables, y, train=True) for variables in models]
    for i, (variables, expected) in enumerate(zip(models, looped, strict=True)):
        of_model = jax.tree.map(lambda leaf, i=i: leaf[i], batched)
        jax.tree.map(
            lambda one, other, error: assert_within(one, other, 2 * error),
            tuple(jax.tree.leaves(of_model)),
            tuple(jax.tree.leaves(expected)),
            tuple(jax.tree.leaves(ERRORS[name](variables, y))),
        )


@pytest.mark.parametrize("name", MODULES)
def test_jit_equals_eager(name):
    module, y = MODULES[name], make_inputs()
    variables = random_variables(module, y)
    jax.tree.map(
        lambda one, other, error: assert_within(one, other, 2 * error),
        tuple(jax.tree.leaves(apply(module, variables, y, train=True))),
        tuple(jax.tree.leaves(module.apply(variables, y, train=True))),
        tuple(jax.tree.leaves(ERRORS[name](variables, y))),
    )


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("name", MODULES)
def test_float32_stays_float32(name, train):
    module, y = MODULES[name], make_inputs()
    variables = random_variables(module, y)
    result = jax.eval_shape(
        lambda v, y: module.apply(v, y, train=train, mutable=["batch_stats"]), variables, y
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype("float32")}
