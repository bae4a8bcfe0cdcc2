"""Your own training loop: Flax's TrainState, any optax optimiser, the paper's warm-up.

python own_loop.py        needs lvae-jax alone
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from lvae_jax import LadderVAE, data, evaluation, schedules
from lvae_jax.objective import Objective, loss_and_gradients

EPOCHS, STEPS, BATCH_SIZE = 30, 4, 250

# Noisy copies of ten prototypes, 64 binary pixels each.
rng = np.random.default_rng(0)
prototypes = rng.random((10, 64)) > 0.5
images = np.float32(rng.random((1000, 64)) < prototypes[rng.integers(0, 10, 1000)] * 0.8 + 0.1)

model = LadderVAE(64, (8, 4), (64, 32))
objective = Objective(mc_samples=2)
keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}


# optax schedules count steps; lvae_jax's count epochs.
def learning_rate(step):
    return schedules.learning_rate("cosine", 1e-2, step // STEPS, EPOCHS)


state = TrainState.create(
    apply_fn=model.apply,
    params=jax.jit(model.init)(keys, images[:1])["params"],
    tx=optax.adamw(learning_rate),
)


@jax.jit
def step(state, x, key):
    beta = schedules.warm_up(state.step // STEPS, 10)
    _, metrics, gradients = loss_and_gradients(model, state.params, x, key, beta, objective)
    return state.apply_gradients(grads=gradients), metrics


for epoch in range(EPOCHS):
    order = rng.permutation(len(images)).reshape(STEPS, BATCH_SIZE)
    for rows in order:
        key = jax.random.fold_in(jax.random.key(2), state.step)
        state, metrics = step(state, images[rows], key)
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: train ELBO {metrics.train_elbo:.1f} nats")

# Evaluation needs batch-norm statistics of the training set with the final parameters.
variables = evaluation.reestimate_batch_stats(
    model, state.params, data.as_stored, images, jax.random.key(3), batch_size=BATCH_SIZE
)
found = evaluation.log_likelihood(model, variables, images[:100], jax.random.key(4), 50)
print(f"log p(x) is about {jnp.mean(found.log_likelihood):.1f} nats")
