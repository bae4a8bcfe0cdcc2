"""Training and evaluation inside other code: maps over devices, meshes, keys, dtypes, loops."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from random_parameters import random_params
from tolerances import (
    assert_different,
    assert_trees_within,
    assert_within,
    float32_error,
    value_and_error,
)
from xla_flags import with_cpu_devices

import lvae_jax
from lvae_jax import (
    Bernoulli,
    Gaussian,
    LadderVAE,
    Objective,
    bounds,
    evaluation,
    keys,
    latents,
    objective,
    training,
)

TESTS = Path(__file__).parent
MODEL = LadderVAE(5, (2,), ((4,),))
LEARNING_RATE = 0.01
OPTIMIZER = training.make_optimizer(LEARNING_RATE, adam_epsilon=1e-3)
IMAGES = jnp.float32(np.random.default_rng(0).integers(0, 2, (8, 5)))
KEY = jax.random.key(0)
X = IMAGES[:4]

ROUNDINGS = 32
"""Of every parameter: half a dozen layers, and batch norm, which takes away what the values of a
unit have in common and keeps their rounding."""


def identity(key, images):
    return images


@functools.cache
def state():
    return training.init_state(MODEL, OPTIMIZER, KEY)


def epoch(state, key=KEY, images=IMAGES):
    """Two steps of four images."""
    start = jax.tree.map(jnp.copy, state)
    return training.train_epoch(MODEL, OPTIMIZER, identity, start, images, key, batch_size=4)


def step(x=X, key=KEY, start=None, **options):
    return training.train_step(MODEL, OPTIMIZER, start or state(), x, key, **options)


def plain(program):
    """What a program finds from the initial parameters, and what other programs may differ by."""

    def of_params(params):
        return program(training.fresh_state(in_float32(params), OPTIMIZER, MODEL.depth))

    return value_and_error(of_params, state().params, roundings=ROUNDINGS)


@functools.cache
def plain_epoch():
    return plain(epoch)


@functools.cache
def plain_step():
    return plain(lambda start: step(start=start))


def in_float32(tree):
    return jax.tree.map(jnp.float32, tree)


def lead(tree):
    return jax.tree.map(lambda leaf: leaf[None], tree)


def replicas(keys, params=None):
    """An epoch of two replicas."""
    start = training.init_state(MODEL, OPTIMIZER, keys)
    start = start._replace(params=start.params if params is None else in_float32(params))
    ones = jnp.ones(2, jnp.float32)
    return training.train_replicas(
        MODEL, OPTIMIZER, identity, start, IMAGES, keys, ones, ones, batch_size=4
    )


@functools.cache
def plain_replicas():
    """What those of seeds 0 and 1 find, and what other programs may differ by."""
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    params = training.init_state(MODEL, OPTIMIZER, keys).params
    return value_and_error(functools.partial(replicas, keys), params, roundings=ROUNDINGS)


# Maps over devices; `jax.pmap` is `jax.shard_map` without check_vma


def test_an_epoch_within_pmap_is_the_plain_one():
    found = jax.pmap(epoch)(lead(state()), KEY[None])
    assert_trees_within(found, *map(lead, plain_epoch()))


def test_an_epoch_within_shard_map_is_the_plain_one():
    mesh = jax.make_mesh((1,), ("theirs",), axis_types=(AxisType.Auto,))
    start = state()

    def one_each(key):  # all devices start from the same state and differ in their keys
        return lead(epoch(start, key[0]))

    axes = PartitionSpec("theirs")
    mapped = jax.shard_map(one_each, mesh=mesh, in_specs=axes, out_specs=axes)
    assert_trees_within(jax.jit(mapped)(KEY[None]), *map(lead, plain_epoch()))


SHARD_MAP = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, PartitionSpec as P
from tolerances import assert_within, value_and_error
from random_parameters import random_params
from lvae_jax import LadderVAE, Objective, objective

assert jax.device_count() == 2
model, key = LadderVAE(5, (2,), ((4,),)), jax.random.key(0)
params = random_params(model)
x = jnp.float32(np.random.default_rng(0).integers(0, 2, (8, 5)))
mesh = jax.make_mesh((2,), ("theirs",), axis_types=(AxisType.Auto,))

@functools.partial(jax.jit, static_argnums=2)
def gradients(x, params, climbed):
    return ravel_pytree(objective.loss_and_gradients(model, params, x, key, 1.0, climbed)[2])[0]

@functools.partial(jax.jit, static_argnums=1)
def mapped(x, climbed):
    split = functools.partial(gradients, params=params, climbed=climbed)
    return jax.shard_map(split, mesh=mesh, in_specs=P("theirs"), out_specs=P())(x)

def by_hand(params, climbed):
    params = jax.tree.map(jnp.float32, params)
    return gradients(x[:4], params, climbed) + gradients(x[4:], params, climbed)

for climbed in Objective(), Objective(importance_samples=2, gradient="dreg"):
    expected, error = value_and_error(
        functools.partial(by_hand, climbed=climbed), params, roundings=int(sys.argv[1]))
    assert np.any(expected)
    assert_within(mapped(x, climbed), expected, error)
"""


