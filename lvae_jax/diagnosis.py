"""Finds why a step made no update: the first quantity that is not finite, by name and layer."""

import functools
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from lvae_jax import bounds
from lvae_jax.bounds import PerLayer, Terms
from lvae_jax.models import Condition, HierarchicalVAE, LadderVAE, given
from lvae_jax.objective import ELBO, Objective, loss_and_gradients


def first_nonfinite(
    model: HierarchicalVAE,
    params: Any,
    x: Float[Array, "batch data_dim"],
    key: Key[Array, ""],
    beta: float | Float[Array, ""] = 1.0,
    objective: Objective = ELBO,
    condition: Condition = None,
) -> str | None:
    """Repeats a step and checks its quantities in the order in which they are computed.

    Args:
      model: a model.
      params: the parameters before the step.
      x: the batch.
      key: the key of the step's samples.
      beta: see `training.train_step`.
      objective: see `training.train_step`.
      condition: of each example, for a model that takes one.

    Returns:
      A text such as "the posterior variance of z_2 is inf"; None if everything is finite.

    Raises:
      ValueError: x or the condition does not have the model's shape.
    """
    terms, kl, loss, gradients = _step(model, params, x, key, beta, objective, condition)
    layers = range(model.depth)
    quantities = [(f"the parameter {name}", leaf) for name, leaf in _by_path(params)]
    quantities += [("x", x)]
    if condition is not None:
        quantities += [("the condition", condition)]
    if isinstance(model, LadderVAE):  # prior, posterior and z of a layer, then those below
        for i in reversed(layers):
            quantities += _gaussian("prior", terms, i) + _gaussian("posterior", terms, i)
            quantities += [(f"z_{i + 1}", terms.z[i])]
    else:  # inference from the bottom to the top, then the generative model down again
        for i in layers:
            quantities += [*_gaussian("posterior", terms, i), (f"z_{i + 1}", terms.z[i])]
        for i in reversed(layers):
            quantities += _gaussian("prior", terms, i)
    quantities += [("log p(x | z_1)", terms.log_px)]
    quantities += [(f"the KL of z_{i + 1}", kl[i]) for i in layers]
    quantities += [("the loss", loss)]
    quantities += [(f"the gradient of {name}", leaf) for name, leaf in _by_path(gradients)]
    for name, values in quantities:
        bad = np.asarray(values)[~np.isfinite(values)]
        if bad.size:
            return f"{name} is {bad[0]}"
    return None


@functools.partial(jax.jit, static_argnames=("model", "objective"))
def _step(
    model: HierarchicalVAE,
    params: Any,
    x: Float[Array, "batch data_dim"],
    key: Key[Array, ""],
    beta: float | Float[Array, ""],
    objective: Objective,
    condition: Condition,
) -> tuple[Terms, PerLayer, Array, Any]:
    """Terms, KL, loss and gradients as one program: one by one they take seconds to compile."""
    samples, rngs = objective.num_samples, {"sample": key}
    training = {"train": True, **given(condition)}
    terms = cast(Terms, model.apply({"params": params}, x, samples, rngs=rngs, **training))
    loss, _, gradients = loss_and_gradients(model, params, x, key, beta, objective, condition)
    return terms, bounds.kl_per_unit(terms), loss, gradients


def _gaussian(which: str, terms: Terms, i: int) -> list[tuple[str, Any]]:
    """The prior or the posterior of a layer, counted from 0."""
    p = getattr(terms, which)[i]
    return [(f"the {which} {field} of z_{i + 1}", getattr(p, field)) for field in p._fields]


def _by_path(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree of parameters by their names."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
