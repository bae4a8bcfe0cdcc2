"""A ladder in NNX code, through Flax's bridge; its batch statistics are re-estimated at the end.

python nnx.py        needs lvae-jax alone
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.nnx import bridge

from lvae_jax import LadderVAE, bounds, data, evaluation

# Noisy copies of ten prototypes, 64 binary pixels each.
rng = np.random.default_rng(0)
prototypes = rng.random((10, 64)) > 0.5
x = np.float32(rng.random((1000, 64)) < prototypes[rng.integers(0, 10, 1000)] * 0.8 + 0.1)

linen = LadderVAE(64, (8, 4), (64, 32))


@nnx.jit
def init(x):
    model = bridge.lazy_init(bridge.ToNNX(linen, rngs=nnx.Rngs(params=0, sample=1)), x)
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


model, optimizer = init(x[:1])


@nnx.jit
def step(model, optimizer, x):
    def loss(model):
        return -jnp.mean(bounds.elbo(model(x, train=True)))

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return -value


for _ in range(60):
    elbo = step(model, optimizer, x)

# In training each batch is normalised by its own moments. For evaluation the moments of the
# training set are computed with the final parameters.
params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
variables = evaluation.reestimate_batch_stats(
    linen, params, data.as_stored, x, jax.random.key(2), batch_size=250
)
bound = evaluation.log_likelihood(linen, variables, x[:100], jax.random.key(3), 50)
print(f"ELBO {elbo:.1f} nats; log p(x) is about {jnp.mean(bound.log_likelihood):.1f}")