def test_within_shard_map_gradients_of_shared_parameters_are_the_sum_over_devices():
    # As everywhere in JAX: a gradient of what is the same on both devices is a sum over them.
    result = subprocess.run(
        [sys.executable, "-c", SHARD_MAP, str(ROUNDINGS)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "XLA_FLAGS": with_cpu_devices(2),
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
        },
    )
    assert result.returncode == 0, result.stderr


# Somebody's own mesh


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_an_epoch_under_a_mesh_whose_axis_has_the_librarys_name_is_the_plain_one(axis_type):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(axis_type,))
    start = jax.device_get(state())
    with jax.set_mesh(mesh):
        on_mesh = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec()))
        split = jax.device_put(np.asarray(IMAGES), NamedSharding(mesh, PartitionSpec("data")))
        found = epoch(on_mesh(start), KEY, split)
    assert_trees_within(jax.device_get(found), *plain_epoch())


def test_replicas_under_a_mesh_of_other_axes_are_the_plain_ones():
    # Explicit, as JAX then also checks how every array is split.
    several = jax.vmap(jax.random.key)(jnp.arange(2))
    expected, error = plain_replicas()
    with jax.set_mesh(jax.make_mesh((1,), ("theirs",), axis_types=(AxisType.Explicit,))):
        found = replicas(several)
    assert_trees_within(jax.device_get(found), expected, error)


# Keys


def log_likelihood(variables, x, key):
    return evaluation.log_likelihood(MODEL, variables, x, key, 6, 2).log_likelihood


def elbo(variables, x, key):
    return evaluation.elbo(MODEL, variables, identity, x, key, batch_size=4).elbo


@functools.cache
def variables():
    return evaluation.reestimate_batch_stats(
        MODEL, state().params, identity, IMAGES, KEY, batch_size=4
    )


@functools.cache
def plain_estimate(estimate):
    """An estimate, and what other programs may differ by."""

    def of_variables(variables):
        return estimate(in_float32(variables), X, KEY)

    return value_and_error(of_variables, variables(), roundings=ROUNDINGS)


@pytest.mark.parametrize("estimate", [log_likelihood, elbo])
@pytest.mark.parametrize("over", ["pmap", "vmap", "shard_map"])
def test_an_estimate_within_a_map_is_the_plain_one(over, estimate):
    given = (variables(), X, KEY)
    if over == "pmap":
        found = jax.pmap(estimate)(*map(lead, given))
    elif over == "vmap":
        found = jax.vmap(estimate)(*map(lead, given))
    else:
        mesh = jax.make_mesh((1,), ("theirs",), axis_types=(AxisType.Auto,))

        def one_each(variables, x, key):
            return estimate(*jax.tree.map(lambda leaf: leaf[0], (variables, x, key)))[None]

        split = PartitionSpec("theirs")
        mapped = jax.shard_map(one_each, mesh=mesh, in_specs=split, out_specs=split)
        found = jax.jit(mapped)(*map(lead, given))
    assert_within(found[0], *plain_estimate(estimate))


