"""Parameters that need no compiling to be drawn, for models of any structure."""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(model, seed=0, scale=0.7):
    """Parameters of the model's structure, every leaf random."""
    key = jax.random.key(0)
    x = jnp.zeros((1, model.data_dim), jnp.float32)
    like = jax.eval_shape(model.init, {"params": key, "sample": key}, x)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), like
    )
