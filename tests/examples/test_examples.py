"""The examples, each run as an outsider would: by the installed wheel, without a checkout."""

import re
from pathlib import Path

import installed_wheel
import jax
import jax.numpy as jnp
import pytest

from lvae_jax import LadderVAE, evaluation, save

EXAMPLES = sorted((installed_wheel.ROOT / "examples").glob("*.py"))

# What each needs besides the wheel, and what it prints.
NEEDS = {"numpyro_guide": "numpyro"}
NUMBER = r"-\d+\.\d"
PRINTS = {
    "own_loop": rf"(epoch \d+: train ELBO {NUMBER} nats\n){{3}}log p\(x\) is about {NUMBER} nats\n",
    "own_module": rf"log p\(x\) is about {NUMBER} nats; accuracy \d+%\n",
    "conv": rf"train ELBO {NUMBER}, log p\(x\) about {NUMBER}\nsamples: \(4, 28, 28\)\n",
    "condition": rf"log p\(x \| y\) is about {NUMBER} nats, and {NUMBER} for another label\n"
    r"\d+% of the samples' pixels are those of the class\n",
    "nnx": rf"ELBO {NUMBER} nats; log p\(x\) is about {NUMBER}\n",
    "numpyro_guide": rf"ELBO per image from {NUMBER} to {NUMBER} nats\n",
    "load_and_sample": r"LadderVAE with layers \(8, 4\)\n16 images of 64 variables.*\n"
    rf"(with z_\d at zero, .*\n){{2}}reconstructed to .*\nlog p\(x\) is about {NUMBER}\d nats\n",
}
ANYTHING = r"(.+\n)+"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A saved model that has learned nothing, but for its batch statistics."""

    def as_it_is(key, images):
        return images

    model, key = LadderVAE(64, (8, 4), (16, 8)), jax.random.key(0)
    x = jnp.float32(jax.random.bernoulli(key, 0.5, (50, 64)))
    params = jax.jit(model.init)({"params": key, "sample": key}, x)["params"]
    variables = evaluation.reestimate_batch_stats(model, params, as_it_is, x, key, batch_size=50)
    folder = tmp_path_factory.mktemp("trained")
    save(folder, model, variables)
    return folder


def test_every_example_is_there_and_short():
    assert PRINTS.keys() <= {path.stem for path in EXAMPLES}
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80, path


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_works_with_the_wheel_installed(example, wheel, trained, tmp_path, monkeypatch):
    needed = NEEDS.get(example.stem)
    if needed and not installed_wheel.is_installed(needed):
        pytest.skip(f"{needed} is not installed")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles sooner
    path = installed_wheel.install(wheel, tmp_path, *([needed] if needed else []))
    arguments = [str(trained)] if example.stem == "load_and_sample" else []
    printed = installed_wheel.run(path, example, *arguments, cwd=tmp_path)
    assert re.fullmatch(PRINTS.get(example.stem, ANYTHING), printed), printed
