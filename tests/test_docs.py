"""What the pages in docs/ show works as it stands; tests/data/test_docs.py runs docs/data.md."""

import math
import re
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from random_parameters import random_params, variables_like

import lvae_jax
from lvae_jax import Gaussian, LadderVAE, bounds, evaluation
from lvae_jax.data import binarise

DOCS = Path(__file__).parents[1] / "docs"

IMAGES = np.random.default_rng(0).integers(0, 100, (256, 784)).astype(np.uint8)
"""Dark grey images: the least that a batch of 256, as on the page, can be cut out of."""

X = binarise(jax.random.key(0), jnp.asarray(IMAGES[:3]))


class Page:
    """A page whose snippets run in their order and in one namespace."""

    def __init__(self, name: str):
        self.path = DOCS / name
        self.text = self.path.read_text("utf-8")
        self.left = [*re.finditer(r"```python\n(.*?)```", self.text, re.DOTALL)]
        self.names: dict = {}

    def run_next(self, **given) -> dict:
        """Runs the next snippet as written, where the text has given these names a meaning."""
        snippet = self.left.pop(0)
        above = "\n" * self.text.count("\n", 0, snippet.start(1))  # for an error's line number
        self.names |= given
        exec(compile(above + snippet[1], self.path, "exec"), self.names)
        return self.names


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """A model in runs/mnist-lvae5 of the working folder, which the pages load."""
    monkeypatch.chdir(tmp_path)
    model = LadderVAE(784, (4, 3), (8, 8))
    params = random_params(model, scale=0.1)
    variables = evaluation.reestimate_batch_stats(
        model, params, binarise, IMAGES, jax.random.key(1), batch_size=256
    )
    lvae_jax.save("runs/mnist-lvae5/model", model, variables)
    return model


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def test_every_page_with_a_snippet_is_tested():
    pages = {path.name for path in DOCS.glob("*.md") if "```" in path.read_text("utf-8")}
    assert pages == {"data.md", "reuse.md", "latents.md"}


class ConvEncoder(nn.Module):
    """A convolution, called as the page says."""

    @nn.compact
    def __call__(self, y, train):
        del train
        convolved = nn.Conv(1, (3, 3), strides=4)(y.reshape(-1, 28, 28, 1))
        return nn.gelu(convolved.reshape(*y.shape[:-1], 7 * 7))


class ConvDecoder(nn.Module):
    """A transposed one."""

    @nn.compact
    def __call__(self, d, train):
        del train
        y = nn.Dense(7 * 7)(d).reshape(-1, 7, 7, 1)
        return nn.ConvTranspose(1, (3, 3), strides=(4, 4))(y).reshape(*d.shape[:-1], 28 * 28)


def test_the_snippets_on_your_own_code_run_in_order_and_give_what_the_page_says(loaded):
    page, batch = Page("reuse.md"), len(X)

    names = page.run_next(x=X)
    assert names["model"] == loaded
    assert names["generated"].shape == (16, 784)
    assert names["result"].log_likelihood.shape == (batch,)
    model, variables = lvae_jax.load("somewhere")
    assert model == loaded
    jax.tree.map(np.testing.assert_array_equal, variables, names["variables"])
    of_the_run = {name: names[name] for name in ("model", "variables")}

    k0, k1, k2 = jax.random.split(jax.random.key(2), 3)
    names = page.run_next(k0=k0, k1=k1, k2=k2)
    terms = names["terms"]
    assert isinstance(terms, bounds.Terms)
    assert terms.log_px.shape == (10, batch)
    assert shapes(terms.z) == ((10, batch, 64), (10, batch, 32))

    params = names["variables"]["params"]
    names = page.run_next(params=params, preprocess=binarise, images=IMAGES, key=jax.random.key(3))
    assert shapes(names["variables"]["params"]) == shapes(params)
    means = names["variables"]["batch_stats"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(means))

    names = page.run_next()
    state, metrics = names["state"], names["metrics"]
    assert (int(state.step), int(state.nonfinite)) == (100, 0)
    assert float(metrics.train_elbo) > -784 * math.log(2)  # which needs no training
    jax.tree.map(np.testing.assert_array_equal, state.evaluated, state.params)

    names = page.run_next(ConvEncoder=ConvEncoder, ConvDecoder=ConvDecoder)
    kernels = jax.eval_shape(names["model"].init, {"params": k0, "sample": k1}, X)["params"]
    assert sorted(leaf.ndim for leaf in jax.tree.leaves(kernels))[-2:] == [4, 4]

    devices = jax.device_count()
    names = page.run_next(**of_the_run)
    x = jnp.broadcast_to(X, (devices, *X.shape))
    found = names["per_device"](x, jax.random.split(jax.random.key(4), devices))
    assert found.log_likelihood.shape == (devices, batch)
    assert page.left == []


def test_every_call_of_a_model_returns_what_the_table_says():
    text = (DOCS / "reuse.md").read_text("utf-8")
    calls = re.findall(r"^\| `(model\.apply\(.*?\))` \|", text, re.MULTILINE)
    model, batch, units = LadderVAE(6, (4, 3), (5, 5)), 2, (4, 3)

    def gaussians(*leading):
        return tuple(Gaussian((*leading, n), (*leading, n)) for n in units)

    def check(terms, samples):
        assert isinstance(terms, bounds.Terms)
        assert terms.log_px.shape == (samples, batch)
        assert shapes(terms.z) == tuple((samples, batch, n) for n in units)
        assert shapes(terms.posterior) == shapes(terms.prior) == gaussians(samples, batch)

    def check_all(v, x, key):
        def call(**given):
            """The next one, with `rngs` written out."""
            code = calls.pop(0).replace("rngs=...", 'rngs={"sample": key}')
            return eval(code, {"model": model, "v": v, "x": x, "key": key, "n": 8, "i": 1, **given})

        check(call(num_samples=7, train=False, condition=None), 7)
        encoded = call()
        assert shapes(encoded) == gaussians(batch)
        inferred = call(encoded=encoded, num_samples=7)
        check(inferred, 7)
        check(call(z=inferred.z), 7)
        assert call().shape == (8, 6)
        assert call(z=inferred.z[0][0]).shape == (batch, 6)
        assert call().shape == (batch, 6)
        assert shapes(call(z_above=inferred.z[1])) == gaussians(7, batch)[0]
        assert isinstance(call(z_1=inferred.z[0]), lvae_jax.Bernoulli)

    jax.eval_shape(check_all, variables_like(model), jnp.eye(6)[:batch], jax.random.key(0))
    assert calls == []


def test_the_snippet_on_latents_runs_and_gives_what_its_comments_say(loaded):
    page, units = Page("latents.md"), loaded.latent_sizes
    names = page.run_next(x=X, key=jax.random.key(0))
    means, draws = names["means"], names["draws"]
    for latents in (means, draws):
        assert shapes(latents.posterior) == tuple(Gaussian(*2 * ((3, n),)) for n in units)
        assert shapes(latents.active) == tuple((n,) for n in units)
    for q, z, drawn in zip(means.posterior, means.z, draws.z, strict=True):
        np.testing.assert_array_equal(z, q.mean)
        assert (drawn != z).all()
    assert page.left == []


def test_the_two_lines_of_the_readme_load_a_run(loaded):
    text = (DOCS.parent / "README.md").read_text("utf-8").split("loads in two lines")[1]
    (lines,) = re.findall(r"\A.*\n\n((?: {4}.*\n){2})\n", text)
    names: dict = {}
    exec(textwrap.dedent(lines), names)
    assert names["model"] == loaded
    assert names["variables"].keys() == {"params", "batch_stats"}
