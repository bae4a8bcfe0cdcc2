"""The commands on a trained model, on the digits, and their numbers against other computations."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_params
from scipy import optimize, stats
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from tolerances import (
    EPSILON_64,
    FALSE_ALARM,
    assert_close,
    assert_within,
    float32_error,
    threshold,
)

import lvae_jax
from experiments import certify, finished, impute, outliers, probe
from experiments.errors import SettingsError, WorkdirError
from experiments.report import report
from lvae_jax import LadderVAE, evaluation, latents
from lvae_jax.data import DataError, digits, mnist

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What somebody might send: a tiny model of the digits, and no run's files."""
    model = LadderVAE(64, (3, 2), (6, 5), batch_norm=False)
    path = tmp_path_factory.mktemp("sent")
    lvae_jax.save(path, model, {"params": random_params(model, scale=0.3)})
    return path


def results(folder, name):
    assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
    return json.loads((folder / f"{name}.json").read_text())


# The folder and its data


@pytest.mark.parametrize("name", ["~", "~no-such-user"])
def test_a_folder_whose_name_begins_with_a_tilde_is_read(name, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert finished.read_model("probe", [name]).model == lvae_jax.load(folder)[0]


def test_a_model_with_a_condition_is_refused_in_one_line(tmp_path):
    model = LadderVAE(4, (2,), (3,), batch_norm=False, condition_dim=2)
    lvae_jax.save(tmp_path, model, {"params": random_params(model)})
    with pytest.raises(WorkdirError, match="takes a condition, which probe cannot give; use lvae"):
        finished.read_model("probe", [str(tmp_path)])


def test_a_run_names_its_data_itself(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    shutil.copytree(folder, run / "model" / "0")  # as of a run with several replicas
    config = {"format": 2, "experiment": "digits", "settings": {"continuous": False}}
    (run / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(run / "model")
    for path in (run, run / "model", ".", "0"):
        found = finished.read(finished.UseSettings(), "probe", [str(path)])
        np.testing.assert_array_equal(found.dataset.test_labels, digits.load().test_labels)


@pytest.mark.parametrize("foreign", [{"a": 1}, [1], {"settings": [1]}, "text"])
def test_a_config_that_is_no_runs_does_not_count(foreign, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "config.json").write_text(json.dumps(foreign))
    model = [str(tmp_path / "model")]
    with pytest.raises(WorkdirError, match="does not say which data it was trained on"):
        finished.read(finished.UseSettings(), "probe", model)
    found = finished.read(finished.UseSettings(data="digits"), "probe", model)
    np.testing.assert_array_equal(found.dataset.test_labels, digits.load().test_labels)


def test_a_config_of_somebody_else_above_a_model_is_not_read(folder, tmp_path):
    (tmp_path / "config.json").write_text("{'no': JSON,}")
    for mine in (tmp_path / "mine", tmp_path / "my" / "own"):
        shutil.copytree(folder, mine)
        found = finished.read_model("certify", [str(mine)])
        assert found.config == {"settings": {}}


def test_a_folder_that_takes_no_results_is_refused_before_they_are_computed(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for begin in (lambda: finished.read_model("certify", [str(folder)]), lambda: report(folder)):
        with pytest.raises(WorkdirError) as refusal:
            begin()
        assert str(refusal.value) == (
            f"{folder} cannot be written to, and the results belong there; give a copy of it"
        )


def test_own_arrays_are_observed_as_the_model_observes_them(tmp_path):
    model = LadderVAE(6, (2,), (3,), batch_norm=False, observation="gaussian")
    lvae_jax.save(tmp_path, model, {"params": random_params(model)})
    images = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    np.save(tmp_path / "mine.npy", images)
    file = str(tmp_path / "mine.npy")
    settings = finished.UseSettings(data="arrays", train=file, test=file)
    found = finished.read(settings, "impute", [str(tmp_path)])
    np.testing.assert_array_equal(found.dataset.test_x(), images)


@pytest.mark.parametrize(
    ("settings", "workdirs", "message"),
    [
        ({}, [], "give one run's folder: python -m experiments.probe RUN"),
        ({}, ["nowhere"], "nowhere is not a folder"),
        ({}, ["FOLDER"], "does not say which data it was trained on; give --data"),
    ],
)
def test_what_cannot_be_read_is_one_line(settings, workdirs, message, folder):
    paths = [str(folder) if path == "FOLDER" else path for path in workdirs]
    with pytest.raises((SettingsError, WorkdirError), match=message):
        finished.read(finished.UseSettings(**settings), "probe", paths)


def test_data_that_are_observed_otherwise_are_refused(tmp_path):
    model = LadderVAE(64, (2,), (3,), batch_norm=False, observation="gaussian")
    lvae_jax.save(tmp_path, model, {"params": random_params(model)})
    message = "digits is observed as bernoulli, but the model of .* observes x as gaussian; give"
    with pytest.raises(WorkdirError, match=message):
        finished.read(finished.UseSettings(data="digits"), "impute", [str(tmp_path)])


def test_data_of_another_size_are_refused(tmp_path):
    model = LadderVAE(9, (2,), (3,), batch_norm=False)
    lvae_jax.save(tmp_path, model, {"params": random_params(model)})
    with pytest.raises(WorkdirError, match=r"have 64 values, but the model of .* takes 9"):
        finished.read(finished.UseSettings(data="digits"), "probe", [str(tmp_path)])


@pytest.mark.parametrize(
    ("command", "computes", "settings"),
    [
        (probe.probe, "representations", probe.ProbeSettings()),
        (outliers.outliers, "scores", outliers.OutlierSettings(against="others.npy")),
        (impute.impute, "draw", impute.ImputeSettings()),
        (certify.certify, "bound", certify.CertifySettings()),
    ],
)
def test_commands_compute_with_the_matmul_precision_of_the_run(
    command, computes, settings, folder, tmp_path, monkeypatch
):
    def compute(*_):
        raise InterruptedError(jax.config.jax_default_matmul_precision)

    monkeypatch.setattr(sys.modules[command.__module__], computes, compute)
    monkeypatch.chdir(tmp_path)
    np.save("others.npy", digits.load().test_images[:5])
    shutil.copytree(folder, "run/model")
    config = {"format": 2, "experiment": "digits", "settings": {"continuous": False}}
    # Without a setting, that of a run's default: None would be the device's own.
    for given, expected in ({}, "float32"), ({"matmul_precision": "tf32"}, "tensorfloat32"):
        of_run = config | {"settings": config["settings"] | given}
        Path("run/config.json").write_text(json.dumps(of_run))
        with pytest.raises(InterruptedError, match=expected):
            command(settings, "run")


# probe


def test_probe_reports_every_representation(folder, capsys):
    settings = probe.ProbeSettings(data="digits", draws=3, neighbours=3, subset=300, seed=4)
    probe.probe(settings, str(folder))
    found = results(folder, "probe")
    names = ["z_1", "z_2", "all z", "pixels", "PCA 5", "PCA 3", "PCA 2"]
    assert [entry["name"] for entry in found["representations"]] == names
    errors = found["representations"][3]["errors"]
    assert list(errors) == ["100", "300"]
    # Pixels tell binarised digits apart, if not well from 300; chance is 90 per cent.
    assert max(rate["mean"] for rate in errors["300"].values()) < 45
    assert "| pixels " in capsys.readouterr().out
    # Those of z_1 among 100 labelled images, chosen three times.
    run = finished.read(finished.UseSettings(data="digits"), "probe", [str(folder)])
    x, labels = run.train_x()[:300], run.dataset.train_labels[:300]
    with run.precision():
        train, test = (
            np.float64(latents.encode(run.model, run.variables, jnp.asarray(images)).z[0])
            for images in (x, run.dataset.test_x())
        )
    rng = np.random.default_rng(4)
    wrong = []
    for rows in (probe.labelled(labels, 100, rng) for _ in range(3)):
        classifier = KNeighborsClassifier(3).fit(train[rows], labels[rows])
        wrong.append(100 * np.mean(classifier.predict(test) != run.dataset.test_labels))
    information, error = probe.unit_information(np.float32(train), labels)
    assert found["representations"][0]["information"] == information.tolist()
    assert found["representations"][0]["information_standard_error"] == error.tolist()
    stated = found["representations"][0]["errors"]["100"]["knn"]
    assert_close(stated["mean"], np.mean(wrong), 8, epsilon=EPSILON_64)
    assert_close(stated["standard_deviation"], np.std(wrong, ddof=1), 8, 100, epsilon=EPSILON_64)
    # There is only one choice of all images.
    assert set(found["representations"][0]["errors"]["300"]["knn"]) == {"mean", "standard_error"}


def test_representations_are_the_latents_and_principal_components_of_the_images_themselves():
    model = LadderVAE(6, (3, 2), (4, 3), batch_norm=False, observation="gaussian")
    variables = {"params": random_params(model)}
    rng = np.random.default_rng(0)
    scales = [8, 6, 4, 3, 2, 1]  # far apart, so that the components are well defined
    sets = [np.float32(rng.normal(size=(40, 6)) * scales) for _ in range(2)]
    run = finished.Finished(Path(), model, variables, {"settings": {}}, digits.load())
    found, active = probe.representations(run, *sets)
    assert list(found) == ["z_1", "z_2", "all z", "pixels", "PCA 5", "PCA 3", "PCA 2"]
    encoded = [latents.encode(model, variables, jnp.asarray(x)) for x in sets]
    for features, x, latent in zip(zip(*found.values(), strict=True), sets, encoded, strict=True):
        one, two, both, pixels, *components = features
        np.testing.assert_array_equal(one, latent.z[0])
        np.testing.assert_array_equal(two, latent.z[1])
        np.testing.assert_array_equal(both, np.concatenate(latent.z, axis=1))
        np.testing.assert_array_equal(pixels, x)
        for size, component in zip((5, 3, 2), components, strict=True):
            expected = PCA(size, svd_solver="full").fit(np.float64(sets[0])).transform(x)
            signs = np.sign(np.sum(component * expected, axis=0))
            # The mean of 40 values, subtracted from each, and a sum of six products.
            roundings = np.sqrt(40) + 1 + np.sqrt(6)
            assert_close(component * signs, expected, roundings, np.abs(x).max() * 6)
    assert active == [int(np.sum(units)) for units in encoded[0].active]


def test_error_rates_are_those_of_the_nearest_neighbour_in_the_units_own_proportions():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 3)), rng.normal(size=(200, 3))
    train, test = (x * [1, 10, 0.1] + [5, 0, 0] for x in (train, test))
    labels = np.int32(train[:, 1] > 0), np.int32(test[:, 1] > 0)
    rows = np.arange(10, 50)
    found = probe.error_rates((train, test), labels, [rows], neighbours=1)["knn"]
    distance = np.sum((test[:, None] - train[None, rows]) ** 2, axis=-1)
    wrong = np.mean(labels[0][rows][distance.argmin(1)] != labels[1])
    assert_close(found["mean"], 100 * wrong, 2, epsilon=EPSILON_64)
    error = 100 * np.sqrt(wrong * (1 - wrong) / 200)
    assert_close(found["standard_error"], error, 8, epsilon=EPSILON_64)


def test_logistic_errors_are_those_of_the_penalised_likelihoods_maximum():
    rng = np.random.default_rng(1)
    train, test = rng.normal(size=(2, 300, 3)) * [1, 3, 0.5]
    labels = [np.int32(x @ [1, 1, 2] + rng.normal(size=300) > 1.5) for x in (train, test)]
    found = probe.error_rates((train, test), tuple(labels), [np.arange(300)], 1)["logistic"]
    scale = np.sqrt(np.mean(np.var(train, axis=0)))
    x, other = ((each - train.mean(0)) / scale for each in (train, test))
    sign = 2 * labels[0] - 1

    def loss(w):  # scikit-learn's, with C = 1; the intercept is not penalised
        return np.sum(np.logaddexp(0, -sign * (x @ w[:3] + w[3]))) + 0.5 * w[:3] @ w[:3]

    w = optimize.minimize(loss, np.zeros(4), method="BFGS").x
    decision = other @ w[:3] + w[3]
    assert np.abs(decision).min() > 1e-3  # of what the two optimisers leave
    wrong = np.mean((decision > 0) != labels[1])
    assert_close(found["mean"], 100 * wrong, 2, epsilon=EPSILON_64)


def test_features_that_say_nothing_have_the_error_of_the_most_frequent_class():
    labels = np.repeat([1, 0], [60, 40]), np.repeat([0, 1, 2], [10, 20, 20])
    constant, rows = np.full((100, 2), 7.0), np.arange(100)
    found = probe.error_rates((constant, constant[:50]), labels, [rows], 5)
    assert found["logistic"]["mean"] == 60
    # As do all labelled images, where as many as there are or more are to be neighbours.
    noise = np.random.default_rng(0).normal(size=(100, 2))
    assert probe.error_rates((noise, noise[:50]), labels, [rows], 500)["knn"]["mean"] == 60


PROBE = """
import numpy as np
from experiments import probe
features, labels = np.random.default_rng(0).normal(size=(2000, 3)), np.arange(2000) % 2
print(probe.error_rates((features, features), (labels, labels), [np.arange(2000)], 1)["knn"])
"""


def test_error_rates_need_no_count_of_physical_cores():
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROBE],
        env=os.environ | {"PATH": ""},  # without lscpu, which counts them
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "'mean': 0.0" in result.stdout


def test_information_is_that_of_a_discrete_unit_and_none_of_noise():
    rng = np.random.default_rng(0)
    n = 40_000
    labels = rng.permutation(np.repeat(range(4), n // 4))
    noisy, moved = labels.copy(), rng.random(n) < 0.1
    noisy[moved] = rng.permutation(noisy[moved])
    joint = np.bincount(4 * noisy + labels).reshape(4, 4) / n
    information = np.sum(joint * np.log(joint * 16))
    # Each quarter is moved apart from the others, so that every quantile lies within one.
    z = np.stack([labels, noisy, rng.integers(0, 4, n)], 1) + 0.5 * rng.random((n, 3))
    found, _ = probe.unit_information(z, labels)
    # Twice n times what quantiles within a quarter seem to know has a chi-squared distribution; its
    # mean, the number of free cells, is what the estimate is corrected by.
    cells = (probe.BINS - 1) * (4 - 1)
    error = stats.chi2.isf(FALSE_ALARM / 3, cells) / (2 * n)
    assert_within(found, [np.log(4), information, 0], error)


def test_the_error_of_information_is_that_of_leaving_out_each_image():
    rng = np.random.default_rng(0)
    n = 32_000
    labels = rng.integers(0, 2, n)
    unit = labels + rng.normal(size=n)
    _, (error,) = probe.unit_information(unit[:, None], labels)
    counts = np.zeros((probe.BINS, 2), int)
    quantiles = (stats.rankdata(unit, "ordinal").astype(int) - 1) * probe.BINS // n
    np.add.at(counts, (quantiles, labels), 1)
    without = np.zeros_like(counts, float)
    for cell in np.ndindex(counts.shape):
        left = counts.copy()
        left[cell] -= 1
        without[cell] = stats.entropy(left.sum(0)) + stats.entropy(left.sum(1))
        without[cell] -= stats.entropy(left.ravel())
    mean = np.average(without, weights=counts)
    expected = np.sqrt((n - 1) * np.average((without - mean) ** 2, weights=counts))
    # Leaving out one of m images in a cell is a derivative to a relative 1 / m.
    assert_within(error, expected, expected / counts.min())


def test_there_are_no_more_principal_components_than_values():
    model = LadderVAE(2, (5, 3), (4, 4), batch_norm=False)
    variables = {"params": random_params(model)}
    run = finished.Finished(Path(), model, variables, {"settings": {}}, digits.load())
    x = np.random.default_rng(0).random((20, 2), np.float32)
    found, _ = probe.representations(run, x, x[:5])
    assert list(found) == ["z_1", "z_2", "all z", "pixels", "PCA 2"]


def test_labelled_images_are_balanced_and_drawn_anew():
    labels = np.repeat(np.arange(5), [10, 20, 30, 40, 2])
    rng = np.random.default_rng(0)
    one, other = (probe.labelled(labels, 10, rng) for _ in range(2))
    assert np.bincount(labels[one]).tolist() == [2] * 5
    assert set(one) != set(other)
    # A class of two images gives two; the others share the rest.
    assert np.bincount(labels[probe.labelled(labels, 22, rng)]).tolist() == [5, 5, 5, 5, 2]
    assert probe.labelled(labels, 0, rng).tolist() == list(range(102))


def test_images_of_one_value_have_one_principal_component():
    model = LadderVAE(1, (2,), (3,), batch_norm=False, observation="gaussian")
    variables = {"params": random_params(model)}
    run = finished.Finished(Path(), model, variables, {"settings": {}}, digits.load())
    x = np.random.default_rng(0).random((20, 1), np.float32)
    found, _ = probe.representations(run, x, x[:5])
    for part, values in zip(found["PCA 1"], (x, x[:5]), strict=True):
        np.testing.assert_array_equal(np.abs(part), np.abs(values - x.mean(0)))


def test_labels_are_given_to_a_model_that_was_trained_without(tmp_path, capsys):
    model = LadderVAE(4, (2,), (3,), batch_norm=False)
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    labels = np.arange(60) % 2  # the fewest that can be told apart
    np.save(tmp_path / "images.npy", np.eye(4)[labels])
    np.save(tmp_path / "labels.npy", labels)
    files = {"train": str(tmp_path / "images.npy"), "train_labels": str(tmp_path / "labels.npy")}
    settings = probe.ProbeSettings(data="arrays", **files)
    probe.probe(settings, str(tmp_path / "model"))
    found = results(tmp_path / "model", "probe")
    assert (found["train_images"], found["test_images"]) == (54, 6)
    pixels = next(one for one in found["representations"] if one["name"] == "pixels")
    assert pixels["errors"]["54"]["logistic"]["mean"] == 0  # the pixels are the class
    np.save(tmp_path / "others.npy", labels[::-1] + 5)
    others = {"test": files["train"], "test_labels": str(tmp_path / "others.npy")}
    with_test = finished.UseSettings(data="arrays", **files, **others)
    dataset = finished.read(with_test, "probe", [str(tmp_path / "model")]).dataset
    np.testing.assert_array_equal(dataset.train_labels, labels)
    np.testing.assert_array_equal(dataset.test_labels, labels[::-1] + 5)
    without = dataclasses.replace(settings, train_labels="")
    with pytest.raises(WorkdirError, match="own arrays take --train_labels and --test_labels"):
        probe.probe(without, str(tmp_path / "model"))


def test_images_without_labels_cannot_be_probed(folder, monkeypatch):
    read = finished.read

    def without_labels(*arguments):
        run = read(*arguments)
        run.dataset.train_labels[:] = -1
        return run

    monkeypatch.setattr(finished, "read", without_labels)
    with pytest.raises(WorkdirError, match="has no labels of at least two classes to probe"):
        probe.probe(probe.ProbeSettings(data="digits"), str(folder))


def test_images_whose_label_is_unknown_are_not_probed(tmp_path):
    model = LadderVAE(4, (2,), (3,), batch_norm=False)
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    labels = np.arange(60) % 2
    np.save(tmp_path / "images.npy", np.eye(4)[labels])
    labels[::3] = -1
    np.save(tmp_path / "labels.npy", labels)
    files = [str(tmp_path / name) for name in ("images.npy", "labels.npy")]
    own = {"train": files[0], "test": files[0], "train_labels": files[1], "test_labels": files[1]}
    probe.probe(probe.ProbeSettings(data="arrays", **own), str(tmp_path / "model"))
    found = results(tmp_path / "model", "probe")
    assert (found["train_images"], found["test_images"]) == (40, 40)
    pixels = next(one for one in found["representations"] if one["name"] == "pixels")
    assert pixels["errors"]["40"]["knn"]["mean"] == 0  # the pixels are the class
    np.save(files[1], np.where(labels == 1, 1, -1))
    with pytest.raises(
        WorkdirError, match=r"no labels of at least two classes .* -1 means unknown"
    ):
        probe.probe(probe.ProbeSettings(data="arrays", **own), str(tmp_path / "model"))


def test_images_of_one_class_cannot_be_probed(folder):
    with pytest.raises(
        SettingsError, match="--subset=1: the first training images have labels of few"
    ):
        probe.probe(probe.ProbeSettings(data="digits", subset=1), str(folder))


# outliers


def test_detection_is_that_of_pairs_of_images():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0, 1, 300), rng.normal(1, 1, 400)
    found = outliers.detection(inside, outside)
    auroc = np.mean(outside[:, None] > inside)
    assert_close(found["auroc"], auroc, np.sqrt(700), epsilon=EPSILON_64)
    least = np.sort(outside)[80]  # 320 of 400 are at least as large
    assert_close(found["fpr80"], np.mean(inside >= least), 2, epsilon=EPSILON_64)
    order = np.argsort(-np.concatenate([inside, outside]))
    hits = np.repeat([0, 1], [300, 400])[order]
    precision = np.cumsum(hits) / np.arange(1, 701)
    auprc = np.sum(precision * hits) / 400
    assert_close(found["auprc"], auprc, np.sqrt(700), epsilon=EPSILON_64)
    # The standard error of an AUROC, from the placements of every image (DeLong et al., 1988).
    placed = (outside[:, None] > inside).astype(float)
    expected = np.sqrt(placed.mean(0).var() / 300 + placed.mean(1).var() / 400)
    stated = outliers.with_standard_errors(inside, outside, rng)["auroc"]["standard_error"]
    degrees = outliers.RESAMPLES - 1
    least, most = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], degrees) / degrees
    assert least < (stated / expected) ** 2 < most


