"""The wheel: it holds the library alone, which works with only its own dependencies present."""

import zipfile

import installed_wheel

SCRIPT = """
import importlib.util
import sys

import jax
import jax.numpy as jnp

import lvae_jax
from lvae_jax import Gaussian, LadderVAE, bounds, distributions, schedules
from lvae_jax.networks import MLP

assert lvae_jax.__file__.startswith(sys.argv[1]), lvae_jax.__file__
for absent in ("experiments", "tensorflow_datasets", "sklearn", "tqdm", "pytest"):
    assert importlib.util.find_spec(absent) is None, absent

q = Gaussian(jnp.float32(1.0), jnp.float32(2.0))
p = Gaussian(jnp.float32(0.0), jnp.float32(2.0))
assert abs(float(distributions.kl(q, p)) - 0.25) < 8 * jnp.finfo(jnp.float32).eps  # of sums below 1
posterior = distributions.precision_weighted(q, p)
assert (float(posterior.mean), float(posterior.variance)) == (0.5, 1.0)
assert schedules.warm_up(3, 4) == 0.75

x = jnp.ones((2, 5), jnp.float32)
mlp = MLP(sizes=(4, 3), activation="tanh", batch_norm=False)
outputs, _ = jax.jit(lambda key: mlp.init_with_output(key, x, False))(jax.random.key(0))
assert outputs.shape == (2, 3)
model = LadderVAE(data_dim=5, latent_sizes=(3, 2), hidden_sizes=(4, 4))
keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
terms, _ = jax.jit(model.init_with_output)(keys, x)
assert bounds.elbo(terms).shape == (2,)
print("works")
"""


def test_the_wheel_holds_the_library_alone_with_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"lvae_jax"}
    assert {"lvae_jax/py.typed", "lvae_jax/data/mnist.py", "lvae_jax/models.py"} <= set(names)


def test_the_library_requires_jax_flax_optax_jaxtyping_and_safetensors_alone(wheel):
    required = installed_wheel.required_by(wheel)
    assert required == {"jax", "flax", "optax", "jaxtyping", "safetensors"}


def test_a_script_elsewhere_works_with_only_the_librarys_own_dependencies(wheel, tmp_path):
    path = installed_wheel.install(wheel, tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert installed_wheel.run(path, script, str(path[0]), cwd=tmp_path) == "works\n"
