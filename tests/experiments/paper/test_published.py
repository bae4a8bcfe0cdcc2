"""The paper's numbers: which model has which, and which has none."""

import dataclasses

import pytest

from experiments import norb, omniglot, published
from experiments.settings import Settings


def config_of(dataset: str, defaults: Settings, **settings) -> dict:
    kept = dataclasses.replace(defaults, **settings)
    return {"dataset": dataset, "settings": kept.changing_results()}


@pytest.mark.parametrize(
    ("settings", "variant"),
    [
        ({"model": "vae", "batch_norm": False, "warmup_epochs": 0}, "VAE"),
        ({"model": "vae", "warmup_epochs": 0}, "VAE+BN"),
        ({"model": "vae"}, "VAE+BN+WU"),
        ({}, "LVAE+BN+WU"),
        ({"batch_norm": False}, None),
        ({"warmup_epochs": 0}, None),
        ({"model": "vae", "batch_norm": False}, None),
    ],
)
def test_a_variant_is_known_by_its_model_batch_norm_and_warm_up(settings, variant):
    settings = dataclasses.replace(Settings(), **settings)
    assert published.variant(settings.changing_results()) == variant


@pytest.mark.parametrize(
    ("dataset", "defaults", "settings", "number"),
    [
        ("mnist", Settings(), {}, -82.12),  # Table 1
        ("mnist", Settings(), {"depth": 4}, None),
        ("mnist", Settings(), {"init_from": "elsewhere"}, None),
        ("mnist", Settings(), {"latent_sizes": (64, 32, 16, 8, 3)}, None),
        ("mnist", Settings(), {"hidden_sizes": (512, 256, 128, 64, 16)}, None),
        ("mnist", Settings(), {"gradient": "stl"}, None),
        ("mnist", Settings(), {"free_bits": 0.1}, None),
        ("binarized_mnist", Settings(), {}, None),
        ("omniglot", omniglot.DEFAULTS, {}, -102.11),  # Table 2
        ("omniglot-standin", omniglot.DEFAULTS, {}, None),
        ("omniglot", omniglot.DEFAULTS, {"depth": 1}, None),  # a ladder of one layer is a VAE
        ("omniglot", omniglot.DEFAULTS, {"latent_sizes": (32,) * 5}, None),
        (
            "omniglot",
            omniglot.DEFAULTS,
            {"depth": 6, "latent_sizes": (64, 32, 16, 8, 4, 2), "hidden_sizes": (8,) * 6},
            None,
        ),
        ("my_own", Settings(), {}, None),
    ],
)
def test_a_model_has_the_number_of_its_data_set_variant_and_depth_alone(
    dataset, defaults, settings, number
):
    assert published.log_likelihood(config_of(dataset, defaults, **settings)) == number


@pytest.mark.parametrize("dataset", sorted(published.TABLE_2))
def test_table_2_has_five_depths_of_four_variants_but_no_ladder_of_one_layer(dataset):
    table = published.TABLE_2[dataset]
    assert sorted(table) == [1, 2, 3, 4, 5]
    defaults = {"omniglot": omniglot.DEFAULTS, "small_norb": norb.DEFAULTS}[dataset]
    assert published.EPOCHS[dataset] == defaults.epochs
    variants: dict[str, dict] = {
        "VAE": {"model": "vae", "batch_norm": False, "warmup_epochs": 0},
        "VAE+BN": {"model": "vae", "warmup_epochs": 0},
        "VAE+BN+WU": {"model": "vae"},
        "LVAE+BN+WU": {},
    }
    assert tuple(variants) == published.VARIANTS
    for depth, row in table.items():
        found = [
            published.log_likelihood(config_of(dataset, defaults, depth=depth, **settings))
            for settings in variants.values()
        ]
        assert found == list(row)
        assert (found[3] is None) == (depth == 1)
        # In every row of the paper batch norm helps, and warm-up helps on top of it.
        assert found[0] < found[1] < found[2]