def keys_of(images, seed=0):
    """As documented: the key of image i is the fold of i into that of the seed."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(images))


def assert_states(stated, values):
    """A JSON's number of a score is its mean over images, with the standard error."""
    values = np.float64(values)
    size = np.abs(values).max()
    assert_close(stated["mean"], values.mean(), 8, size, epsilon=EPSILON_64)
    assert_close(stated["standard_error"], stats.sem(values), 16, size, epsilon=EPSILON_64)


def test_outliers_compares_the_scores_of_both_sets(tmp_path, capsys):
    model = LadderVAE(64, (3, 2, 2), (6, 5, 4), batch_norm=False)
    variables = {"params": random_params(model, scale=0.3)}
    lvae_jax.save(tmp_path, model, variables)
    noise = np.random.default_rng(0).integers(0, 17, (40, 8, 8)).astype(np.uint8) * 15
    np.save(tmp_path / "noise.npy", noise)
    settings = outliers.OutlierSettings(
        data="digits",
        against=str(tmp_path / "noise.npy"),
        images=30,
        samples=8,
        elbo_samples=2,
        seed=3,
    )
    outliers.outliers(settings, str(tmp_path))
    found = results(tmp_path, "outliers-noise")
    assert list(found["scores"]) == ["L_8", "ELBO", "L - L^>1", "L - L^>2"]
    assert found["images"] == [30, 30]
    assert "| ELBO " in capsys.readouterr().out
    run = finished.read(finished.UseSettings(data="digits"), "outliers", [str(tmp_path)])
    sets = {"digits": run.dataset.test_x()[:30], "other": outliers.other_images(run, settings)}
    score = {name: {} for name in found["scores"]}
    for name, x in sets.items():
        with run.precision():
            estimate = evaluation.log_likelihood_program()
            likelihood = estimate(model, variables, x, keys_of(30, seed=3), 8)
            first, second = (
                evaluation.likelihood_ratio(
                    model, variables, jnp.asarray(x), jax.random.key(3), above=k, num_samples=2
                )
                for k in (1, 2)
            )
        score["L_8"][name] = np.float64(likelihood.log_likelihood)
        score["ELBO"][name] = np.float64(first.elbo)
        score["L - L^>1"][name] = np.float64(first.ratio)
        score["L - L^>2"][name] = np.float64(second.ratio)
    for name, of in score.items():
        for images, place in (("digits", "inside"), ("other", "outside")):
            assert_states(found["scores"][name]["nats"][place], of[images])
        # An outlier has a low likelihood, but a high ratio.
        higher, lower = ("other", "digits") if name.startswith("L - ") else ("digits", "other")
        auroc = np.mean(of[higher][:, None] > of[lower])
        stated = found["scores"][name]["auroc"]["mean"]
        assert_close(stated, auroc, np.sqrt(60), epsilon=EPSILON_64)


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("", "name the other images: --against=fashion_mnist"),
        ("emnist", "--against=emnist is neither one of mnist, .*, digits nor an .npy or .npz file"),
        ("arrays", "--against=arrays is neither one of mnist, .*, digits nor an .npy or .npz file"),
        ("one.npy", "has one image; a standard error over images needs at least two"),
        ("other.npy", r"has images of shape \[4, 4\], but digits of shape \[8, 8\]"),
    ],
)
def test_other_images_that_cannot_be_compared_are_one_line(against, message, folder, tmp_path):
    shapes = {"one.npy": (1, 8, 8), "other.npy": (20, 4, 4)}
    if shape := shapes.get(against):
        against = str(tmp_path / against)
        np.save(against, np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8))
    settings = outliers.OutlierSettings(data="digits", against=against)
    with pytest.raises((SettingsError, DataError), match=message):
        outliers.outliers(settings, str(folder))