CONDITIONED = LadderVAE(5, (2, 1), ((4,), (3,)), batch_norm=False, condition_dim=3)
FEW = {"temperatures": 3, "leapfrog_steps": 1}
KEYS = jax.random.split(KEY, 2)


@pytest.mark.parametrize(
    ("estimate", "split"),
    [
        (evaluation.log_likelihood, "condition"),
        (evaluation.bidirectional, "keys"),
        (evaluation.bidirectional, "condition"),
        (evaluation.bidirectional, "variables"),
    ],
)
def test_within_shard_map_any_one_argument_may_be_split(estimate, split):
    # Types are checked when a function is traced; on one device no value could differ.
    like = jax.eval_shape(CONDITIONED.init, {"params": KEY, "sample": KEY}, X)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    given = {"variables": variables, "keys": KEYS, "condition": jnp.eye(2, 3)}
    mesh = jax.make_mesh((1,), ("theirs",), axis_types=(AxisType.Auto,))

    def on_each(part):
        variables, keys, condition = (given | {split: part}).values()
        if estimate is evaluation.bidirectional:
            return estimate(CONDITIONED, variables, keys, **FEW, condition=condition)
        return estimate(CONDITIONED, variables, X[:2], keys, 6, 2, condition=condition)

    over = PartitionSpec("theirs")
    jax.eval_shape(jax.shard_map(on_each, mesh=mesh, in_specs=over, out_specs=over), given[split])


@pytest.mark.parametrize("estimate", [log_likelihood, elbo])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_an_estimate_under_a_mesh_of_other_axes_is_the_plain_one(axis_type, estimate):
    expected, error = plain_estimate(estimate)
    mesh = jax.make_mesh((1,), ("theirs",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        split = jax.device_put(X, NamedSharding(mesh, PartitionSpec("theirs")))
        assert_within(estimate(variables(), split, KEY), expected, error)


def test_statistics_reestimated_within_pmap_are_the_plain_ones():
    def reestimate(params, images, key):
        return evaluation.reestimate_batch_stats(MODEL, params, identity, images, key, batch_size=4)

    found = jax.pmap(reestimate)(*map(lead, (state().params, IMAGES, KEY)))
    plain = value_and_error(
        lambda params: reestimate(in_float32(params), IMAGES, KEY),
        state().params,
        roundings=ROUNDINGS,
    )
    assert_trees_within(found, *map(lead, plain))


def test_old_style_keys_give_what_typed_keys_give():
    old = jax.random.PRNGKey(0)
    assert_trees_within(training.init_state(MODEL, OPTIMIZER, old), state(), error=0)
    assert_trees_within(step(key=old), *plain_step())
    assert_trees_within(epoch(state(), old), *plain_epoch())
    assert_trees_within(epoch(state(), np.asarray(old)), *plain_epoch())
    assert keys.named_key(old, "sample", 3) == keys.named_key(KEY, "sample", 3)


def test_old_style_keys_of_replicas_give_what_typed_keys_give():
    old = jnp.stack([jax.random.PRNGKey(0), jax.random.PRNGKey(1)])
    assert_trees_within(replicas(old), *plain_replicas())


def test_threefry_keys_are_used_as_they_are_and_of_others_the_first_two_words():
    several = jax.random.split(KEY, 3)
    others = jax.random.split(jax.random.key(3, impl="unsafe_rbg"), 3)
    assert others.dtype != several.dtype
    words, words_of_others = map(jax.random.key_data, (several, others))
    for given, expected in (
        (several, words),
        (words, words),
        (others, words_of_others[:, :2]),
    ):
        found = keys.threefry(given)
        assert found.dtype == several.dtype
        np.testing.assert_array_equal(jax.random.key_data(found), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, r"key is int; give a key such as jax.random.key\(0\)"),
        (np.float32([1, 2]), r"key is float32\[2\]; give"),
        (np.uint32(3), r"key is uint32\[\]; give"),
    ],
)
def test_what_is_no_key_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        keys.typed_key(given)


# Dtypes and sizes


