"""The settings of a run become its model, its objective and its optimiser, each in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from experiments.run.setup import make_experiment, make_model, objective_of
from experiments.settings import Settings
from lvae_jax import VAE, LadderVAE
from lvae_jax.data import Dataset
from lvae_jax.objective import Objective

SIZES = {"depth": 3, "latent_sizes": (5, 4, 3, 2), "hidden_sizes": (9, 8, 7, 6)}
OF_BOTH_MODELS = {
    "activation": "tanh", "batch_norm": False, "batch_norm_epsilon": 1e-3, "variance_floor": 0.25,
    "variance_bias": 1.5,
}  # fmt: skip


def test_every_setting_of_the_model_is_the_models():
    lowest = {"data_dim": 10, "latent_sizes": (5, 4, 3), "hidden_sizes": (9, 8, 7)}
    ladder = Settings(
        **SIZES, **OF_BOTH_MODELS, own_top_down=True, wide_generative=True, mean_upward=True
    )
    assert make_model(ladder, 10, "gaussian") == LadderVAE(
        **lowest, **OF_BOTH_MODELS, observation="gaussian", own_top_down=True, mean_upward=True,
        generative_hidden_sizes=(9, 9, 8),
    )  # fmt: skip
    vae = Settings(**SIZES, **OF_BOTH_MODELS, model="vae")
    assert make_model(vae, 10, "gaussian") == VAE(
        **lowest, **OF_BOTH_MODELS, observation="gaussian"
    )


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        (
            Settings(mc_samples=3, iw_samples=5, gradient="dreg", closed_form_kl=False),
            Objective(3, 5, "dreg", 0.0, False),
        ),
        # Free bits are for K = 1 and the standard gradient alone.
        (Settings(mc_samples=3, free_bits=0.25), Objective(3, 1, "standard", 0.25, True)),
    ],
    ids=["importance-samples", "free-bits"],
)
def test_every_setting_of_the_objective_is_the_objectives(settings, objective):
    assert objective_of(settings) == objective


def test_the_optimisers_limits_and_its_epsilon_are_the_settings():
    settings = Settings(
        **SIZES, batch_size=2, max_gradient_norm=4.0, max_gradient=0.9, adam_epsilon=1.0
    )
    images, labels = np.zeros((2, 2, 3), np.uint8), np.zeros(2, np.int32)
    dataset = Dataset("black", images, labels, images, labels, "bernoulli", "dynamic")
    optimizer = make_experiment(settings, dataset).optimizer
    # Its norm is 100. A first step of Adam is g / (|g| + epsilon).
    gradient = {"a": jnp.float32([98.0, -14.0]), "b": jnp.float32([14.0, 2.0])}
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(gradient), gradient)
    # 3.92 is clipped. Adam divides by 1 - 0.999, which has 1,000 of its own roundings, and under
    # the square root half as many.
    assert_close(updates["a"], [-0.9 / 1.9, 0.56 / 1.56], roundings=8 + 500)
    assert_close(updates["b"], [-0.56 / 1.56, -0.08 / 1.08], roundings=8 + 500)