def test_other_images_are_the_first_of_a_file_in_its_order(folder, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 2, (20, 8, 8)).astype(np.uint8) * 255
    np.savez(tmp_path / "both.npz", a=images, b=images[::-1])
    monkeypatch.setenv("HOME", str(tmp_path))
    run = finished.read(finished.UseSettings(data="digits"), "outliers", [str(folder)])
    for key, expected in (("a", images), ("b", images[::-1])):
        settings = outliers.OutlierSettings(against=f"~/both.npz:{key}", images=5)
        x = outliers.other_images(run, settings)
        np.testing.assert_array_equal(x, expected[:5].reshape(5, 64) / 255)
    with pytest.raises(DataError, match=r"holds a, b; name one array, as in both\.npz:a"):
        outliers.other_images(run, outliers.OutlierSettings(against="~/both.npz"))


def test_the_scores_of_an_image_do_not_depend_on_the_other_images(tmp_path):
    model = LadderVAE(4, (2,), (3,), batch_norm=False)
    variables = {"params": random_params(model)}
    run = finished.Finished(tmp_path, model, variables, {"settings": {}}, digits.load())
    x = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(np.float32)
    settings = outliers.OutlierSettings(samples=4, elbo_samples=2)
    of_all, of_some = (outliers.scores(run, rows, settings, "x") for rows in (x, x[:3]))
    assert list(of_all) == ["L_4", "ELBO"]
    for name, values in of_all.items():
        # Of two programs: six linear layers in all, with products over at most 4 numbers.
        assert_close(of_some[name], values[:3], 2 * 6 * 3, np.abs(values[:3]).max() + 10)


