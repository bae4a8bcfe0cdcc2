"""Parameters that need no compiling to be drawn, for models of any structure."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def variables_like(model):
    """The variables' shapes and dtypes."""
    key = jax.random.key(0)
    x = jax.ShapeDtypeStruct((1, model.data_dim), jnp.float32)
    return jax.eval_shape(model.init, {"params": key, "sample": key}, x)


def random_params(model, seed=0, scale=0.7):
    """Parameters of the model's structure, every leaf random; NumPy rounds them, not a program."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.float32(scale * rng.standard_normal(leaf.shape))),
        variables_like(model)["params"],
    )


def without_condition(params, condition):
    """Parameters of the model without condition that is the same at one condition's value."""

    def absorbed(mlp):
        first = jax.tree.map(np.asarray, mlp["Linear_0"]["Dense_0"])
        kernel, of_condition = np.split(first["kernel"], [-len(condition)])
        first = {"kernel": kernel, "bias": first["bias"] + condition @ of_condition}
        return {**mlp, "Linear_0": {"Dense_0": first}}

    return {
        part: {
            name: absorbed(network) if "mlps" in name else network
            for name, network in networks.items()
        }
        for part, networks in params.items()
    }
