"""Moments and batch normalisation against NumPy in float64, and a gradient against two others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from tolerances import assert_close, assert_within, float32_error, value_and_error

from lvae_jax import normalization
from lvae_jax.normalization import EPSILON, Moments

SHAPES = [(16, 3), (4, 5, 3)]


@pytest.fixture(autouse=True, params=["cpu", "cuda", "tpu"])
def platform(request, monkeypatch):
    """Every test runs the code of each platform, on whichever this is."""
    monkeypatch.setattr(
        jax.lax,
        "platform_dependent",
        lambda *a, default, **known: known.get(request.param, default)(*a),
    )
    return request.param


@functools.cache
def moments_on(platform):
    """`normalization.moments` as a program for each platform: JAX keeps traces by function."""
    return jax.jit(lambda y: normalization.moments(y))


def float32(a):
    return jnp.asarray(a, jnp.float32)


def random_inputs(shape, seed=0):
    """y, scale, shift, and a gradient arriving at the output."""
    rng = np.random.default_rng(seed)
    units = shape[-1]
    y = 2 + rng.normal(size=shape) * np.array([0.1, 1.0, 5.0])[:units]
    scale, shift = rng.uniform(0.5, 2.0, units), rng.normal(size=units)
    return tuple(float32(a) for a in (y, scale, shift, rng.normal(size=shape)))


def batch_normalize_in_float64(y, scale, shift, epsilon=EPSILON):
    """The definition, in NumPy."""
    y, scale, shift = (np.asarray(a, np.float64) for a in (y, scale, shift))
    axes = tuple(range(y.ndim - 1))
    return (y - y.mean(axes)) / np.sqrt(y.var(axes) + epsilon) * scale + shift


def naive_batch_normalize(y, scale, shift, epsilon=EPSILON):
    """The definition, in JAX, for automatic differentiation."""
    rows = y.reshape(-1, y.shape[-1])
    mean = jnp.mean(rows, axis=0, keepdims=True)
    variance = jnp.mean((rows - mean) ** 2, axis=0, keepdims=True)
    normalized = (rows - mean) / jnp.sqrt(variance + epsilon) * scale[None] + shift[None]
    return normalized.reshape(y.shape)


def pull_back(function, y, scale, shift, g):
    """The gradients of sum(g function(y, scale, shift)) with respect to y, scale and shift."""
    loss = jax.jit(jax.grad(lambda *inputs: jnp.sum(g * function(*inputs)), argnums=(0, 1, 2)))
    return loss(y, scale, shift)


def gradients_in_float64(y, scale, shift, g):
    """The gradients of sum(g batch_normalize(y, scale, shift)), by the formula in NumPy."""
    axes = tuple(range(y.ndim - 1))
    inverse_std = 1 / np.sqrt(y.var(axes) + EPSILON)
    y_hat = (y - y.mean(axes)) * inverse_std
    centred = g - g.mean(axes) - y_hat * (g * y_hat).mean(axes)
    return scale * inverse_std * centred, (g * y_hat).sum(axes), g.sum(axes)


def errors_of_gradients(*inputs):
    """What float32 may make of them: of every gradient, that of what is added up for its unit."""
    _, errors = value_and_error(gradients_in_float64, *inputs, roundings=8)
    # Where the terms of one element cancel, it has the error of the others.
    return [np.broadcast_to(e.reshape(-1, e.shape[-1]).max(0), e.shape) for e in errors]


def finite_differences(function, arguments, step):
    """Central differences of a scalar float64 function, element by element of every argument."""
    arguments = [np.asarray(a, np.float64) for a in arguments]
    gradients = []
    for a in arguments:
        gradient = np.zeros_like(a)
        for index in np.ndindex(a.shape):
            kept = a[index]
            a[index] = kept + step
            above = function(*arguments)
            a[index] = kept - step
            gradient[index] = (above - function(*arguments)) / (2 * step)
            a[index] = kept
        gradients.append(gradient)
    return gradients


def assert_moments(actual, rows):
    """Mean and variance of float64 rows: sums of them, and the square of the mean's own error."""
    roundings = np.sqrt(len(rows)) + 4
    error = float32_error(roundings, np.abs(rows).mean(axis=0))
    assert_within(actual.mean, rows.mean(axis=0), error)
    variance = rows.var(axis=0)
    assert_within(actual.variance, variance, float32_error(roundings, variance) + error**2)