def test_an_array_whose_name_has_a_slash_gives_files_without(tmp_path):
    model = LadderVAE(4, (2,), (3,), batch_norm=False)
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    images = np.random.default_rng(0).integers(0, 2, (20, 4)).astype(bool)
    np.savez(tmp_path / "sets.npz", **{"a/b": images})
    own = f"{tmp_path}/sets.npz:a/b"
    settings = outliers.OutlierSettings(data="arrays", train=own, against=own)
    few = dataclasses.replace(settings, samples=2, elbo_samples=2)
    outliers.outliers(few, str(tmp_path / "model"))
    assert results(tmp_path / "model", "outliers-sets-a-b")["against"] == own


def test_other_images_of_another_dtype_than_the_runs_are_named(tmp_path):
    model = LadderVAE(4, (2,), (3,), batch_norm=False, observation="gaussian")
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(20, 4)))
    np.save(tmp_path / "grey.npy", np.arange(80, dtype=np.uint8).reshape(20, 4) + 120)
    own = finished.UseSettings(data="arrays", train=str(tmp_path / "own.npy"))
    run = finished.read(own, "outliers", [str(tmp_path / "model")])
    against = outliers.OutlierSettings(against=str(tmp_path / "grey.npy"))
    with pytest.raises(
        DataError, match=r"grey\.npy holds uint8 but own float32; give a file of float32"
    ):
        outliers.other_images(run, against)


