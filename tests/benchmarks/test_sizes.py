"""The sizes that the floor is made of are those of the model."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from benchmarks import products
from benchmarks.sizes import PAPER, Sizes
from lvae_jax import LadderVAE

SMALL = Sizes(12, (4, 3, 2), (8, 6, 5))


@pytest.mark.parametrize("sizes", [PAPER, SMALL, SMALL.lowest(1), SMALL.widened(4)])
def test_linear_layers_are_those_of_the_models_parameters(sizes):
    model = LadderVAE(*sizes)
    key = jax.random.key(0)
    x = jnp.zeros((1, sizes.data_dim), jnp.float32)
    params = jax.eval_shape(model.init, {"params": key, "sample": key}, x)["params"]

    def kernels(part):
        return sorted(leaf.shape for leaf in jax.tree.leaves(params[part]) if leaf.ndim == 2)

    assert sorted(sizes.upward()) == kernels("inference")
    assert sorted(sizes.downward()) == kernels("generative")


def test_layers_follow_each_other():
    assert SMALL.upward()[:4] == [(12, 8), (8, 8), (8, 8), (8, 6)]
    assert SMALL.downward()[:3] == [(2, 5), (5, 5), (5, 6)]
    assert SMALL.downward()[-3:] == [(4, 8), (8, 8), (8, 12)]


def _flops_of_products(function):
    """Twice the multiplications of every product in the program that a function runs."""
    dots = [
        e for e in _equations(jax.make_jaxpr(function)().jaxpr) if str(e.primitive) == "dot_general"
    ]
    total = 0
    for dot in dots:
        ((contracted, _), _) = dot.params["dimension_numbers"]
        rows = dot.outvars[0].aval.size
        total += 2 * rows * dot.invars[0].aval.shape[contracted[0]]
    return len(dots), total


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


def test_the_floor_of_a_step_has_three_products_a_layer_but_two_at_the_images():
    layers = len(SMALL.upward() + SMALL.downward())
    count, flops = _flops_of_products(products.training_step(SMALL, 16))
    assert count == 3 * layers - 1
    assert flops == SMALL.step_flops(16)


def test_the_floor_of_the_likelihood_has_a_product_a_layer_of_the_downward_pass():
    count, flops = _flops_of_products(products.likelihood_chunk(SMALL, 7))
    assert count == len(SMALL.downward())
    assert flops == 7 * 2 * sum(n * m for n, m in SMALL.downward())


def test_the_papers_model_has_the_operations_that_are_said():
    # As docs/performance.md says. 0.21 GFLOP more, the gradient by the images, are not needed.
    assert round(PAPER.step_flops(256) / 1e9, 2) == 2.64
    assert round(2 * sum(n * m for n, m in PAPER.downward()) / 1e6, 2) == 1.68


def test_repeated_runs_a_function_so_often():
    calls = []
    products.repeated(lambda: calls.append(None), 5)()
    assert len(calls) == 5