# --- Moments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (1e4, 1.0), (-1e4, 1.0), (3.0, 1e-3), (0.0, 1e4)]
)
@pytest.mark.parametrize("shape", [(1000, 3), (10, 100, 3)])
def test_moments_are_the_mean_and_biased_variance_even_far_from_zero(shape, mean, std, platform):
    y = np.float32(np.random.default_rng(0).normal(mean, std, shape))
    rows = y.reshape(-1, 3).astype(np.float64)
    actual = moments_on(platform)(y)
    # A one-pass variance, E[y^2] - E[y]^2, would be off by several units at a mean of 1e4.
    assert_moments(actual, rows)


@pytest.mark.parametrize("rows", [16, 256, 4096])
@pytest.mark.parametrize("outlier", [1e2, 1e4, -1e6])
def test_moments_hold_where_the_first_row_is_an_outlier(rows, outlier, platform):
    y = np.float32(np.random.default_rng(0).normal(3.0, 1.0, (rows, 5)))
    y[0] = outlier
    actual = moments_on(platform)(y)
    exact = y.astype(np.float64)
    # Shifted by the outlier, E[d^2] is up to `rows` variances, and its rounding that of a sum.
    roundings = 8 + np.sqrt(rows)
    assert_close(actual.variance, exact.var(axis=0), roundings, size=rows * exact.var(axis=0))
    added = np.abs(exact).mean(axis=0) + np.abs(exact - exact[0]).mean(axis=0)
    assert_close(actual.mean, exact.mean(axis=0), roundings, size=added)


@pytest.mark.parametrize("constant", [0.0, 1e-30, 3.7, -1e12])
def test_the_variance_of_a_constant_unit_is_its_rounding_at_most(constant, platform):
    y = np.full((256, 3), np.float32(constant))
    mean, variance = moments_on(platform)(y)
    error = float32_error(np.sqrt(256), constant)  # of a sum of 256 numbers
    assert_within(mean, y[0], error)
    assert np.all(np.abs(variance) <= error**2)
    if platform == "cuda":
        assert np.array_equal(mean, y[0])
        assert not np.any(variance)


def test_a_mesh_of_one_device_splits_no_batch():
    mesh, rows = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,)), jnp.zeros((4, 3))
    with jax.set_mesh(mesh):
        assert not normalization._is_split(rows)


@pytest.mark.parametrize(
    ("name", "axis_type", "split", "expected"),
    [
        ("data", AxisType.Auto, None, True),
        ("theirs", AxisType.Auto, None, False),
        ("data", AxisType.Explicit, None, False),
        ("data", AxisType.Explicit, "data", True),
        ("theirs", AxisType.Explicit, "theirs", True),
    ],
)
def test_a_mesh_of_two_devices_splits_batches_over_its_axis_data_or_as_they_say(
    name, axis_type, split, expected
):
    mesh = jax.sharding.AbstractMesh((2,), (name,), axis_types=(axis_type,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(split))
    rows = jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=sharding)
    found = []
    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(lambda rows: found.append(normalization._is_split(rows)), rows)
    assert found == [expected]


def test_where_a_mesh_splits_the_batch_moments_are_of_all_of_it(monkeypatch):
    monkeypatch.setattr(normalization, "_is_split", lambda rows: True)
    y = np.float32(np.random.default_rng(0).normal([5.0, -1e4, 0.0], [1.0, 1.0, 1e-3], (64, 3)))
    actual = normalization.moments(jnp.asarray(y))
    assert_moments(actual, np.float64(y))