@pytest.mark.parametrize("place", ["of_the_run", "of_the_flag"])
def test_another_data_set_is_read_from_the_runs_folder_or_the_flags(place, folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    for name in ("of_the_run", "of_the_flag"):
        (tmp_path / name / mnist.SOURCE.name / mnist.SOURCE.version).mkdir(parents=True)
    other = {"tfds_dir": str(tmp_path / "of_the_run")}
    config = {"experiment": "digits", "settings": {}, "other_settings": other}
    (run / "config.json").write_text(json.dumps(config))
    flags = {"tfds_dir": str(tmp_path / place)} if place == "of_the_flag" else {}
    trained = finished.read(finished.UseSettings(), "outliers", [str(run)])
    message = f"{place}/lvae_mnist/.* holds an incomplete data set"
    with pytest.raises(DataError, match=message):
        outliers.other_images(trained, outliers.OutlierSettings(against="mnist", **flags))
    with pytest.raises(DataError, match=message):
        finished.read(finished.UseSettings(data="mnist", **flags), "probe", [str(run)])


def test_messages_about_the_other_data_set_name_its_own_flag(folder, tmp_path):
    run = finished.read(finished.UseSettings(data="digits"), "outliers", [str(folder)])
    missing, empty = tmp_path / "missing", str(tmp_path)
    settings = outliers.OutlierSettings(against="mnist", against_dir=str(missing), tfds_dir=empty)
    with pytest.raises(DataError, match=f"--against_dir={missing} is not a folder"):
        outliers.other_images(run, settings)


def test_other_images_of_a_gaussian_run_are_grey_values_even_if_black(tmp_path, capsys):
    model = LadderVAE(4, (2,), (3,), batch_norm=False, observation="gaussian")
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    np.save(tmp_path / "grey.npy", np.arange(120, 160, dtype=np.uint8).reshape(10, 4))
    own = finished.UseSettings(data="arrays", train=str(tmp_path / "grey.npy"))
    run = finished.read(own, "outliers", [str(tmp_path / "model")])
    black = np.random.default_rng(0).integers(0, 2, (20, 4)).astype(np.uint8)
    np.save(tmp_path / "black.npy", black)
    settings = outliers.OutlierSettings(against=str(tmp_path / "black.npy"))
    noise = 256 * np.float64(outliers.other_images(run, settings)) - black
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert capsys.readouterr().err == (
        f"warning: {settings.against} runs from 0 to 1 but the images of grey from 120 to 159; "
        "rescale them if the scales differ\n"
    )
    np.save(tmp_path / "wide.npy", np.tile(np.uint8([0, 255]), (20, 2)))
    outliers.other_images(run, dataclasses.replace(settings, against=str(tmp_path / "wide.npy")))
    assert "wide.npy runs from 0 to 255 but the images of grey" in capsys.readouterr().err


def test_other_images_of_zeros_and_ones_are_these_numbers_where_the_runs_are_no_grey_values(
    tmp_path,
):
    model = LadderVAE(4, (2,), (3,), batch_norm=False, observation="gaussian")
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    np.save(tmp_path / "own.npy", np.linspace(0, 1, 40).reshape(10, 4))
    own = finished.UseSettings(data="arrays", train=str(tmp_path / "own.npy"))
    run = finished.read(own, "outliers", [str(tmp_path / "model")])
    images = np.random.default_rng(0).integers(0, 2, (20, 4)).astype(np.uint8)
    np.save(tmp_path / "binary.npy", images)
    settings = outliers.OutlierSettings(against=str(tmp_path / "binary.npy"))
    np.testing.assert_array_equal(outliers.other_images(run, settings), images)


def test_a_single_test_image_has_no_standard_error_to_state(tmp_path):
    model = LadderVAE(4, (2,), (3,), batch_norm=False)
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    images = np.random.default_rng(0).integers(0, 2, (10, 4)).astype(bool)
    np.save(tmp_path / "ten.npy", images)
    np.save(tmp_path / "one.npy", images[:1])
    ten, one = str(tmp_path / "ten.npy"), str(tmp_path / "one.npy")
    settings = outliers.OutlierSettings(data="arrays", train=ten, test=one, against=ten)
    with pytest.raises(DataError, match="ten has one test image; a standard error needs at least"):
        outliers.outliers(settings, str(tmp_path / "model"))
    np.save(tmp_path / "one.npy", images[:2])
    few = dataclasses.replace(settings, samples=2, elbo_samples=2)
    outliers.outliers(few, str(tmp_path / "model"))
    assert results(tmp_path / "model", "outliers-ten")["images"] == [2, 10]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.uint8])
