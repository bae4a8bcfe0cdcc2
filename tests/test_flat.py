"""Parameters as one vector, or as few matrices, give the same steps as by arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from tolerances import assert_close, assert_trees_within, value_and_error

from lvae_jax import LadderVAE, flat, training

PARAMS = {"a": jnp.float32([[3.0, -4.0], [0.5, 12.0]]), "b": {"c": jnp.float32([-0.3])}}
GRADIENTS = {"a": jnp.float32([[1.0, -7.0], [0.0, 2.0]]), "b": {"c": jnp.float32([9.0])}}
OPTIMIZERS = {
    "the paper's": training.make_optimizer(0.1),
    "averaged": training.make_optimizer(0.1, ema_decay=0.9),
    "limited": training.make_optimizer(0.1, max_gradient_norm=4.0, max_gradient=0.9),
    "momentum": flat.Flattenable(*optax.chain(optax.sgd(0.1, momentum=0.9))),
}

ROUNDINGS = 2 * 10
"""Of Adam's moments, a root and quotients, and of a norm; in each of two programs."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_updates_of_a_vector_and_of_matrices_are_those_of_their_arrays(optimizer):
    state = optimizer.init(PARAMS)
    of_vectors = flat.flattened(optimizer)
    vectors = flat.to_vectors(of_vectors, PARAMS, state)
    params, matrices = flat.stacked_state(optimizer, PARAMS, state)
    gradients = flat.stacked(GRADIENTS)
    update, update_vectors = jax.jit(optimizer.update), jax.jit(of_vectors.update)
    for _ in range(2):
        expected, state = update(GRADIENTS, state, PARAMS)
        of_vector, vectors = update_vectors(GRADIENTS, vectors, PARAMS)
        of_matrices, matrices = update(gradients, matrices, params)
        for found in (of_vector, flat.unstacked(of_matrices)):
            assert_close(ravel_pytree(found)[0], ravel_pytree(expected)[0], ROUNDINGS)
    assert max(leaf.size for leaf in jax.tree.leaves(vectors)) == 5
    assert {leaf.shape for leaf in jax.tree.leaves(matrices) if leaf.ndim} == {(2, 2), (1, 1)}
    for arrays in (flat.to_arrays(PARAMS, vectors), flat.unstacked(matrices)):
        assert jax.tree.structure(arrays) == jax.tree.structure(state)
        for one, other in zip(jax.tree.leaves(arrays), jax.tree.leaves(state), strict=True):
            assert one.shape == other.shape
            assert_close(one, other, ROUNDINGS)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap])
def test_stacked_arrays_are_given_back_bit_for_bit(transform):
    def values(*shape):
        return np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)

    tree = {
        "weights": (values(3, 4), values(5, 4)),
        "convolution": values(2, 3, 1, 4),
        "bias": values(4),
        "others": [values(5, 2), values(1), values(), values(0), values(0, 4), values(2, 0)],
        "integers": np.int32([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "nothing": None,
    }

    def there_and_back(tree):
        found = flat.stacked(tree)
        shapes = {name: matrix.shape for name, matrix in found.matrices.items()}
        last = {name: shape[-1] for name, shape in shapes.items()}
        assert last == {name: name[1] for name in shapes}
        if transform is jax.vmap:  # there each array has its own shape
            assert shapes["float32", 4] == (3 + 5 + 6 + 1 + 0, 4)
            assert shapes["float32", 1] == (2, 1)
            assert shapes["int32", 4] == (1, 4)
        return flat.unstacked({"within": found, "beside": tree["bias"]})

    back = transform(there_and_back)(tree)
    assert np.asarray(back["beside"]).tobytes() == tree["bias"].tobytes()
    assert jax.tree.structure(back["within"]) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(back["within"]), jax.tree.leaves(tree), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == other.tobytes()


def test_a_state_of_one_array_has_its_counts_left_alone():
    optimizer, params = training.make_optimizer(0.1), jnp.ones(3)
    state = optimizer.init(params)
    vectors = flat.to_vectors(flat.flattened(optimizer), params, state)
    assert [leaf.shape for leaf in jax.tree.leaves(vectors)] == [(), (3,), (3,)]
    assert jax.tree.structure(flat.to_arrays(params, vectors)) == jax.tree.structure(state)
    _, matrices = flat.stacked_state(optimizer, params, state)
    assert [leaf.shape for leaf in jax.tree.leaves(matrices)] == [(), (1, 3), (1, 3)]
    assert jax.tree.structure(flat.unstacked(matrices)) == jax.tree.structure(state)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap])