# Not float16: XLA compiles no conversion of it for a processor without instructions for it.
@pytest.mark.parametrize("dtype", [np.uint8, jnp.bfloat16])
def test_zeros_and_ones_of_any_dtype_are_those_of_float32(dtype):
    assert_trees_within(step(np.asarray(X).astype(dtype)), *plain_step())


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32])
def test_a_step_is_traced_alike_for_zeros_and_ones_of_any_dtype(dtype):
    assert jax.eval_shape(step, np.asarray(X).astype(dtype)) == jax.eval_shape(step, X)


def test_with_64_bits_enabled_a_state_keeps_its_dtypes():
    init = functools.partial(training.init_state, MODEL, OPTIMIZER)
    train_epoch = functools.partial(training.train_epoch, MODEL, OPTIMIZER, identity, batch_size=4)
    with jax.enable_x64(True):
        before = jax.tree.map(lambda leaf: leaf.dtype, jax.eval_shape(init, KEY))
        assert {str(dtype) for dtype in jax.tree.leaves(before)} == {"float32", "int32"}
        images = np.float64(IMAGES)
        half, limit = np.float64(0.5), np.int64(3)
        stepped = training.train_step(MODEL, OPTIMIZER, state(), images[:4], KEY, half, half)
        trained = jax.eval_shape(train_epoch, state(), images, KEY, half, half, limit)
        for after, _ in (stepped, trained):
            assert jax.tree.map(lambda leaf: leaf.dtype, after) == before
    expected, error = plain(lambda start: step(start=start, beta=0.5, update_scale=0.5))
    # Adam divides by the root of 1 - 0.999, where float32 knows 0.999 up to a rounding.
    of_adam = float32_error(1, 0.5 * LEARNING_RATE / (2 * (1 - 0.999)))
    of_params = jax.tree.map(lambda leaf: leaf + of_adam, error[0].params)
    error = error[0]._replace(params=of_params), error[1]
    assert_trees_within(stepped, expected, error)


def test_parameters_of_64_bits_are_trained_and_evaluated_as_those_of_32_bits():
    with jax.enable_x64(True):
        params, statistics = jax.tree.map(np.float64, (state().params, variables()["batch_stats"]))
        start = training.fresh_state(params, OPTIMIZER, MODEL.depth)
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, start)
        assert {str(leaf) for leaf in jax.tree.leaves(dtypes.params)} == {"float64"}
        after, metrics = jax.eval_shape(epoch, start)
        assert jax.tree.map(lambda leaf: leaf.dtype, after) == dtypes
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(metrics)} == {"float32"}
        in_64_bits = {"params": params, "batch_stats": statistics}
        found = log_likelihood(in_64_bits, X, KEY)
    assert found.dtype == jnp.float32
    assert_within(found, *plain_estimate(log_likelihood))


def test_a_batch_of_more_images_than_there_are_is_refused():
    with pytest.raises(ValueError, match="batch_size=9, 8 images; give a whole number from 1 to 8"):
        training.train_epoch(MODEL, OPTIMIZER, identity, state(), IMAGES, KEY, batch_size=9)


def test_no_examples_have_no_bounds_and_make_no_step():
    terms = MODEL.apply(variables(), X[:0], num_samples=2, rngs={"sample": KEY})
    assert bounds.elbo(terms).shape == bounds.importance_weighted(terms).shape == (0,)
    for of_batch in (
        step,
        lambda x: objective.loss_and_gradients(MODEL, variables()["params"], x, KEY),
    ):
        with pytest.raises(ValueError, match="x holds 0 examples; give at least 1"):
            of_batch(X[:0])


def test_an_exported_estimate_takes_any_number_of_examples():
    trained = variables()

    def estimate(x):
        return log_likelihood(trained, x, KEY)

    (batch,) = export.symbolic_shape("batch")
    exported = export.export(jax.jit(estimate))(jax.ShapeDtypeStruct((batch, 5), jnp.float32))
    expected, error = plain_estimate(log_likelihood)
    for images in (4, 3):
        assert_within(exported.call(X[:images]), expected[:images], error[:images])