@pytest.mark.parametrize("shape", [(6, 20, 3), (6, 4, 5, 3)])
def test_pooled_moments_are_those_of_the_concatenated_batches(shape):
    rng = np.random.default_rng(1)
    # Batches that differ in mean and spread, so that the variance between them matters.
    tail = (1,) * (len(shape) - 2)
    offset = rng.normal(0, 3, (6, *tail, 3))
    y = np.float32(offset + rng.normal(size=shape) * rng.uniform(0.1, 2.0, (6, *tail, 3)))
    pooled = jax.jit(lambda y: normalization.pool(jax.vmap(normalization.moments)(y)))(y)
    rows = y.reshape(-1, 3).astype(np.float64)
    assert isinstance(pooled, Moments)
    assert_moments(pooled, rows)


def test_pooling_a_single_batch_changes_nothing():
    batch = Moments(float32([[1.5, -2.0]]), float32([[3.0, 0.25]]))
    pooled = normalization.pool(batch)
    assert np.array_equal(pooled.mean, batch.mean[0])
    assert np.array_equal(pooled.variance, batch.variance[0])


# --- Normalisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, (3,)])
def test_normalize_uses_the_statistics_it_is_given(shape):
    y, scale, shift, _ = random_inputs(shape)
    statistics = Moments(float32([5.0, -1.0, 0.0]), float32([4.0, 0.3, 0.0]))
    mean, variance = (np.float64(a) for a in statistics)
    expected = (np.float64(y) - mean) / np.sqrt(variance + EPSILON) * np.float64(scale)
    actual = normalization.normalize(y, statistics, scale, shift)
    size = np.abs(expected) + np.abs(np.float64(shift))
    assert_close(actual, expected + np.float64(shift), roundings=8, size=size)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_normalize_is_the_definition(shape, transform):
    y, scale, shift, _ = random_inputs(shape)
    # A function of its own: JAX keeps traces by function, and the fixture changes what is traced.
    actual = transform(lambda *inputs: normalization.batch_normalize(*inputs))(y, scale, shift)
    expected, error = value_and_error(batch_normalize_in_float64, y, scale, shift, roundings=8)
    assert_within(actual, expected, error)


