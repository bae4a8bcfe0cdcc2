"""Schedules against their closed forms, with Python numbers and as arrays under `jit`."""

import functools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from tolerances import EPSILON_64, assert_close

from lvae_jax import schedules

COSINE = 16
"""Roundings of the initial rate: two of an angle of up to pi, a cosine, a sum and two products.

Where 1 + cos is small, at the end, the sum has lost the digits of the rate itself."""


@pytest.mark.parametrize(
    ("epoch", "warmup_epochs", "beta"),
    [
        (0, 200, 0.0),
        (1, 200, 0.005),
        (100, 200, 0.5),
        (199, 200, 0.995),
        (200, 200, 1.0),
        (2000, 200, 1.0),
        (0, 1, 0.0),
        (1, 1, 1.0),
        (0, 0, 1.0),
        (7, 0, 1.0),
    ],
)
def test_warm_up_rises_linearly_to_one_and_stays(epoch, warmup_epochs, beta):
    actual = schedules.warm_up(epoch, warmup_epochs)
    assert isinstance(actual, float)
    assert actual == beta


def test_warm_up_of_arrays_is_that_of_numbers():
    epochs = np.arange(0, 12, 0.25)
    for warmup_epochs in (0, 0.5, 1, 7, 200):
        expected = [schedules.warm_up(float(epoch), warmup_epochs) for epoch in epochs]
        one_program = jax.jit(jax.vmap(schedules.warm_up, (0, None)))
        for length in (warmup_epochs, jnp.float32(warmup_epochs)):
            actual = one_program(jnp.asarray(epochs), length)
            assert actual.dtype == jnp.float32
            assert_close(actual, expected, roundings=1)  # of a quotient


def test_warm_up_takes_a_number_beside_an_array():
    assert jax.jit(lambda epoch: schedules.warm_up(epoch, 4))(1) == 0.25
    assert jax.jit(lambda length: schedules.warm_up(1, length))(4) == 0.25


def test_no_warm_up_divides_by_nothing():
    with jax.debug_nans(True):
        assert schedules.warm_up(jnp.float32(0), jnp.float32(0)) == 1.0


@pytest.mark.parametrize("epoch", [0, 1, 199, 200, 399, 400, 1999])
def test_learning_rates_follow_their_closed_forms(epoch):
    rate = functools.partial(schedules.learning_rate, initial=0.002, epoch=epoch, epochs=2000)
    assert rate("constant") == 0.002
    reductions = sum(epoch >= boundary for boundary in range(200, 2001, 200))
    staircase = 0.002 * np.prod([0.75] * reductions)
    assert_close(rate("staircase"), staircase, roundings=2 + reductions, epsilon=EPSILON_64)
    # cos^2(a / 2) = (1 + cos a) / 2
    cosine = 0.002 * math.cos(math.pi * epoch / 4000) ** 2
    assert_close(rate("cosine"), cosine, COSINE, size=0.002, epsilon=EPSILON_64)


@pytest.mark.parametrize("name", ["linear", "", "zigzag"])
def test_an_unknown_schedule_is_refused(name):
    with pytest.raises(ValueError, match=f"schedule='{name}'; give constant, staircase or cosine"):
        schedules.learning_rate(name, 0.1, 0, 10)


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_learning_rates_of_arrays_are_those_of_numbers(schedule):
    rate = functools.partial(schedules.learning_rate, schedule)
    epochs = np.arange(40)
    expected = [rate(0.002, int(epoch), 40) for epoch in epochs]
    actual = jax.jit(jax.vmap(rate, (None, 0, None)))(jnp.float32(0.002), epochs, jnp.int32(40))
    assert actual.dtype == jnp.float32
    # A power of up to 9 is an exponential of up to 9 times a logarithm.
    roundings = {"constant": 1, "staircase": 9 + 4 + 1, "cosine": COSINE}[schedule]
    assert_close(np.broadcast_to(actual, 40), expected, roundings, size=0.002)


@pytest.mark.parametrize("epoch", [40, 41, 60, 80, 1000])
def test_a_cosine_stays_at_zero_after_the_last_epoch(epoch):
    assert schedules.learning_rate("cosine", 0.002, epoch, 40) == 0.0
    for kind in (jnp.int32, jnp.float32):
        traced = jax.jit(lambda epoch: schedules.learning_rate("cosine", 0.002, epoch, 40))
        assert traced(kind(epoch)) == 0.0


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_learning_rates_of_numbers_are_floats_and_of_arrays_float32(schedule, monkeypatch):
    # NumPy's numbers are taken, too, which the annotations do not say.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    # At half of the epochs: 0.75^5 and (1 + cos(pi / 2)) / 2.
    factor = {"constant": 1.0, "staircase": 243 / 1024, "cosine": 0.5}[schedule]
    rate = functools.partial(schedules.learning_rate, schedule)
    for numbers in ((2, 20, 40), (2.0, 20.0, 40), (np.float32(2), np.int64(20), np.int32(40))):
        assert type(rate(*numbers)) is float
        assert_close(rate(*numbers), 2 * factor, COSINE, size=2, epsilon=EPSILON_64)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            for arrays in (
                (2, jnp.int32(20), 40),
                (2, jnp.int32(20), jnp.float32(40)),
                (2.0, jnp.float32(20), jnp.int32(40)),
                (jnp.float32(2), 20, 40),
            ):
                for actual in (rate(*arrays), jax.jit(rate)(*arrays)):
                    assert (actual.dtype, actual.shape) == (jnp.float32, ())
                    assert_close(actual, 2 * factor, COSINE, size=2)