def test_other_images_from_0_to_1_are_grey_values_where_the_runs_are(dtype, tmp_path, capsys):
    model = LadderVAE(4, (2,), (3,), batch_norm=False)
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    np.save(tmp_path / "grey.npy", np.arange(120, 160, dtype=np.uint8).reshape(10, 4))
    own = finished.UseSettings(data="arrays", train=str(tmp_path / "grey.npy"))
    run = finished.read(own, "outliers", [str(tmp_path / "model")])
    images = np.random.default_rng(0).integers(0, 2, (20, 4)).astype(dtype)
    np.save(tmp_path / "ones.npy", images)
    settings = outliers.OutlierSettings(against=str(tmp_path / "ones.npy"))
    np.testing.assert_array_equal(outliers.other_images(run, settings), np.float32(images))
    assert capsys.readouterr().err == ""  # they are on another scale only in uint8
    np.save(tmp_path / "ones.npy", 17 * np.float32(images))
    with pytest.raises(DataError, match="values from 0 to 17; give grey values in uint8, or val"):
        outliers.other_images(run, settings)


def test_grey_images_are_binarised_once_where_the_runs_are_binary(tmp_path):
    model = LadderVAE(4, (2,), (3,), batch_norm=False)
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    rng = np.random.default_rng(0)
    np.save(tmp_path / "binary.npy", rng.integers(0, 2, (10, 4)).astype(np.float32))
    own = finished.UseSettings(data="arrays", train=str(tmp_path / "binary.npy"))
    run = finished.read(own, "outliers", [str(tmp_path / "model")])
    assert run.dataset.binarisation == "fixed"
    grey = np.repeat(np.uint8([[0, 51, 204, 255]]), 4000, axis=0)
    np.save(tmp_path / "grey.npy", grey)
    settings = outliers.OutlierSettings(against=str(tmp_path / "grey.npy"), images=4000)
    x = outliers.other_images(run, settings)
    assert set(np.unique(x)) == {0.0, 1.0}
    deviations = np.sqrt([0, 0.2 * 0.8, 0.8 * 0.2, 0])
    assert_within(x.mean(0), [0, 0.2, 0.8, 1], threshold(2) * deviations / np.sqrt(len(x)))


def test_a_model_of_one_layer_has_its_elbo_as_a_score(tmp_path):
    model = LadderVAE(64, (3,), (6,), batch_norm=False)
    variables = {"params": random_params(model, scale=0.3)}
    lvae_jax.save(tmp_path, model, variables)
    run = finished.read(finished.UseSettings(data="digits"), "outliers", [str(tmp_path)])
    x = run.dataset.test_x()[:20]
    settings = outliers.OutlierSettings(samples=2, elbo_samples=2000)
    found = outliers.scores(run, x, settings, "digits")
    assert list(found) == ["L_2", "ELBO"]
    drawn = evaluation.elbo(
        model, variables, lambda key, x: x, jnp.asarray(x), jax.random.key(1), num_samples=2000
    )
    # Two means over 2,000 samples of every image, of which one has less than 10 nats of noise.
    error = threshold() * 10 * np.sqrt(2 / (2000 * len(x)))
    assert abs(found["ELBO"].mean() - drawn.elbo) < error


# impute


def test_images_with_all_or_no_values_are_drawn_again():
    observed = impute.observed_entries("0.5", (2,), 500, 0)
    assert set(observed.sum(1)) == {1}
    share = observed[:, 0].mean()
    assert abs(share - 0.5) < threshold() * np.sqrt(0.25 / 500)
    with pytest.raises(SettingsError, match="leaves an image with all or no values"):
        impute.observed_entries("1e-9", (2,), 5, 0)


