"""Extreme settings and data: a run ends with finite results, or with one line that says why not.

Whole runs, as the command line makes them: settings that fit together, then `run`. An error that is
not foreseen, a number that is not finite in a file, or a warning, which is an error here, fails.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_params
from tolerances import EPSILON

from experiments import arrays, cli
from experiments import settings as settings_lib
from experiments.errors import NonFiniteError, SettingsError
from experiments.run.loop import run
from experiments.settings import Settings
from lvae_jax import VAE, LadderVAE, Objective, bounds, evaluation, training
from lvae_jax.data import Dataset, as_stored

SETTINGS = Settings(
    depth=2,
    latent_sizes=(1, 2),
    hidden_sizes=(8, 1),
    epochs=3,
    warmup_epochs=1,
    batch_size=4,
    eval_every=2,
    eval_samples=7,
)
"""Of layers that have a width of one, beside others."""

ALONE = {"batch_size": 1, "batch_norm": False, "variance_floor": 1e-10}
"""A batch of one, without batch norm, and what lets the variances of real values collapse."""


def dataset(images, test_images=None, observation="bernoulli") -> Dataset:
    """Images [n, ...] as a data set; they are the test images too where no others are given."""
    images = np.asarray(images)
    test_images = images if test_images is None else np.asarray(test_images)
    binarisation = "dynamic" if observation == "bernoulli" else "none"
    labels = [np.full(len(part), -1, np.int32) for part in (images, test_images)]
    return Dataset("extreme", images, labels[0], test_images, labels[1], observation, binarisation)


def grey(number: int = 8, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (number, *shape)).astype(np.uint8)


def one_image() -> Dataset:
    """A single image of real values, to train and to test on."""
    return dataset(np.float32(grey(1) / 255), observation="gaussian")


def refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} in a file")


def numbers_of(value) -> list[float]:
    """All numbers within a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers_of(part)]
    return [value] if isinstance(value, int | float) else []


def finite_json(text: str):
    """A JSON value; NaN and infinity, which are no JSON, fail."""
    value = json.loads(text, parse_constant=refuse_constant)
    assert all(map(math.isfinite, numbers_of(value)))
    return value


def outcome(workdir: Path, data: Dataset, **changed) -> dict | str:
    """results.json of a run, all of whose files hold finite numbers; or the line it ends with."""
    settings = dataclasses.replace(SETTINGS, workdir=str(workdir), **changed)
    try:
        settings_lib.check(settings)
        run(settings, data)
    except (SettingsError, NonFiniteError) as error:
        message = str(error)
        assert message
        assert message.splitlines() == [message]
        assert not (workdir / "results.json").exists()
        if (workdir / "metrics.jsonl").exists():
            for line in (workdir / "metrics.jsonl").read_text().splitlines():
                finite_json(line)
        return message
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        finite_json(line)
    assert (workdir / "report.html").exists()
    return finite_json((workdir / "results.json").read_text())


# Settings


def test_a_batch_of_one_with_batch_norm_is_refused_with_what_to_do(tmp_path):
    message = outcome(tmp_path / "run", dataset(grey()), batch_size=1)
    assert message == (
        "--batch_size=1: batch normalisation has nothing to normalise over; give at least 2, or "
        "--nobatch_norm"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_twelve_layers_run(tmp_path):
    results = outcome(
        tmp_path / "run",
        dataset(grey()),
        depth=12,
        latent_sizes=(3, *[2] * 10, 1),
        hidden_sizes=(4,) * 12,
    )
    assert len(results["kl_per_layer"]) == len(results["active_units"]) == 12


@pytest.mark.slow
@pytest.mark.parametrize(("latent", "hidden"), [(4096, 1), (2, 4096)])
def test_a_width_of_4096_runs(tmp_path, latent, hidden):
    results = outcome(
        tmp_path / "run",
        dataset(grey()),
        depth=1,
        latent_sizes=(latent,),
        hidden_sizes=(hidden,),
        epochs=1,
    )
    assert len(results["kl_per_unit"][0]) == latent


@pytest.mark.parametrize(("observation", "changed"), [("bernoulli", {}), ("gaussian", ALONE)])
def test_a_learning_rate_of_a_thousand_ends_with_a_line_or_with_finite_results(
    tmp_path, observation, changed
):
    data = dataset(grey()) if observation == "bernoulli" else one_image()
    found = outcome(tmp_path / "run", data, learning_rate=1e3, epochs=8, **changed)
    if isinstance(found, str):
        assert re.fullmatch(
            r"(epoch \d, step \d+: .+ is (nan|-?inf)(; the last checkpoint in .+ is kept)?|"
            r"evaluated after \d epochs?: the .+ is not finite)\. Try a smaller --learning_rate .+",
            found,
        )


# Data


def test_a_batch_of_more_than_the_one_training_image_is_refused(tmp_path):
    message = outcome(tmp_path / "run", dataset(grey(1)), batch_size=2)
    assert message == "--batch_size=2: extreme has 1 training image; give at most that"


@pytest.mark.parametrize("validation", [7, 8, 9])
def test_holding_out_more_than_a_batch_leaves_is_refused(tmp_path, validation):
    message = outcome(tmp_path / "run", dataset(grey(8)), batch_size=2, validation=validation)
    assert message == (
        f"--batch_size=2 --validation={validation}: extreme has 8 training images; give at most "
        "that in all"
    )


@pytest.mark.parametrize("level", [0, 100, 255])
def test_constant_images_run(tmp_path, level):
    images = np.full((8, 3, 4), level, np.uint8)
    results = outcome(tmp_path / "run", dataset(images))
    assert [len(layer) for layer in results["kl_per_unit"]] == [1, 2]
    if level in (0, 255):  # what is certain can cost little, and never gain
        assert -12 * math.log(2) - 20 < results["test_log_likelihood"] <= 0


def test_one_image_of_real_values_whose_variance_collapses_runs_in_batches_of_one(tmp_path):
    results = outcome(
        tmp_path / "run", one_image(), epochs=120, learning_rate=0.05, eval_every=0, **ALONE
    )
    # A density grows without a limit but the floor's: no value has one above N(0; 0, 1e-10).
    assert 0 < results["test_log_likelihood"] < 12 * -0.5 * math.log(2 * math.pi * 1e-10)
    assert results["test_log_likelihood_standard_error"] is None  # of one test image


@pytest.mark.parametrize("scale", [1e-20, 1e10])
def test_real_values_of_any_scale_run_or_end_with_a_line(tmp_path, scale):
    images = np.float32(scale * np.random.default_rng(1).standard_normal((8, 12)))
    found = outcome(tmp_path / "run", dataset(images, observation="gaussian"))
    if scale > 1 and isinstance(found, str):
        # The squares of such values are what is added up, and what their variance is fitted to.
        quantity = r"(log p\(x \| z_1\)|the loss|the \w+ variance of z_\d)"
        assert re.match(rf"epoch \d, step \d+: {quantity} is ", found)
    else:
        assert isinstance(found, dict), found


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """A function of images in a file: the one line of their command, before it makes anything."""

    def line(images: np.ndarray, **changed) -> str:
        monkeypatch.chdir(tmp_path)
        np.save("images.npy", images)
        settings = dataclasses.replace(arrays.DEFAULTS, train="images.npy", **changed)
        with pytest.raises(SystemExit) as stopped, cli.errors_in_one_line():
            run(settings, arrays.load(settings))
        found = capsys.readouterr()
        assert (stopped.value.code, found.out) == (2, "")
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]
        return found.err

    return line


