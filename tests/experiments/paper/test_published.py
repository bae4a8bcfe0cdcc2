"""The paper's numbers: as printed, and beside its own models alone."""

import dataclasses

import pytest

from experiments import norb, omniglot, published
from experiments.settings import Settings

TABLE_2 = """
	VAE	VAE +BN	VAE +BN +WU	LVAE +BN +WU
OMNIGLOT
64	-111.21	-105.62	-104.51	_
64-32	-110.58	-105.51	-102.61	-102.63
64-32-16	-111.26	-106.09	-102.52	-102.18
64-32-16-8	-111.58	-105.66	-102.66	-102.21
64-32-16-8-4	-110.46	-105.45	-102.48	-102.11
NORB
64	2741	3198	3338	_
64-32	2792	3224	3483	3272
64-32-16	2786	3235	3492	3519
64-32-16-8	2689	3201	3482	3449
64-32-16-8-4	2654	3198	3422	3455
"""
"""Copied from the paper."""

TABLE_1 = """
VAE 1-layer + NF [18]	-85.10
IWAE, 2-layer + IW=1 [3]	-85.33
IWAE, 2-layer + IW=50 [3]	-82.90
VAE, 2-layer + VGP [21]	-81.90
LVAE, 5-layer	-82.12
LVAE, 5-layer + finetuning	-81.84
LVAE, 5-layer + finetuning + IW=10	-81.74
"""
"""Copied from the paper."""

SOURCES = {"[18]": "Rezende and Mohamed, 2015", "[3]": "Burda et al., 2015"}
SOURCES |= {"[21]": "Tran et al., 2015"}


def test_table_1_is_as_printed_each_row_with_its_source():
    rows = [line.split("\t") for line in TABLE_1.strip().splitlines()]
    expected = {}
    for name, value in rows:
        model, bracket, number = name.partition(" [")
        expected[model] = (
            float(value),
            SOURCES[bracket.strip() + number] if bracket else "the paper",
        )
    assert expected == published.TABLE_1
    assert list(published.TABLE_1) == list(expected)


def test_table_2_is_as_printed():
    header, *lines = TABLE_2.strip("\n").splitlines()
    assert tuple(name.replace(" ", "") for name in header.split("\t")[1:]) == published.VARIANTS
    printed: dict[str, dict] = {}
    for line in lines:
        units, *values = line.split("\t")
        if not values:
            table = printed.setdefault({"OMNIGLOT": "omniglot", "NORB": "small_norb"}[units], {})
            continue
        sizes = [int(size) for size in units.split("-")]
        assert sizes == published.LATENT_SIZES[: len(sizes)]
        table[len(sizes)] = tuple(None if value == "_" else float(value) for value in values)
    assert printed == published.TABLE_2


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
        ({"replicas": 2, "warmup_epochs": (0, 200)}, None),  # a model of each kind
    ],
)
def test_a_variant_is_known_by_its_model_batch_norm_and_warm_up(settings, variant):
    settings = dataclasses.replace(Settings(), **settings)
    assert published.variant(settings.changing_results()) == variant


@pytest.mark.parametrize(
    ("dataset", "defaults", "settings", "numbers"),
    [
        ("mnist", Settings(), {}, (-82.12, -85.23)),  # Table 1, and the text on Figure 3
        ("mnist", Settings(), {"depth": 3, "model": "vae"}, (None, -87.49)),
        ("mnist", Settings(), {"depth": 4}, None),
        ("mnist", Settings(), {"init_from": "elsewhere"}, None),
        ("mnist", Settings(), {"latent_sizes": (64, 32, 16, 8, 3)}, None),
        ("mnist", Settings(), {"hidden_sizes": (512, 256, 128, 64, 16)}, None),
        ("binarized_mnist", Settings(), {}, None),
        ("omniglot", omniglot.DEFAULTS, {}, (-102.11, None)),  # Table 2
        ("omniglot-standin", omniglot.DEFAULTS, {}, None),
        ("omniglot", omniglot.DEFAULTS, {"depth": 1}, None),  # a ladder of one layer is a VAE
        ("omniglot", omniglot.DEFAULTS, {"latent_sizes": (32,) * 5}, None),
        (
            "omniglot",
            omniglot.DEFAULTS,
            {"depth": 6, "latent_sizes": (64, 32, 16, 8, 4, 2), "hidden_sizes": (8,) * 6},
            None,
        ),
        ("small_norb-resized", norb.DEFAULTS, {}, (3455, None)),
        ("my_own", Settings(), {}, None),
    ],
)
def test_a_model_has_the_number_of_its_data_set_variant_and_depth_alone(
    dataset, defaults, settings, numbers
):
    found = published.find(config_of(dataset, defaults, **settings))
    assert (found and (found.log_likelihood, found.test_elbo)) == numbers
    assert found is None or found.same_settings


