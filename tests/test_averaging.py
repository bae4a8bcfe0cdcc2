"""The moving average of the parameters, against its weights computed one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import EPSILON_64, assert_close, assert_trees_within, value_and_error

from lvae_jax import LadderVAE, averaging, training


def average_by_hand(values, decay):
    """Sums w_i p_i, with every weight w_i a product of what each later update leaves of it."""
    moved = [max(1 - decay, 1 / t) for t in range(1, len(values) + 1)]
    kept = [np.prod([1 - m for m in moved[i + 1 :]]) for i in range(len(values))]
    weights = np.array(moved) * np.array(kept)
    assert_close(weights.sum(), 1, roundings=4 * len(values), epsilon=EPSILON_64)
    return np.tensordot(weights, np.array(values), 1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_average_has_the_weights_of_a_mean_and_then_of_exponential_decay(decay):
    optimizer = optax.chain(optax.sgd(1.0), averaging.average_parameters(decay))
    rng = np.random.default_rng(0)
    params = {"w": jnp.float32(rng.normal(size=3))}
    state = optimizer.init(params)
    np.testing.assert_array_equal(averaging.averaged(state)["w"], params["w"])
    seen = []
    for scale in (1.0, 0.5, 2.0, 0.1, 1.0, 3.0):
        gradient = {"w": jnp.float32(rng.normal(size=3))}
        updates, state = optimizer.update(gradient, state, params, update_scale=scale)
        np.testing.assert_array_equal(updates["w"], -gradient["w"])
        params = {"w": params["w"] + scale * updates["w"]}
        seen.append(np.float64(params["w"]))
    # A weight, a difference, a product and a sum in each of six updates.
    expected, size = average_by_hand(seen, decay), np.abs(seen).max(axis=0)
    assert_close(averaging.averaged(state)["w"], expected, roundings=4 * len(seen), size=size)


def test_the_average_has_memory_and_a_dtype_of_its_own():
    params = {"w": jnp.ones(3), "half": jnp.ones(2, jnp.bfloat16)}
    optimizer = averaging.average_parameters(0.5)
    state = optimizer.init(params)
    _, moved = optimizer.update(params, state, params, update_scale=jnp.float32(0.1))
    assert {name: leaf.dtype for name, leaf in moved.average.items()} == {
        "w": jnp.float32,
        "half": jnp.bfloat16,
    }
    # What trains a state may give its memory away, and the initial parameters stay.
    jax.tree.map(lambda a: a.delete(), state.average)
    np.testing.assert_array_equal(params["w"], np.ones(3))


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay}; give at least 0 and less than 1"):
        averaging.average_parameters(decay)


def test_an_update_without_parameters_is_refused():
    optimizer = training.make_optimizer(ema_decay=0.5)
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"give update\(updates, state, params\)"):
        optimizer.update(jnp.ones(2), state)


def test_an_optimiser_without_an_average_has_none_and_its_parameters_are_evaluated():
    params = {"w": jnp.ones(2)}
    state = training.fresh_state(params, training.make_optimizer(), 1)
    assert averaging.averaged(state.opt_state) is None
    assert state.evaluated is params


def test_training_averages_its_parameters_and_leaves_out_steps_that_are_not_finite():
    model, key = LadderVAE(5, (2,), ((4,),)), jax.random.key(0)
    optimizer = training.make_optimizer(1.0, adam_epsilon=1e-3, ema_decay=0.5)
    plain = training.make_optimizer(1.0, adam_epsilon=1e-3)
    x = jnp.float32(np.random.default_rng(1).integers(0, 2, (6, 5)))
    initial = training.init_state(model, plain, key).params

    def trained(optimizer, params):
        """The states after each of four steps, of which the second is left out."""
        params = jax.tree.map(jnp.float32, params)
        states = [training.fresh_state(params, optimizer, model.depth)]
        for step in range(4):
            batch = x * jnp.nan if step == 1 else x
            arguments = (batch, jax.random.key(step), 1.0, 0.01)
            states.append(training.train_step(model, optimizer, states[-1], *arguments)[0])
        return states[1:]

    first, _, *others = trained(optimizer, initial)
    state = others[-1]
    seen = [
        np.float64(each.params["inference"]["heads_0"]["Linear_0"]["Dense_0"]["kernel"])
        for each in (first, *others)
    ]
    assert state.nonfinite == 1
    # The average changes nothing that is trained; half a dozen layers round in each of three steps.
    without, error = value_and_error(
        lambda params: trained(plain, params)[-1].params, initial, roundings=32
    )
    assert_trees_within(state.params, without, error)
    average = state.evaluated["inference"]["heads_0"]["Linear_0"]["Dense_0"]["kernel"]
    size = np.abs(seen).max(axis=0)
    assert_close(average, average_by_hand(seen, 0.5), roundings=4 * len(seen), size=size)
