"""The first quantity of a step that is not finite, by its name: each one made so in turn."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_params

from lvae_jax import VAE, LadderVAE, Objective
from lvae_jax.diagnosis import first_nonfinite

pytestmark = pytest.mark.faults

LATENT_SIZES, HIDDEN_SIZES, DATA_DIM = (3, 2), ((6,), (5,)), 4


def model_of(kind=LadderVAE, **options):
    options = {"observation": "bernoulli", "batch_norm": False} | options
    return kind(data_dim=DATA_DIM, latent_sizes=LATENT_SIZES, hidden_sizes=HIDDEN_SIZES, **options)


params_of = functools.partial(random_params, scale=0.3)


def x_of(value: float = 1.0) -> np.ndarray:
    return np.full((5, DATA_DIM), value, np.float32)


def first(model, params, x, condition=None, **options):
    objective = Objective(**options)
    return first_nonfinite(
        model, params, jnp.asarray(x), jax.random.key(1), objective=objective, condition=condition
    )


def changed(params, changes):
    """The parameters with those of some names replaced, each by what is made of it."""

    def leaf_of(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(todo.pop(name)(leaf), leaf.dtype) if name in todo else leaf

    todo = dict(changes)
    params = jax.tree_util.tree_map_with_path(leaf_of, params)
    assert not todo, f"no such parameters: {sorted(todo)}"
    return params


def constant(layer: str, value: float):
    """What makes a linear layer return `value`, whatever it is given."""
    return {
        f"{layer}/Dense_0/kernel": np.zeros_like,
        f"{layer}/Dense_0/bias": lambda bias: np.full_like(bias, value),
    }


def half(which: str, value: float):
    """A row of a Gaussian head with `value` for its means or its variances, and else zeros."""

    def make(leaf):
        units = leaf.shape[-1] // 2
        part = slice(None, units) if which == "mean" else slice(units, None)
        row = np.zeros_like(leaf)
        row[..., part] = value
        return row

    return make


def overflowing(mlp: str, head: str, which: str):
    """Finite parameters whose head's means or variances are 10 units of 1e38 added up."""
    return constant(f"{mlp}/Linear_0", 10.0) | {
        f"{head}/Linear_0/Dense_0/kernel": half(which, 1e38)
    }


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", [LadderVAE, VAE])
def test_of_finite_quantities_there_is_none(kind, batch_norm):
    model = model_of(kind, batch_norm=batch_norm)
    assert first(model, params_of(model), x_of()) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generative/heads_0/Linear_0/Dense_0/bias", np.nan),
        ("generative/observation_head/Dense_0/kernel", np.inf),
        ("inference/heads_1/Linear_0/Dense_0/kernel", -np.inf),
        ("inference/mlps_0/Linear_0/Dense_0/kernel", np.nan),
    ],
)
@pytest.mark.parametrize("kind", [LadderVAE, VAE])
def test_a_parameter_is_named(kind, name, value):
    model = model_of(kind)

    def with_last(leaf):
        leaf = np.array(leaf)
        leaf.flat[-1] = value
        return leaf

    params = changed(params_of(model), {name: with_last})
    assert first(model, params, x_of()) == f"the parameter {name} is {value}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_x_is_named(value):
    model = model_of()
    x = x_of()
    x[3, 2] = value
    assert first(model, params_of(model), x) == f"x is {value}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [LadderVAE, VAE])
def test_a_condition_is_named_after_x(kind, value):
    model, x = model_of(kind, condition_dim=2), x_of()
    labels = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0]]

    def found():
        condition = jnp.asarray(labels)
        return first(model, params_of(model), x, condition, gradient="dreg")

    assert found() is None
    labels[4, 1] = value
    assert found() == f"the condition is {value}"
    x[3, 2] = value
    assert found() == f"x is {value}"


def test_a_condition_that_is_missing_or_does_not_fit_is_refused():
    model = model_of(condition_dim=2)
    for condition in (None, jnp.zeros((5, 3)), jnp.zeros((4, 2))):
        with pytest.raises(ValueError, match="condition"):
            first(model, params_of(model), x_of(), condition)