def test_masks_are_as_asked():
    shape = (4, 6)
    bottom = ~impute.observed_entries("bottom", shape, 3, 0).reshape(3, *shape)
    assert bottom[:, 2:].all()
    assert not bottom[:, :2].any()
    share = ~impute.observed_entries("0.25", (100, 100), 20, 0)
    assert abs(share.mean() - 0.25) < threshold() * np.sqrt(0.25 * 0.75 / share.size)
    assert not np.array_equal(share[0], share[1])
    assert not np.array_equal(share, ~impute.observed_entries("0.25", (100, 100), 20, 1))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 6, 5), 1), ((3, 6, 5), 1), ((6, 5, 3), 0), ((6, 5, 1), 0), ((3, 3, 3), 0), ((1, 7), 1)],
)
def test_the_lower_half_of_an_image_is_that_of_its_height(shape, axis):
    observed = impute.observed_entries("bottom", shape, 2, 0).reshape(2, *shape)
    upper, lower = np.split(observed, [shape[axis] // 2], axis=axis + 1)
    assert upper.all()
    assert not lower.any()


def test_a_mask_may_be_a_file(tmp_path, monkeypatch):
    gone = np.eye(4, 6, dtype=bool)
    np.save(tmp_path / "mask.npy", gone)
    with (tmp_path / "packed.npy").open("wb") as file:
        np.savez(file, gone)  # an .npz file's content decides, not its name
    monkeypatch.setenv("HOME", str(tmp_path))
    for missing in (str(tmp_path / "mask.npy"), "~/mask.npy", "~/packed.npy"):
        observed = impute.observed_entries(missing, (4, 6), 2, 0)
        np.testing.assert_array_equal(observed.reshape(2, 4, 6), [~gone, ~gone])
    for missing, message in [
        ("1.5", "neither a fraction between 0 and 1"),
        ("top", "neither a fraction between 0 and 1"),
    ]:
        with pytest.raises(SettingsError, match=message):
            impute.observed_entries(missing, (4, 6), 2, 0)
    with pytest.raises(SettingsError, match=r"has the shape \[4, 6\]; give \[6, 4\]"):
        impute.observed_entries(str(tmp_path / "mask.npy"), (6, 4), 2, 0)
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "text.npy", np.full((4, 6), "gone"))
    for missing, message in [
        ("none.npy", "none.npy is not a file; give an .npy or .npz file"),
        ("empty.npy", "not an .npy or .npz file"),
        ("text.npy", "holds <U4; save an array of bools or real numbers"),
    ]:
        with pytest.raises(DataError, match=message):
            impute.observed_entries(str(tmp_path / missing), (4, 6), 2, 0)
    np.save(tmp_path / "mask.npy", np.ones((4, 6)))
    with pytest.raises(SettingsError, match="leaves an image with all or no values"):
        impute.observed_entries(str(tmp_path / "mask.npy"), (4, 6), 2, 0)


def test_neighbours_are_the_nearest_by_what_is_observed():
    rng = np.random.default_rng(0)
    train_x = (rng.random((50, 12)) < 0.4).astype(np.float32)
    x = (rng.random((5, 12)) < 0.4).astype(np.float32)
    observed = rng.random((5, 12)) < 0.7
    found = impute.of_neighbours(x, observed, train_x, 1, "bernoulli")
    average = (train_x.sum(0) + 1) / 52
    probability = 1 / (1 + np.exp(-found.logits))
    for i in range(5):
        distance = np.sum((train_x - x[i])[:, observed[i]] ** 2, axis=1)
        candidates = (train_x[distance == distance.min()] + average) / 2
        # A logit and its inverse, of two logarithms and an exponential.
        assert np.abs(candidates - probability[i]).max(1).min() < float32_error(16, 1)
    independent = impute.of_neighbours(x, observed, train_x, 0, "bernoulli")
    assert_close(1 / (1 + np.exp(-independent.logits)), np.tile(average, (5, 1)), 16)
    everyone = impute.of_neighbours(x, observed, train_x, 50, "gaussian")
    exact = np.tile(np.float64(train_x), (5, 1, 1))
    mean, variance = exact.mean(1), exact.var(1) + 1e-4
    roundings = np.sqrt(50) + 4  # of sums of 50 images and of one more, which is their mean
    assert_close(everyone.mean, mean, roundings)
    assert_close(everyone.variance, variance, roundings, size=mean + 2 * mean**2)  # x^2 is x


def test_neighbours_of_values_far_from_zero_are_the_nearest_and_their_moments_those_of_float64():
    rng = np.random.default_rng(0)
    offset = np.float32(4096)  # float32 keeps 2^-11 there
    train_x, x = (np.float32(rng.normal(size=(n, 6))) + offset for n in (40, 3))
    observed = np.arange(18).reshape(3, 6) % 3 > 0
    exact = np.float64(train_x)
    average, spread = exact.mean(0), exact.var(0)  # of the average image
    for number in (0, 1, 5):
        found = impute.of_neighbours(x, observed, train_x, number, "gaussian")
        for i in range(3):
            distance = [np.sum((row - x[i])[observed[i]] ** 2) for row in exact]
            mixed = np.array([*exact[np.argsort(distance)[:number]], average])
            mean = mixed.mean(0)
            variance = mixed.var(0) + spread / (number + 1) + impute.LEAST_VARIANCE
            # The average of 40 values near the offset rounds to a few of its units.
            error = float32_error(8, float(offset))
            assert_within(found.mean[i], mean, error)
            assert_within(found.variance[i], variance, 8 * error * 4 + error**2)


def test_images_of_one_value_cannot_be_imputed():
    for missing in ("0.5", "bottom"):
        with pytest.raises(SettingsError, match="of a single value have nothing left to impute"):
            impute.observed_entries(missing, (1,), 4, seed=0)


def test_impute_takes_bernoulli_and_gaussian_x(tmp_path):
    model = LadderVAE(64, (2,), (8,), observation="discretized_logistic", batch_norm=False)
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    grey = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    np.save(tmp_path / "grey.npy", grey)
    settings = impute.ImputeSettings(data="arrays", train=str(tmp_path / "grey.npy"))
    with pytest.raises(WorkdirError, match="model observes x as discretized_logistic; give a run"):
        impute.impute(settings, str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("observation", "expected"), [("bernoulli", [1 / 2, 2 / 3]), ("gaussian", [0.5, 0.7])]
)
def test_only_missing_pixels_count_as_wrong(observation, expected):
    x = np.array([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    observed = np.array([[True, True, False, False], [False, True, False, False]])
    # The first image has one of two on the wrong side of 1/2, and the second two of three. The
    # squared errors of the missing are 0.01 and 0.49; and 0.81, 0.01 and 0.65 of a mean of 0.49.
    mean = np.array([[1.0, 0.0, 0.9, 0.7], [0.1, 1.0, 0.1, 1 - 0.65**0.5]])
    found = impute.wrong(mean, x, observed, observation)
    assert_close(found, expected, 8, epsilon=EPSILON_64)


def test_impute_compares_three_ways(folder, capsys):
    settings = impute.ImputeSettings(
        data="digits", missing="bottom", images=20, samples=32, rounds=1, neighbours=5, seed=3
    )
    impute.impute(settings, str(folder))
    found = results(folder, "impute-bottom")
    assert list(found["numbers"]) == ["model", "5 nearest training images", "independent pixels"]
    # The independent model's number is a sum of logarithms over the lower half.
    dataset = digits.load()
    run = finished.read(finished.UseSettings(data="digits"), "impute", [str(folder)])
    x = dataset.test_x()[:20]
    p = (run.train_x().sum(0) + 1) / (len(dataset.train_images) + 2)
    log_p = stats.bernoulli.logpmf(x, p)[:, 32:].sum(1)
    number = found["numbers"]["independent pixels"]["nats"]
    # Each is a sum over 32 values of logits, whose logarithms have roundings of their own.
    size = np.abs(log_p).max()
    assert_close(number["mean"], log_p.mean(), np.sqrt(32) + 16, size)
    assert_close(number["standard_error"], stats.sem(log_p), np.sqrt(32) + 16, size)
    assert "50% of the values missing" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="--samples=33; give a multiple of 32"):
        impute.impute(impute.ImputeSettings(data="digits", samples=33), str(folder))

    # The model's: ten images at a time, with a key for each ten and each of both quantities.
    observed = np.broadcast_to(np.arange(64) < 32, (10, 64))
    effort = evaluation.Conditioning(num_samples=32, rounds=1)
    imputed, likelihoods = [], []
    for first in (0, 10):
        images, mean = jnp.asarray(x[first : first + 10]), jnp.asarray(run.train_x().mean(0))
        arguments = run.model, run.variables, images, jnp.asarray(observed), mean
        keys = [
            jax.random.fold_in(jax.random.fold_in(jax.random.key(3), first), i) for i in range(2)
        ]
        with run.precision():
            imputed.append(evaluation.impute(*arguments, keys[0], num_draws=3, effort=effort))
            likelihoods.append(
                evaluation.conditional_log_likelihood(*arguments, keys[1], effort=effort)
            )
    stated = found["numbers"]["model"]
    assert_states(stated["nats"], np.concatenate([one.log_likelihood for one in likelihoods]))
    means = np.concatenate([one.mean for one in imputed])
    assert_states(stated["error"], 100 * np.mean((means > 0.5) != x, axis=1, where=~observed[:1]))
    errors = np.float64([one.standard_error for one in likelihoods])
    assert_close(
        found["monte_carlo_standard_error"], np.linalg.norm(errors) / 20, 8, epsilon=EPSILON_64
    )
    sizes = np.float64([one.effective_sample_size for one in imputed])
    assert found["effective_sample_size"] == {"median": np.median(sizes), "min": sizes.min()}
    assert found["rounds"] == 1


# certify


@pytest.mark.parametrize(
    ("command", "settings"),
    [(certify.certify, certify.CertifySettings()), (impute.impute, impute.ImputeSettings())],
)
def test_what_has_no_density_of_single_values_is_refused(command, settings, tmp_path):
    model = LadderVAE(4, (2,), (3,), batch_norm=False, observation="discretized_logistic")
    lvae_jax.save(tmp_path / "model", model, {"params": random_params(model)})
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.uint8).reshape(10, 4))
    if command is impute.impute:
        settings = dataclasses.replace(settings, data="arrays", train=str(tmp_path / "x.npy"))
    with pytest.raises(WorkdirError, match="observes x as discretized_logistic; give a run whose"):
        command(settings, str(tmp_path / "model"))