def test_batch_normalize_gives_every_unit_the_mean_shift_and_the_deviation_scale():
    y, scale, shift, _ = random_inputs((4, 50, 3))
    output = np.float64(normalization.batch_normalize(y, scale, shift))
    _, error = value_and_error(batch_normalize_in_float64, y, scale, shift, roundings=8)
    assert_within(output.mean(axis=(0, 1)), shift, error.max(axis=(0, 1)))
    variance = np.float64(y).var(axis=(0, 1))
    expected = np.float64(scale) * np.sqrt(variance / (variance + EPSILON))
    assert_within(output.std(axis=(0, 1)), expected, error.max(axis=(0, 1)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_written_out_is_that_of_automatic_differentiation(shape):
    inputs = random_inputs(shape)
    written_out = pull_back(normalization.batch_normalize, *inputs)
    automatic = pull_back(naive_batch_normalize, *inputs)
    for actual, expected, error in zip(
        written_out, automatic, errors_of_gradients(*inputs), strict=True
    ):
        assert actual.shape == expected.shape
        assert_within(actual, expected, 2 * error)


@pytest.mark.parametrize("epsilon", [1e-10, 3.0])
def test_epsilon_is_what_is_added_to_the_variance_of_values_and_gradients(epsilon):
    *inputs, g = random_inputs((4, 5, 3))
    ours = functools.partial(normalization.batch_normalize, epsilon=epsilon)
    by_hand = functools.partial(batch_normalize_in_float64, epsilon=epsilon)
    expected, error = value_and_error(by_hand, *inputs, roundings=8)
    assert_within(ours(*inputs), expected, error)
    statistics = normalization.moments(inputs[0])
    given = normalization.normalize(inputs[0], statistics, *inputs[1:], epsilon)
    assert_within(given, expected, error)
    automatic = functools.partial(naive_batch_normalize, epsilon=epsilon)
    for actual, expected, error in zip(
        pull_back(ours, *inputs, g),
        pull_back(automatic, *inputs, g),
        errors_of_gradients(*inputs, g),
        strict=True,
    ):
        assert_within(actual, expected, 2 * error)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_written_out_is_that_of_finite_differences_in_float64(shape):
    y, scale, shift, g = random_inputs(shape)
    weight = np.float64(g)
    expected = finite_differences(
        lambda *inputs: np.sum(weight * batch_normalize_in_float64(*inputs)),
        (y, scale, shift),
        step=1e-5,
    )
    actual = pull_back(normalization.batch_normalize, y, scale, shift, g)
    errors = errors_of_gradients(y, scale, shift, g)
    for a, e, error in zip(actual, expected, errors, strict=True):
        # Central differences are off by a third derivative times the step's square, and by the
        # rounding of float64 over the step.
        assert_within(a, e, error + 1e-8 * (1 + np.abs(e)))


@pytest.mark.parametrize("constant", [0.0, 0.5, 3.7, -20.25])
def test_a_unit_constant_over_the_batch_normalises_to_its_shift(constant):
    y, scale, shift, g = random_inputs((16, 3))
    y = y.at[:, 1].set(constant)
    output = np.asarray(normalization.batch_normalize(y, scale, shift))
    # What is left of a y_hat: the rounding of the mean, a sum of 16 numbers, over sqrt(EPSILON).
    y_hat = float32_error(np.sqrt(16), constant) / np.sqrt(EPSILON)
    rounding = y_hat * float(scale[1])
    expected = np.broadcast_to(np.float64(shift[1]), 16)
    assert_within(output[:, 1], expected, rounding + float32_error(2, shift[1]))
    d_y, d_scale, d_shift = pull_back(normalization.batch_normalize, y, scale, shift, g)
    # y_hat is zero, so what is left of dL/dy is the centred g, over sqrt(EPSILON).
    centred = (g[:, 1] - g[:, 1].mean()) * scale[1] / np.sqrt(EPSILON)
    # It enters a gradient with its mean product with g, twice.
    size = np.abs(np.float64(g[:, 1])).max() * float(scale[1]) / np.sqrt(EPSILON)
    assert_within(d_y[:, 1], np.float64(centred), float32_error(8, size) + size * rounding)
    total = np.float64(g[:, 1])
    assert_within(d_scale[1], 0, y_hat * np.abs(total).sum())
    assert_close(d_shift[1], total.sum(), roundings=4, size=np.abs(total).sum())
    for gradient in (d_y, d_scale, d_shift):
        assert np.all(np.isfinite(gradient))


def test_1e_5_is_added_to_a_variance():
    y = jnp.float32([[3.0], [3.0], [6.0]])
    given = Moments(jnp.float32([3.0]), jnp.float32([0.0]))
    one, zero = jnp.ones(1), jnp.zeros(1)
    normalized = jax.jit(normalization.normalize)(y, given, one, zero)
    assert_close(np.ravel(normalized), [0, 0, 3 / np.sqrt(1e-5)], roundings=4)
    normalized = jax.jit(lambda *inputs: normalization.batch_normalize(*inputs))(
        1e-3 * y, one, zero
    )
    expected = np.float64([-1e-3, -1e-3, 2e-3]) / np.sqrt(2e-6 + 1e-5)
    assert_close(np.ravel(normalized), expected, roundings=16, size=1)


def test_a_deviation_of_16_roundings_of_the_mean_is_none():
    deviations = np.array([15.9, 16.1]) * 2**-23 * 1000
    given = Moments(jnp.full(2, 1000.0), float32(deviations**2))
    found = normalization.without_constant_units(given).variance
    np.testing.assert_array_equal(found, [np.inf, given.variance[1]])


@pytest.mark.parametrize("constant", [0.0, 1e-30, 0.5, 3.7, -20.25, 1e12])
def test_a_unit_that_varies_by_rounding_alone_is_constant_and_normalises_to_its_shift(constant):
    y, scale, shift, _ = random_inputs((16, 3))
    rounding = 1 + np.float32(2**-22) * np.random.default_rng(0).integers(-1, 2, 16)
    y = y.at[:, 1].set(np.float32(constant * rounding))
    y = y.at[:, 2].set(np.float32(1000 + 0.1 * np.arange(16)))  # varies, if little beside its mean
    moments = normalization.moments(y)
    statistics = normalization.without_constant_units(moments)
    assert statistics.variance[1] == np.inf
    np.testing.assert_array_equal(statistics.mean, moments.mean)
    np.testing.assert_array_equal(statistics.variance[::2], moments.variance[::2])
    output = normalization.normalize(y + jnp.float32([0, 1, 0])[None], statistics, scale, shift)
    np.testing.assert_array_equal(output[:, 1], np.broadcast_to(shift[1], 16))
    assert np.all(np.isfinite(output))


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 3)])
def test_a_batch_of_one_normalises_to_the_shift_with_no_gradient_to_its_input(shape):
    y, scale, shift, g = random_inputs(shape)
    output = normalization.batch_normalize(y, scale, shift)
    assert np.array_equal(
        output, jnp.broadcast_to(shift.reshape((1,) * (y.ndim - 1) + (3,)), shape)
    )
    d_y, d_scale, d_shift = pull_back(normalization.batch_normalize, y, scale, shift, g)
    assert not np.any(d_y)
    assert not np.any(d_scale)
    assert np.array_equal(d_shift, g.reshape(3))