def test_joined_arrays_are_given_back_bit_for_bit(transform):
    small = np.float32([[0.0, -0.0, np.inf], [np.nan, 1e-45, -3e38]])
    tree = {
        "floats": small,
        "counts": (np.int32([-1, 2**31 - 1]), np.uint32([2**32 - 1, 0])),
        "flags": np.array([True, False]),
        "halves": np.float16([[1.5, 2], [0, 3]]),
        "large": np.arange(2 * 65, dtype=np.float32).reshape(2, 65),
        "nothing": None,
    }

    def there_and_back(tree):
        joined, tree_of = flat.join(tree)
        assert len(jax.tree.leaves(joined)) == 4  # the bits, and three arrays that stay apart
        return tree_of(joined)

    back = transform(there_and_back)(tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == other.tobytes()


@pytest.mark.parametrize("platform", ["cpu", "accelerator"])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (2, 3, 2)])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(shape, platform, monkeypatch):
    choose_platform(platform, monkeypatch)
    all_finite = jax.jit(lambda tree: flat.all_finite(tree))  # afresh, for the platform
    largest = np.full(shape, np.finfo(np.float32).max)
    largest.flat[::2] *= -1
    rest = {"of another shape": np.zeros((4, 4), np.float32), "scalar": np.float32(0)}
    assert all_finite({**rest, "all": largest})
    assert all_finite({**rest, "all": np.abs(largest)})
    for bad in (np.nan, np.inf, -np.inf):
        for place in range(largest.size):
            values = largest.copy()
            values.flat[place] = bad
            assert not all_finite({**rest, "all": values})
    if len(shape) > 1:
        values = largest.copy()
        values[0], values[1] = np.inf, -np.inf
        assert not all_finite({**rest, "all": values})


def choose_platform(platform, monkeypatch):
    """Has `jax.lax.platform_dependent` take the branch of another platform than this one."""
    monkeypatch.setattr(
        jax.lax,
        "platform_dependent",
        lambda *given, default, **known: known.get(platform, default)(*given),
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])  # by vectors and by matrices
@pytest.mark.parametrize("replicas", [None, 2])
def test_an_epoch_on_an_accelerator_is_the_one_by_arrays(replicas, platform, monkeypatch):
    model = LadderVAE(5, (2,), ((4,),))
    optimizer = training.make_optimizer(0.01, max_gradient_norm=4.0, adam_epsilon=1e-3)
    images = jnp.float32(np.random.default_rng(0).integers(0, 2, (12, 5)))
    key = jax.random.key(0) if replicas is None else jax.random.split(jax.random.key(0), replicas)
    state = training.init_state(model, optimizer, key)

    def traced():
        def of_one(state, key):
            arguments = (model, optimizer, lambda key, x: x, state, images, key)
            return training.train_epoch.__wrapped__(*arguments, batch_size=4)

        # Afresh: JAX keeps what it has traced by function.
        return jax.jit(of_one if replicas is None else jax.vmap(of_one)).trace(state, key)

    arrays = traced()
    by_arrays = arrays.lower().compile()

    def from_params(params):
        return by_arrays(state._replace(params=jax.tree.map(jnp.float32, params)), key)

    # Of every parameter: half a dozen layers and batch norm, in each of three steps.
    expected, error = value_and_error(from_params, state.params, roundings=32)
    choose_platform(platform, monkeypatch)
    together = traced()
    assert str(arrays.jaxpr) != str(together.jaxpr)
    assert_trees_within(together.lower().compile()(state, key), expected, error)


def test_a_gpu_is_given_vectors_and_a_tpu_matrices():
    model, images, key = LadderVAE(5, (2,), ((4,),)), jnp.zeros((4, 5)), jax.random.key(0)
    adam = training.make_optimizer()
    state = training.init_state(model, adam, key)
    traced = training.train_epoch.trace(
        model, adam, lambda key, x: x, state, images, key, batch_size=4
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    texts = [traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")]
    assert [f"tensor<{size}xf32>" in text for text in texts] == [False, True, False]
    # Weights of 5, 4 and 2 inputs, and scale and shift of three batch norms, all of 4 columns.
    matrix = "tensor<17x4xf32>"
    assert [matrix in text for text in texts] == [False, False, True]
