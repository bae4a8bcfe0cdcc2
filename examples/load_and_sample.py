"""Loads a trained ladder and draws from it, layer by layer.

python load_and_sample.py runs/mnist-lvae5        needs lvae-jax alone
"""

import sys

import jax
import jax.numpy as jnp

import lvae_jax

if len(sys.argv) != 2:
    sys.exit("give one folder: python load_and_sample.py runs/mnist-lvae5")
model, variables = lvae_jax.load(sys.argv[1])
print(f"{type(model).__name__} with layers {model.latent_sizes}")

# Ancestral samples: means of p(x | z_1), all layers drawn from their priors.
images = model.apply(variables, jax.random.key(0), num_samples=16, method="generate")
print(
    f"{len(images)} images of {images.shape[1]} variables, "
    f"means from {images.min():.2f} to {images.max():.2f}"
)

# What each layer adds: z_i is given, and the layers below it are drawn.
for layer, units in enumerate(model.latent_sizes, start=1):
    z = jnp.zeros((16, units))
    rngs = {"sample": jax.random.key(1)}
    given = model.apply(variables, z, layer=layer, rngs=rngs, method="generate")
    print(f"with z_{layer} at zero, pixels vary by {jnp.mean(jnp.std(given, axis=0)):.3f}")

# Reconstructions, and how likely the images are under the model.
x = jnp.round(images) if model.observation == "bernoulli" else images
again = model.apply(variables, x, rngs={"sample": jax.random.key(2)}, method="reconstruct")
bound = lvae_jax.evaluation.log_likelihood(model, variables, x, jax.random.key(3), num_samples=100)
print(f"reconstructed to {jnp.mean(jnp.abs(again - x)):.3f} per variable")
print(f"log p(x) is about {jnp.mean(bound.log_likelihood):.2f} nats")