@pytest.mark.parametrize("which", ["mean", "variance"])
@pytest.mark.parametrize("kind", [LadderVAE, VAE])
def test_a_posterior_that_overflows_is_named_and_not_what_follows_from_it(kind, which):
    # z_2 is then not finite, nor the prior of z_1, which is computed from it.
    model = model_of(kind)
    changes = overflowing("inference/mlps_1", "inference/heads_1", which)
    params = changed(params_of(model), changes)
    assert first(model, params, x_of()) == f"the posterior {which} of z_2 is inf"


@pytest.mark.parametrize("which", ["mean", "variance"])
def test_inference_from_the_bottom_is_looked_at_from_the_bottom(which):
    model = model_of(VAE)
    changes = overflowing("inference/mlps_0", "inference/heads_0", which)
    params = changed(params_of(model), changes)
    assert first(model, params, x_of()) == f"the posterior {which} of z_1 is inf"


@pytest.mark.parametrize("which", ["mean", "variance"])
@pytest.mark.parametrize("kind", [LadderVAE, VAE])
def test_a_prior_that_overflows_is_named(kind, which):
    model = model_of(kind)
    changes = overflowing("generative/mlps_1", "generative/heads_0", which)
    params = changed(params_of(model), changes)
    assert first(model, params, x_of()) == f"the prior {which} of z_1 is inf"


BLIND = constant("inference/mlps_0/Linear_0", 1.0)
"""What keeps x out of the inference."""


def test_a_density_that_overflows_is_named():
    model = model_of(observation="gaussian")
    params = changed(params_of(model), BLIND)
    # The square of 1e30 is beyond float32.
    assert first(model, params, x_of(1e30)) == "log p(x | z_1) is -inf"


def test_every_sample_is_looked_at():
    model = model_of(LadderVAE, observation="gaussian")
    # The means of x are 3e18 times the sum of six hidden units, and the density is beyond float32
    # where that is more than 3.6: in few of a thousand samples.
    head = "generative/observation_head/Linear_0/Dense_0"
    far = {f"{head}/kernel": half("mean", 3e18), f"{head}/bias": np.zeros_like}
    params = changed(params_of(model), BLIND | far)
    assert first(model, params, x_of()) is None
    assert first(model, params, x_of(), mc_samples=1000) == "log p(x | z_1) is -inf"


@pytest.mark.parametrize("kind", [LadderVAE, VAE])
def test_a_kl_that_overflows_is_named(kind):
    model = model_of(kind)
    far = {
        "inference/heads_1/Linear_0/Dense_0/kernel": np.zeros_like,
        "inference/heads_1/Linear_0/Dense_0/bias": half("mean", 1e30),
    }
    params = changed(params_of(model), far | constant("generative/mlps_1/Linear_0", 1.0))
    assert first(model, params, x_of()) == "the KL of z_2 is inf"


def test_a_sum_over_the_batch_that_overflows_is_named():
    model = model_of(observation="gaussian")
    standard = constant("generative/observation_head/Linear_0", 0.0)
    params = changed(params_of(model), BLIND | standard)
    # Of each example log p is 4 (1e19)^2 / (2 log 2) = 2.9e38, of five it is more than float32 has.
    assert first(model, params, x_of(1e19)) == "the loss is inf"


def test_a_gradient_that_overflows_by_itself_is_named():
    model = model_of(VAE, observation="gaussian", variance_floor=1e-5)
    narrow = {
        "generative/observation_head/Linear_0/Dense_0/kernel": np.zeros_like,
        "generative/observation_head/Linear_0/Dense_0/bias": half("variance", -50.0),
    }
    params = changed(params_of(model), BLIND | narrow)
    # (1e15)^2 / 1e-5 is within float32; its derivative by the variance has 1e-10 below it.
    found = first(model, params, x_of(1e15))
    assert re.fullmatch(
        r"the gradient of generative/(mlps_0|observation_head)/\S+ is (nan|-?inf)", found
    )
