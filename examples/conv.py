"""A convolutional bottom encoder and decoder for 28 x 28 images; the other layers stay MLPs.

python conv.py        needs lvae-jax alone
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lvae_jax import LadderVAE, evaluation, training
from lvae_jax.networks import BatchNorm


class Encoder(nn.Module):
    """x to d_1: two strided convolutions. Arrays are [..., data_dim] with any leading axes."""

    @nn.compact
    def __call__(self, x, train):
        y = x.reshape(-1, 28, 28, 1)
        for channels in (4, 8):
            y = nn.Conv(channels, (3, 3), strides=2, use_bias=False)(y)
            y = nn.gelu(BatchNorm()(y, train))
        return y.reshape(*x.shape[:-1], 7 * 7 * 8)


class Decoder(nn.Module):
    """From d(z_1), the output of the decoder's MLP, to the logits of x."""

    @nn.compact
    def __call__(self, d, train):
        y = nn.Dense(7 * 7 * 4)(d).reshape(-1, 7, 7, 4)
        y = nn.ConvTranspose(4, (3, 3), strides=(2, 2), use_bias=False)(y)
        y = nn.gelu(BatchNorm()(y, train))
        y = nn.ConvTranspose(1, (3, 3), strides=(2, 2))(y)
        return y.reshape(*d.shape[:-1], 28 * 28)


def mlp(layer, direction):
    """Replaces the network from x to d_1; None keeps the paper's."""
    return Encoder() if (layer, direction) == (1, "up") else None


def head(layer, direction):
    """Replaces the head of p(x | z_1); x counts as layer 0."""
    return Decoder() if (layer, direction) == (0, "down") else None


# Bright squares at random places.
rng = np.random.default_rng(0)
images = np.zeros((128, 28, 28), np.float32)
for image, (row, column) in zip(images, rng.integers(0, 20, (128, 2)), strict=True):
    image[row : row + 8, column : column + 8] = 0.9
images = images.reshape(-1, 28 * 28)


def binarise(key, images):
    return jnp.float32(jax.random.bernoulli(key, images))


model = LadderVAE(28 * 28, (8, 4), (32, 16), activation=jax.nn.gelu, mlp=mlp, head=head)
optimizer, key = training.make_optimizer(learning_rate=1e-2), jax.random.key(0)
state = training.init_state(model, optimizer, key)
for _ in range(10):
    state, metrics = training.train_epoch(
        model, optimizer, binarise, state, images, key, batch_size=32
    )
variables = evaluation.reestimate_batch_stats(
    model, state.params, binarise, images, key, batch_size=32
)
x = binarise(jax.random.key(1), images[:16])
bound = evaluation.log_likelihood(model, variables, x, key, num_samples=10)
generate = jax.jit(functools.partial(model.apply, num_samples=4, method="generate"))
samples = generate(variables, jax.random.key(2))
print(f"train ELBO {metrics.train_elbo:.1f}, log p(x) about {jnp.mean(bound.log_likelihood):.1f}")
print(f"samples: {samples.reshape(-1, 28, 28).shape}")