def test_one_image_in_a_file_is_refused_in_one_line(refusal):
    assert refusal(grey(1)).startswith(
        "error: images.npy holds too few images (1) to hold out 0.1 of them"
    )


def test_a_million_columns_are_refused_in_one_line(refusal):
    line = refusal(
        np.zeros((4, 1_000_000), bool),
        batch_size=2,
        depth=1,
        latent_sizes=(2,),
        hidden_sizes=(1_000_000,),
    )
    assert line.startswith(
        "error: the run needs about 64.0 TB of memory (parameters, their gradients and moments "
        "64.0 TB, data 16 MB) and "
    )
    assert "are available; give smaller --hidden_sizes, or images of fewer values" in line


# Variances at their floor


def collapsed(model, raw: float):
    """Parameters whose heads all give the raw variance, so that softplus is nothing or huge."""

    def with_raw_variance(path, leaf):
        names = [getattr(entry, "key", "") for entry in path]
        head = any(name.startswith(("heads_", "observation_head")) for name in names)
        if not head or names[-1] != "bias":
            return leaf
        return leaf.at[len(leaf) // 2 :].set(raw)

    return jax.tree_util.tree_map_with_path(with_raw_variance, random_params(model))


@pytest.mark.parametrize("raw", [-1e4, 1e4])
@pytest.mark.parametrize(
    ("model_class", "floor", "gradient"),
    [
        (LadderVAE, 1e-10, "standard"),
        (LadderVAE, 1e-10, "stl"),
        (LadderVAE, 1e-10, "dreg"),
        (VAE, 1e-5, "standard"),
    ],
)
def test_variances_at_their_floor_or_huge_leave_bounds_and_gradients_finite(
    model_class, raw, floor, gradient
):
    model = model_class(
        4, (3, 2), (6, 5), observation="gaussian", batch_norm=False, variance_floor=floor
    )
    params = collapsed(model, raw)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((5, 4)), jnp.float32)
    optimizer = training.make_optimizer(1e-3)
    state = training.fresh_state(params, optimizer, model.depth)
    key = jax.random.key(1)
    terms = jax.jit(model.apply)({"params": params}, x, rngs={"sample": key})
    limit = floor if raw < 0 else 1e4
    for layer in (*terms.posterior[1:], *terms.prior[:-1]):
        assert np.all(np.abs(np.log(layer.variance / limit)) < 1)
    state, metrics = training.train_step(
        model, optimizer, state, x, key, objective=Objective(gradient=gradient)
    )
    for leaf in jax.tree.leaves((state, metrics, bounds.elbo(terms))):
        assert np.all(np.isfinite(leaf))
    before, after = jax.tree.leaves(params), jax.tree.leaves(state.params)
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("raw", [-1e4, 1e4])
def test_a_log_likelihood_of_collapsed_variances_is_finite(raw):
    model = LadderVAE(4, (3, 2), (6, 5), observation="gaussian", batch_norm=False)
    variables = {"params": collapsed(model, raw)}
    x = jnp.asarray(np.random.default_rng(2).standard_normal((5, 4)), jnp.float32)
    key = jax.random.key(1)
    result = evaluation.log_likelihood(model, variables, x, key, num_samples=20, chunk_size=5)
    assert np.all(np.isfinite(result.log_likelihood))
    assert np.all(
        (result.effective_sample_size >= 1)
        & (result.effective_sample_size <= 20 * (1 + 8 * EPSILON))
    )
    elbo = evaluation.elbo(model, variables, as_stored, x, key)
    assert np.all(np.isfinite(np.concatenate([np.ravel(a) for a in jax.tree.leaves(elbo)])))
