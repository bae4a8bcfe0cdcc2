"""The shapes in the library's signatures are true: every public function runs with them enforced.

In a process of its own, since jaxtyping's hook has to come before the library is imported. Nothing
is compiled: tracing passes through every function.
"""

import subprocess
import sys

import pytest

SCRIPT = """
from jaxtyping import TypeCheckError, install_import_hook

install_import_hook("lvae_jax", "beartype.beartype")

import jax
import jax.numpy as jnp
import pytest

from lvae_jax import VAE, LadderVAE, Objective, bounds, evaluation, latents, normalization
from lvae_jax import objective, training

KEY, OLD_KEY = jax.random.key(0), jax.random.PRNGKey(0)
KEYS = jax.random.split(KEY, 8)
X, OBSERVED, Y = jnp.zeros((8, 5)), jnp.ones((8, 5), bool), jnp.zeros((8, 2))
MODELS = [
    LadderVAE(5, (3, 2), (4, 6)),
    VAE(5, (3, 2), (4, 6), observation="gaussian"),
    LadderVAE(5, (3, 2), (4, 6), observation="discretized_logistic", own_top_down=True),
    LadderVAE(5, (3, 2), ((4,), 6), condition_dim=2, mean_upward=True, batch_norm=False),
]


def identity(key, images):
    return images


def trace(model, variables):
    condition = {"condition": Y} if model.condition_dim else {}

    def call(*arguments, **options):
        rngs = {"sample": KEY}
        return model.apply(variables, *arguments, rngs=rngs, **condition, **options)

    terms = call(X, 4)
    call(X, call(X, method="encode"), 4, method="infer")
    call(X, terms.z, method="densities")
    call(X, method="reconstruct")
    for z_or_key in (KEY, OLD_KEY, jnp.zeros((8, 2))):
        call(z_or_key, num_samples=8, method="generate")
    bounds.elbo(terms)
    bounds.importance_weighted(terms, 0.5, 2)
    bounds.free_bits(terms, jnp.float32(1.0), 0.1)
    for key in (KEY, OLD_KEY, KEYS):
        evaluation.log_likelihood(model, variables, X > 0, key, 7, 3, **condition)
    for key in (KEY, OLD_KEY):
        evaluation.elbo(model, variables, identity, X, key, batch_size=3, **condition)
    params = variables["params"]
    evaluation.reestimate_batch_stats(model, params, identity, X, KEY, batch_size=3, **condition)
    if condition:
        return
    for gradient in ("standard", "stl", "dreg"):
        climbed = Objective(importance_samples=2, gradient=gradient)
        objective.loss_and_gradients(model, params, X, KEY, 1.0, climbed)
    optimizer = training.make_optimizer()
    state = training.init_state(model, optimizer, KEY)
    for key, x in ((KEY, X), (OLD_KEY, X > 0)):
        training.train_step(model, optimizer, state, x, key)
        training.train_epoch(model, optimizer, identity, state, X, key, batch_size=4)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    two = jnp.ones(2)
    training.train_replicas(
        model, optimizer, identity, states, X, KEYS[:2], two, two, batch_size=4
    )
    for key in (None, KEY):
        latents.encode(model, variables, X, key)
    if model.observation != "discretized_logistic":
        evaluation.likelihood_ratio(model, variables, X, KEY, above=1)
        evaluation.impute(model, variables, X, OBSERVED, X[0], KEY)
        evaluation.conditional_log_likelihood(model, variables, X, OBSERVED, X[0], KEY)
        evaluation.bidirectional(model, variables, KEYS)


for model in MODELS:
    jax.eval_shape(lambda v: trace(model, v), jax.eval_shape(
        lambda: model.init({"params": KEY, "sample": KEY}, X)
    ))
with pytest.raises(TypeCheckError):  # shapes that are wrong are found
    moments = normalization.Moments(jnp.zeros(3), jnp.ones(3))
    normalization.normalize(jnp.zeros((4, 3)), moments, jnp.ones(2), jnp.zeros(2))
print("true")
"""


@pytest.mark.slow
def test_every_public_function_keeps_to_its_shapes():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "true\n"), result.stderr[-3000:]