# --- Transformations and dtypes ------------------------------------------------------------------


def test_vmap_equals_a_loop_in_value_and_gradient():
    def value_and_gradient(y, scale, shift, g):
        output, pull = jax.vjp(normalization.batch_normalize, y, scale, shift)
        return output, pull(g)

    examples = [random_inputs((16, 3), seed) for seed in range(4)]
    batched = jax.jit(jax.vmap(value_and_gradient))(*map(jnp.stack, zip(*examples, strict=True)))
    one = jax.jit(value_and_gradient)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one(*e) for e in examples))
    for i, example in enumerate(examples):
        _, error = value_and_error(batch_normalize_in_float64, *example[:3], roundings=8)
        assert_within(batched[0][i], looped[0][i], 2 * error)
        for actual, expected, of_gradient in zip(
            batched[1], looped[1], errors_of_gradients(*example), strict=True
        ):
            assert_within(actual[i], expected[i], 2 * of_gradient)


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_stays_float32(shape):
    y, scale, shift, g = random_inputs(shape)

    def everything():
        statistics = normalization.moments(y)
        output, pull = jax.vjp(normalization.batch_normalize, y, scale, shift)
        pooled = normalization.pool(Moments(y.reshape(-1, 3), y.reshape(-1, 3) ** 2))
        given = normalization.normalize(y, statistics, scale, shift)
        return statistics, output, pull(g), pooled, given

    leaves = jax.tree.leaves(jax.eval_shape(everything))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrower_numbers_are_computed_in_float32_and_rounded_once(dtype):
    inputs = [a.astype(dtype) for a in random_inputs((64, 3))]
    y, scale, shift, g = inputs
    exact = [np.asarray(a, np.float64) for a in inputs]
    rounding = float(jnp.finfo(dtype).eps)
    moments = jax.jit(lambda y: normalization.moments(y))(y)  # a program of each platform
    assert {m.dtype for m in moments} == {jnp.dtype("float32")}
    assert_moments(moments, exact[0])
    output, pull = jax.vjp(lambda *a: normalization.batch_normalize(*a), y, scale, shift)
    expected, error = value_and_error(batch_normalize_in_float64, *exact[:3], roundings=8)
    of_float64 = (expected, *gradients_in_float64(*exact))
    errors = (error, *errors_of_gradients(*exact))
    for result, value, error in zip((output, *pull(g)), of_float64, errors, strict=True):
        assert result.dtype == dtype
        assert_within(result, value, rounding * np.abs(value) + error)
