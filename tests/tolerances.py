"""How far a number may lie from the right one: by the rounding of float32, or by chance.

A tolerance is derived, never tuned to the machine that a test was written on. It follows from

- rounding: `float32_error` and `assert_close`, from how often a value is rounded on its way into
  the result and from the size of what is added up, as `size_of_log_weights` finds it;
- the condition of a whole network: `value_and_error`, from what the same computation in float64
  does when its inputs change by a rounding;
- chance: `threshold`, `assert_mean` and `assert_plausible`, from `FALSE_ALARM`.
"""

import jax
import numpy as np
from scipy import stats

EPSILON = float(np.finfo(np.float32).eps)
"""The relative distance of neighbouring float32 numbers; one rounding is at most half of it."""

EPSILON_64 = float(np.finfo(np.float64).eps)
"""That of float64: of Python's numbers, of NumPy's and of the standard library's statistics."""

TINY = float(np.finfo(np.float32).tiny)
"""The smallest normal float32: a processor may take anything below it for zero."""

FALSE_ALARM = 5e-7
"""The probability that a statistical test fails although the code is right.

The suite makes fewer than 200 such checks, so it fails by chance less than once in 10,000 runs.
"""


def float32_error(roundings, size):
    """The largest error of a float32 computation, whatever the order of its operations.

    Args:
      roundings: how many operations round a value on its way into the result: 1 for a product,
        quotient or square root, 4 for exp, log, tanh and the like, and sqrt(n) for a sum of n
        terms or a matrix product over n. (Errors go up as often as down: Higham and Mary, 2019.
        `EPSILON` is twice the largest error of one operation, and six standard deviations of what
        n additions of evenly growing sums make.)
      size: the sum of the absolute values of what is added up: more than the result where terms
        cancel. For a sensitive function, its derivative times the size of its argument.

    Returns:
      roundings * EPSILON * |size|.
    """
    return roundings * EPSILON * np.abs(np.asarray(size, np.float64))


def size_of_log_weights(terms):
    """What the log weight of every sample adds up, in nats: the size of its rounding.

    The parameters are rounded, and a deviation is the difference of a sample and a mean: it has the
    errors of both.

    Args:
      terms: of a model, `bounds.Terms`.

    Returns:
      [..., samples, batch].
    """
    size = np.abs(np.float64(terms.log_px))
    for z, q, p in zip(terms.z, terms.posterior, terms.prior, strict=True):
        for g in (q, p):
            mean, variance, sample = np.float64(g.mean), np.float64(g.variance), np.float64(z)
            deviation = np.abs(sample - mean) * (np.abs(sample) + np.abs(mean) + 1) / variance
            size = size + (np.abs(np.log(2 * np.pi * variance)) + deviation).sum(-1)
    return size


def assert_close(actual, expected, roundings, size=None, epsilon=EPSILON):
    """Every element is the expected one up to `float32_error`, of its own size unless given.

    With `EPSILON_64` for an epsilon, up to the same roundings in float64.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    error = float32_error(roundings, expected if size is None else size) * (epsilon / EPSILON)
    assert_within(actual, expected, error + TINY)


def assert_within(actual, expected, tolerance):
    """Every |actual - expected| is at most the tolerance; the message names the worst element."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    shape = np.broadcast_shapes(actual.shape, expected.shape)
    assert actual.shape == shape, f"shape {actual.shape}, expected {expected.shape}"
    tolerance, expected = (np.broadcast_to(a, shape) for a in (tolerance, expected))
    with np.errstate(invalid="ignore"):
        error = np.where(actual == expected, 0.0, np.abs(actual - expected))  # equal infinities
        excess = np.where(np.isnan(error), np.inf, error - tolerance)
    worst = np.unravel_index(np.argmax(excess), shape)
    assert np.all(excess <= 0), (
        f"{actual[worst]} at {worst}, expected {expected[worst]} within {tolerance[worst]:.3g}"
    )


def assert_different(one, other, tolerance):
    """Some element differs by more than twice the tolerance, so that no rounding explains it."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    assert np.any(np.abs(one - other) > 2 * np.asarray(tolerance))


def assert_trees_within(actual, expected, error):
    """Every leaf of a pytree is the expected one, within a tree of tolerances or one for all."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves, errors = jax.tree.leaves(actual), jax.tree.leaves(error)
    errors = errors * len(leaves) if len(errors) == 1 else errors
    for one, other, tolerance in zip(leaves, jax.tree.leaves(expected), errors, strict=True):
        assert_within(one, other, tolerance)


def value_and_error(function, *inputs, roundings, draws=8, seed=0):
    """A float64 result, and the error of a float32 one from its condition, found by experiment.

    Backward error analysis: a float32 result is the exact one of slightly different inputs. So the
    inputs are changed, each number by up to `roundings` roundings of its size at random, and the
    error is the largest change of the result over a few draws, times 4 for the draws not seen.

    Args:
      function: of the inputs, computed in float64: NumPy, or JAX under `jax.enable_x64`. Or another
        float32 program, which takes float64 inputs to float32: then the tolerance holds for the
        difference of two such programs, as 4 times the change allows for the second one's error.
      *inputs: pytrees of arrays; exact numbers, such as binary data, are changed too.
      roundings: of every input before it takes effect, as in `float32_error`, all layers together.
      draws: how many changes are tried.
      seed: of the changes.

    Returns:
      The result, and a pytree like it of absolute tolerances, which are at least `roundings`
      roundings of the result itself.
    """
    rng = np.random.default_rng(seed)

    def changed(leaf):
        return leaf * (1 + roundings * EPSILON * rng.uniform(-1, 1, leaf.shape))

    inputs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), inputs)
    value = jax.tree.map(np.asarray, function(*inputs))
    others = [function(*jax.tree.map(changed, inputs)) for _ in range(draws)]

    def error(centre, *around):
        centre = np.asarray(centre, np.float64)
        change = np.max([np.abs(np.asarray(one) - centre) for one in around], axis=0)
        return 4 * change + float32_error(roundings, centre) + TINY

    return value, jax.tree.map(error, value, *others)


def threshold(comparisons=1, degrees=np.inf):
    """How many standard errors an estimate may lie from the truth, by `FALSE_ALARM`.

    Args:
      comparisons: how many estimates a test compares; together they have the false-alarm rate.
      degrees: degrees of freedom of the standard error, where it is itself an estimate.

    Returns:
      A quantile of the normal distribution, or of Student's t; two-sided.
    """
    return float(stats.t.isf(FALSE_ALARM / (2 * comparisons), degrees))


def standard_error(samples):
    """That of the mean over the first axis of independent samples."""
    samples = np.asarray(samples, np.float64)
    return samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def assert_mean(samples, expected, rounding=0.0, comparisons=None):
    """The mean over the first axis of independent samples is the expected one, element by element.

    Args:
      samples: [n, ...].
      expected: [...].
      rounding: what float32 may add to the difference, as an absolute error.
      comparisons: all of the test, where this is called more than once; else those of this call.
    """
    samples = np.asarray(samples, np.float64)
    off = samples.mean(axis=0) - expected
    limit = threshold(comparisons or off.size, len(samples) - 1) * standard_error(samples)
    assert_within(off, np.zeros_like(off), limit + rounding)


def assert_plausible(p_values):
    """No p-value of a test's comparisons is smaller than chance explains."""
    p_values = np.atleast_1d(p_values)
    assert p_values.min() > FALSE_ALARM / p_values.size, f"p = {p_values.min():.2g}"
