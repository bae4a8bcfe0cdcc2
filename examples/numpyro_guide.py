"""A ladder's inference as a numpyro guide: SVI trains a model that is written in numpyro.

    python numpyro_guide.py        needs lvae-jax and numpyro

The guide's z_1 is the precision-weighted product of a likelihood that a network reads from x and
the prior that z_2 implies, equations (16)-(18).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO

from lvae_jax import Gaussian, distributions
from lvae_jax.networks import MLP, GaussianHead

SIZES = {"z_2": 4, "z_1": 8}


def network(name, units, inputs):
    """d(y) and its Gaussian of `units` units, (10)-(12), without batch norm."""
    mlp = flax_module(f"{name}_mlp", MLP((32, 32), "leaky_relu", False), train=False,
                      input_shape=(1, inputs))  # fmt: skip
    head = flax_module(f"{name}_head", GaussianHead(units, False, 1e-5), train=False,
                       input_shape=(1, 32))  # fmt: skip

    def apply(y):
        d = mlp(y, train=False)
        return d, head(d, train=False)

    return apply


def normal(p):
    return dist.Normal(p.mean, jnp.sqrt(p.variance)).to_event(1)


def model(x):
    prior = network("prior", SIZES["z_1"], SIZES["z_2"])
    decoder = network("decoder", x.shape[1], SIZES["z_1"])
    with numpyro.plate("images", len(x)):
        z_2 = numpyro.sample("z_2", dist.Normal(jnp.zeros((len(x), 4)), 1.0).to_event(1))
        z_1 = numpyro.sample("z_1", normal(prior(z_2)[1]))
        logits = decoder(z_1)[1].mean
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x):
    prior = network("prior", SIZES["z_1"], SIZES["z_2"])  # shared with the model, by its name
    up_1 = network("up_1", SIZES["z_1"], x.shape[1])
    up_2 = network("up_2", SIZES["z_2"], 32)
    d_1, likelihood_1 = up_1(x)
    _, likelihood_2 = up_2(d_1)
    with numpyro.plate("images", len(x)):
        z_2 = numpyro.sample("z_2", normal(likelihood_2))
        posterior = distributions.precision_weighted(likelihood_1, Gaussian(*prior(z_2)[1]))
        numpyro.sample("z_1", normal(posterior))


rng = np.random.default_rng(0)
prototypes = rng.random((10, 64)) > 0.5
x = np.float32(rng.random((500, 64)) < prototypes[rng.integers(0, 10, 500)] * 0.8 + 0.1)
svi = SVI(model, guide, optax.adam(3e-3), Trace_ELBO())
result = svi.run(jax.random.key(0), 200, x, progress_bar=False)
before, after = (-loss / len(x) for loss in (result.losses[0], np.mean(result.losses[-20:])))
print(f"ELBO per image from {before:.1f} to {after:.1f} nats")