def test_exported_programs_are_serialised_with_what_they_return():
    trained = variables()

    def estimates(x):
        terms = MODEL.apply(trained, x, num_samples=2, rngs={"sample": KEY})
        return evaluation.log_likelihood(MODEL, trained, x, KEY, 10, 5), terms

    exported = export.export(jax.jit(estimates))(X)
    found = export.deserialize(exported.serialize()).call(X)
    assert isinstance(found[0], evaluation.LogLikelihood)
    assert isinstance(found[1], bounds.Terms)
    # The same program, but for what the compiler makes of it.
    expected = exported.call(X)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    "kind",
    [
        Bernoulli, Gaussian, evaluation.Bidirectional, evaluation.ConditionalLogLikelihood,
        evaluation.ElboResult, evaluation.Imputation, evaluation.LikelihoodRatio,
        evaluation.LogLikelihood, latents.Latents,
    ],
)  # fmt: skip
def test_a_serialised_program_returns_the_type_it_was_made_with(kind):
    def program(x):
        return kind(*(x + i for i in range(len(kind._fields))))

    exported = export.export(jax.jit(program))(X)
    found = export.deserialize(exported.serialize()).call(X)
    assert type(found) is kind
    for i, values in enumerate(found):
        np.testing.assert_array_equal(values, np.asarray(X) + i)


def test_the_library_can_be_reloaded(monkeypatch):
    importlib.reload(lvae_jax)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lvae_jax"]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.import_module("lvae_jax") is not lvae_jax


# Other optimisers and loops


def test_a_step_adds_the_updates_of_any_optimiser():
    # With an epsilon of 1e-8 the sign of a rounding error would be a whole step.
    optimizer = optax.adamw(0.01, eps=1e-3, weight_decay=0.1)
    params = state().params
    start = training.fresh_state(params, optimizer, MODEL.depth)
    stepped, _ = training.train_step(MODEL, optimizer, start, X, KEY)

    @jax.jit
    def by_hand(params):
        params = in_float32(params)
        _, _, gradients = objective.loss_and_gradients(MODEL, params, X, KEY)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    expected, error = value_and_error(by_hand, params, roundings=ROUNDINGS)
    assert_trees_within(stepped.params, expected, error)


def test_a_step_descends_the_loss():
    optimizer = optax.sgd(1e-3)
    loss = jax.jit(lambda params: objective.loss_and_gradients(MODEL, params, X, KEY)[0])
    start = training.fresh_state(state().params, optimizer, MODEL.depth)
    stepped, _ = training.train_step(MODEL, optimizer, start, X, KEY)
    assert loss(stepped.params) < loss(start.params)


def test_gradients_of_a_conditioned_model_are_those_of_its_bound():
    model = LadderVAE(5, (2,), ((4,),), batch_norm=False, condition_dim=3)
    y = jnp.asarray(np.eye(3, dtype=np.float32)[[0, 1, 2, 0]])
    params = random_params(model)

    @jax.jit
    @jax.value_and_grad
    def by_hand(params):
        params = in_float32(params)
        rngs = {"sample": KEY}
        terms = model.apply({"params": params}, X, train=True, condition=y, rngs=rngs)
        return -jnp.mean(bounds.elbo(terms))

    @functools.partial(jax.jit, static_argnames="gradient")
    def found(y, gradient):
        climbed = Objective(gradient=gradient)
        loss, _, gradients = objective.loss_and_gradients(model, params, X, KEY, 1.0, climbed, y)
        return loss, gradients

    (expected_loss, expected), (error_of_loss, error) = value_and_error(
        by_hand, params, roundings=ROUNDINGS
    )
    # Sticking the landing is another estimate for the inference model alone.
    for gradient, parts in (("standard", ["generative", "inference"]), ("stl", ["generative"])):
        loss, gradients = found(y, gradient)
        assert_within(loss, expected_loss, error_of_loss)
        assert_different(found(np.asarray(y)[::-1], gradient)[0], loss, error_of_loss)
        for part in parts:
            assert_trees_within(gradients[part], expected[part], error[part])