def test_certify_states_both_bounds(folder, capsys):
    # All that the command gives: `jit` takes a default that is given for another program.
    effort = {"temperatures": 20, "leapfrog_steps": 2, "chains": 1}
    settings = certify.CertifySettings(images=6, samples=10, batch=3, **effort)
    certify.certify(settings, str(folder))
    nats = results(folder, "certify")["nats"]
    model, variables = lvae_jax.load(folder)
    batches = []
    for keys in (keys_of(6)[:3], keys_of(6)[3:]):
        drawn = evaluation.bidirectional(model, variables, keys, **effort)
        estimate = evaluation.log_likelihood_program()(model, variables, drawn.x, keys, 10)
        batches.append([drawn.lower, drawn.upper, estimate.log_likelihood])
    lower, upper, likelihood = np.concatenate(np.float64(batches), axis=1)
    by_name = {
        "lower bound of log p(x)": lower,
        "upper bound of log p(x)": upper,
        "upper less lower bound": upper - lower,
        "L_10": likelihood,
        "lower bound less L_10": lower - likelihood,
        "upper bound less L_10": upper - likelihood,
    }
    assert nats.keys() == by_name.keys()
    for name, values in by_name.items():
        assert_states(nats[name], values)
    gap = nats["upper less lower bound"]
    assert gap["mean"] > -threshold(degrees=5) * gap["standard_error"]
    said = r"at most .* nats below log p\(x\)" if np.mean(upper - likelihood) >= 0 else "as near"
    assert re.search(f"L_10 is {said}", capsys.readouterr().out)


def test_certify_claims_no_negative_distance(folder, monkeypatch, capsys):
    # As with few temperatures: the noisy upper bounds lie below the estimates.
    found = np.float64([[-9, -9], [-8, -7], [-7, -6], [0.5, 0.7]])
    monkeypatch.setattr(certify, "bound", lambda *_: found)
    certify.certify(certify.CertifySettings(images=2, samples=10), str(folder))
    said = capsys.readouterr().out
    assert "L_10 is as near to log p(x) as these bounds tell; more temperatures tell more; " in said
    assert "60% of the Hamiltonian proposals" in said
