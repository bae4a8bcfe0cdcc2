"""Ladder Variational Autoencoders (Sønderby et al., NeurIPS 2016) in JAX and Flax.

Pure functions hold the mathematics (`distributions`, `bounds`, `normalization`), Flax modules
compose them (`networks`, `models`), `training` and `evaluation` drive a model over a data set, and
`save` and `load` keep a trained one.
`lvae_jax.data` loads data sets; some of them need the extra `lvae-jax[experiments]`.
"""

import contextlib
import json

from jax import export

from lvae_jax import (
    bounds,
    distributions,
    evaluation,
    latents,
    objective,
    schedules,
    training,
)
from lvae_jax.distributions import Bernoulli, Gaussian
from lvae_jax.models import VAE, LadderVAE
from lvae_jax.objective import Objective
from lvae_jax.trained import load, save

__version__ = "0.2.0"

# Exported programs that return these can be serialised, and read where lvae_jax is imported.
with contextlib.suppress(ValueError):  # registered before: lvae_jax is being reloaded
    for _type in (
        Bernoulli,
        Gaussian,
        evaluation.Bidirectional,
        evaluation.ConditionalLogLikelihood,
        evaluation.ElboResult,
        evaluation.Imputation,
        evaluation.LikelihoodRatio,
        evaluation.LogLikelihood,
        latents.Latents,
    ):
        export.register_namedtuple_serialization(
            _type, serialized_name=f"lvae_jax.{_type.__name__}"
        )
    export.register_pytree_node_serialization(
        bounds.Terms,
        serialized_name="lvae_jax.Terms",
        serialize_auxdata=lambda meta: json.dumps(meta).encode(),
        deserialize_auxdata=lambda data: (tuple(json.loads(data)[0]),),
    )

__all__ = [
    "VAE",
    "Bernoulli",
    "Gaussian",
    "LadderVAE",
    "Objective",
    "bounds",
    "distributions",
    "evaluation",
    "latents",
    "load",
    "objective",
    "save",
    "schedules",
    "training",
]