def test_own_arrays_have_no_published_number_whatever_their_file_is_called():
    config = config_of("mnist", Settings())
    assert published.find(config | {"experiment": "mnist"}).log_likelihood == -82.12
    assert published.find(config | {"experiment": "arrays"}) is None


@pytest.mark.parametrize(
    "other",
    [
        {"epochs": 300}, {"warmup_epochs": 30}, {"learning_rate": 2e-3}, {"schedule": "cosine"},
        {"activation": "tanh"}, {"gradient": "stl"}, {"free_bits": 0.1}, {"mc_samples": 10},
        {"iw_samples": 10}, {"beta": 0.5}, {"batch_size": 128}, {"validation": 400},
        {"eval_samples": 500}, {"eval_subset": 1000}, {"mean_upward": True}, {"ema_decay": 0.999},
        {"own_top_down": True}, {"activation": "leaky_relu_0.01"}, {"closed_form_kl": False},
        {"wide_generative": True}, {"replicas": 2, "learning_rate": (1e-3, 2e-3)},
    ],
    ids=str,
)  # fmt: skip
def test_a_number_is_said_to_be_of_other_settings_where_anything_the_paper_states_differs(other):
    found = published.find(config_of("mnist", Settings(), **other))
    assert not found.same_settings
    assert found.qualifier == ", at its own settings"


@pytest.mark.parametrize(
    "same",
    [{}, {"seed": 7}, {"replicas": 4}, {"batch_norm_epsilon": 1e-10}, {"eval_every": 1}],
    ids=str,
)
def test_what_the_paper_does_not_state_may_differ(same):
    found = published.find(config_of("mnist", Settings(), **same))
    assert found.same_settings
    assert found.qualifier == ""


def test_norbs_settings_are_the_papers_but_images_reduced_otherwise_are_not():
    defaults = norb.DEFAULTS
    assert (defaults.learning_rate, defaults.warmup_epochs, defaults.epochs) == (1e-3, 200, 2000)
    assert defaults.activation == "tanh"
    assert published.find(config_of("small_norb-resized", defaults)).same_settings
    assert not published.find(config_of("small_norb", defaults)).same_settings


@pytest.mark.parametrize("dataset", sorted(published.TABLE_2))
def test_every_cell_of_table_2_is_found_by_its_settings(dataset):
    defaults = {"omniglot": omniglot.DEFAULTS, "small_norb": norb.DEFAULTS}[dataset]
    assert published.EPOCHS[dataset] == defaults.epochs
    variants: dict[str, dict] = {
        "VAE": {"model": "vae", "batch_norm": False, "warmup_epochs": 0},
        "VAE+BN": {"model": "vae", "warmup_epochs": 0},
        "VAE+BN+WU": {"model": "vae"},
        "LVAE+BN+WU": {},
    }
    assert tuple(variants) == published.VARIANTS
    for depth, row in published.TABLE_2[dataset].items():
        found = [
            published.find(config_of(dataset, defaults, depth=depth, **settings))
            for settings in variants.values()
        ]
        assert [numbers and numbers.log_likelihood for numbers in found] == list(row)
