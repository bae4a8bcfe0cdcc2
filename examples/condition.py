"""A ladder conditioned on labels: samples of one class at a time.

python condition.py        needs lvae-jax alone
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lvae_jax import LadderVAE, evaluation, training

# Noisy copies of ten prototypes, 64 binary pixels each.
rng = np.random.default_rng(0)
prototypes = rng.random((10, 64)) > 0.5
labels = rng.integers(0, 10, 1000)
x = np.float32(rng.random((1000, 64)) < prototypes[labels] * 0.8 + 0.1)
y = jax.nn.one_hot(labels, 10)

# All MLPs, upward and downward, get y as a further input.
model = LadderVAE(64, (8, 4), (64, 32), condition_dim=10)
optimizer = optax.adamw(1e-2)


def preprocess(key, images):  # these are x already; binarisation of grey values would go here
    return images


state = training.init_state(model, optimizer, jax.random.key(0))
for _ in range(15):
    state, metrics = training.train_epoch(
        model, optimizer, preprocess, state, x, jax.random.key(1), batch_size=250, condition=y
    )

variables = evaluation.reestimate_batch_stats(
    model, state.params, preprocess, x, jax.random.key(2), batch_size=250, condition=y
)


# log p(x | y) for the right label and for another one.
def log_likelihood(y):
    key = jax.random.key(3)
    bound = evaluation.log_likelihood(model, variables, x[:50], key, 50, condition=y[:50])
    return jnp.mean(bound.log_likelihood)


right, wrong = log_likelihood(y), log_likelihood(jnp.roll(y, 1, axis=1))
print(f"log p(x | y) is about {right:.1f} nats, and {wrong:.1f} for another label")

# Three samples of every class, as probabilities of ones.
wanted = jax.nn.one_hot(jnp.repeat(jnp.arange(10), 3), 10)
generate = jax.jit(functools.partial(model.apply, num_samples=30, method="generate"))
samples = generate(variables, jax.random.key(4), condition=wanted)
agree = np.mean((samples > 0.5) == np.repeat(prototypes, 3, axis=0))
print(f"{agree:.0%} of the samples' pixels are those of the class")
