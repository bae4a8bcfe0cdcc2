"""Observation models other than Bernoulli, on data whose density is known."""

import json

import numpy as np
import pytest
from scipy.stats import logistic
from tolerances import threshold

from experiments.run.loop import run
from experiments.settings import Settings
from lvae_jax.data import Dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_figures")]

DISTANCE = 0.05
"""Nats below the best possible expected log-likelihood, minus the entropy, that a fit may stay."""


def fitted(dataset, workdir):
    """What results.json holds of a small ladder that was fitted to the data."""
    settings = Settings(
        depth=2,
        latent_sizes=(3, 2),
        hidden_sizes=(16, 16),
        batch_norm=False,
        epochs=60,
        warmup_epochs=10,
        batch_size=100,
        learning_rate=5e-3,
        schedule="cosine",
        eval_every=0,
        eval_samples=500,
        workdir=str(workdir),
    )
    run(settings, dataset)
    return json.loads((workdir / "results.json").read_text())


def by_chance(distance):
    """By how much a model may beat the truth on 1,000 draws; in expectation none does.

    log p - log q of a draw has the mean KL(p || q), which is at most `distance`, and twice that for
    a variance where q is close to p.
    """
    return threshold() * np.sqrt(2 * distance / 1000)


def test_a_ladder_fitted_to_draws_from_a_gaussian_comes_close_to_its_entropy(tmp_path):
    # Three correlated variables of different scales.
    loadings = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-0.3, 0.2, 0.3]])
    covariance = loadings @ loadings.T
    generator = np.random.default_rng(0)
    draws = (generator.standard_normal((6000, 3)) @ loadings.T).astype(np.float32)
    labels = np.full(6000, -1, np.int32)
    dataset = Dataset(
        "gaussian", draws[:5000], labels[:5000], draws[5000:], labels[5000:], "gaussian", "none"
    )
    results = fitted(dataset, tmp_path / "run")

    # The true density's mean log-likelihood of the same test draws, and its expectation.
    precision = np.linalg.inv(covariance)
    quadratic = np.einsum("ni,ij,nj->n", draws[5000:], precision, draws[5000:])
    log_normaliser = -0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    truth = log_normaliser - 0.5 * quadratic
    entropy = 1.5 - log_normaliser
    assert abs(np.mean(truth) + entropy) < threshold() * np.std(truth) / np.sqrt(1000)

    assert results["test_log_likelihood"] < np.mean(truth) + by_chance(DISTANCE)
    assert results["test_log_likelihood"] > np.mean(truth) - DISTANCE
    # The mean log weight of 1,000 images has about the relative deviation of a mean weight.
    error = np.sqrt((500 / results["effective_sample_size"] - 1) / 1000)
    assert results["test_elbo"] < results["test_log_likelihood"] + threshold() * error


def test_a_ladder_fitted_to_grey_values_comes_close_to_their_entropy(tmp_path):
    # Four pixels that are dark together or bright together, by rounded and clipped logistic noise.
    generator = np.random.default_rng(0)
    centres = np.array([[60.0, 40.0, 90.0, 70.0], [180.0, 200.0, 150.0, 170.0]])
    bright = generator.integers(0, 2, 6000)
    values = np.rint(generator.logistic(centres[bright], 8.0)).clip(0, 255)
    draws = values.astype(np.uint8).reshape(6000, 2, 2)
    labels = np.full(6000, -1, np.int32)
    dataset = Dataset(
        "grey", draws[:5000], labels[:5000], draws[5000:], labels[5000:],
        observation="discretized_logistic", binarisation="none",
    )  # fmt: skip
    results = fitted(dataset, tmp_path / "run")

    # The mass of each grey value under each of the two means, from the logistic's distribution.
    edges = np.concatenate([[-np.inf], np.arange(255) + 0.5, [np.inf]])
    mass = np.diff(logistic.cdf(edges, centres[..., None], 8.0))  # [2, 4, 256]
    pixels = np.arange(4)
    by_mean = [np.log(m[pixels, draws[5000:].reshape(-1, 4)]).sum(axis=1) for m in mass]
    truth = np.logaddexp(*by_mean) - np.log(2)
    # A model of independent pixels loses their total correlation, 3 ln 2 nats; this one a tenth at
    # most.
    distance = 0.3 * np.log(2)
    assert results["test_log_likelihood"] < np.mean(truth) + by_chance(distance)
    assert results["test_log_likelihood"] > np.mean(truth) - distance
