"""A Gaussian observation model, on data whose density is known."""

import json

import numpy as np

from experiments.run.loop import run
from experiments.settings import Settings
from lvae_jax.data import Dataset

DISTANCE = 0.05
"""Nats below the best possible expected log-likelihood, minus the entropy, that a fit may stay."""


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
        workdir=str(tmp_path / "run"),
    )
    run(settings, dataset)
    results = json.loads((tmp_path / "run" / "results.json").read_text())

    # The true density's mean log-likelihood of the same test draws, and its expectation.
    precision = np.linalg.inv(covariance)
    quadratic = np.einsum("ni,ij,nj->n", draws[5000:], precision, draws[5000:])
    log_normaliser = -0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    truth = log_normaliser - 0.5 * quadratic
    entropy = 1.5 - log_normaliser
    assert abs(np.mean(truth) + entropy) < 4 * np.std(truth) / np.sqrt(1000)

    # No model beats the truth in expectation; on 1,000 draws by no more than their spread allows.
    assert results["test_log_likelihood"] < np.mean(truth) + 0.05
    assert results["test_log_likelihood"] > np.mean(truth) - DISTANCE
    assert results["test_elbo"] < results["test_log_likelihood"] + 0.02
