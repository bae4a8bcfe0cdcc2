"""A ladder inside a larger Flax module: a classifier reads z_L, and both train together.

python own_module.py        needs lvae-jax alone
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from lvae_jax import LadderVAE, bounds, data, evaluation


class ClassifyingLadder(nn.Module):
    """It has the members of `lvae_jax.models.Model`, so `evaluation` and `training` accept it."""

    ladder: LadderVAE
    classes: int

    def setup(self):
        self.readout = nn.Dense(self.classes)

    data_dim = property(lambda self: self.ladder.data_dim)
    depth = property(lambda self: self.ladder.depth)

    def __call__(self, x, num_samples=1, train=False):
        return self.with_logits(x, num_samples, train)[0]

    def with_logits(self, x, num_samples=1, train=False):
        """The ladder's terms, and class logits from z_L: [samples, batch, classes]."""
        terms = self.ladder(x, num_samples, train)
        return terms, self.readout(terms.z[-1])

    def encode(self, x, train=False):
        return self.ladder.encode(x, train)

    def infer(self, x, encoded, num_samples=1, train=False):
        return self.ladder.infer(x, encoded, num_samples, train)


# Noisy copies of ten prototypes, 64 binary pixels each.
rng = np.random.default_rng(0)
labels = rng.integers(0, 10, 1000)
x = np.float32(rng.random((1000, 64)) < (rng.random((10, 64)) > 0.5)[labels] * 0.8 + 0.1)

model = ClassifyingLadder(LadderVAE(64, (16, 8), (64, 32)), classes=10)
keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
params = jax.jit(model.init)(keys, x[:1])["params"]
optimizer = optax.adam(1e-2)
opt_state = optimizer.init(params)


@jax.jit
def step(params, opt_state, key):
    """A step of gradient ascent on the ELBO plus the log probability of the labels."""

    def loss(params):
        options = {"train": True, "rngs": {"sample": key}, "method": "with_logits"}
        terms, logits = model.apply({"params": params}, x, **options)
        log_p_labels = -optax.softmax_cross_entropy_with_integer_labels(logits, labels[None])
        return -jnp.mean(bounds.elbo(terms)) - jnp.mean(log_p_labels)

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


for i in range(60):
    params, opt_state = step(params, opt_state, jax.random.key(i))

# Evaluation needs batch-norm statistics of the training set with the final parameters.
variables = evaluation.reestimate_batch_stats(
    model, params, data.as_stored, x, jax.random.key(2), batch_size=250
)
bound = evaluation.log_likelihood(model, variables, x[:100], jax.random.key(3), num_samples=50)
with_logits = jax.jit(model.apply, static_argnames="method")
_, logits = with_logits(variables, x, rngs={"sample": jax.random.key(4)}, method="with_logits")
accuracy = np.mean(np.argmax(logits[0], axis=-1) == labels)
print(f"log p(x) is about {np.mean(bound.log_likelihood):.1f} nats; accuracy {accuracy:.0%}")
