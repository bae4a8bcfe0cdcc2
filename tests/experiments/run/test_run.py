"""Whole runs: their files, resuming, refusing, starting from another run's parameters."""

import base64
import dataclasses
import gc
import io
import json
import re
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import records
from full_disk import no_room_beyond
from PIL import Image
from records import replica_results, run_results
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tolerances import EPSILON_64, assert_close, assert_trees_within, threshold, value_and_error

from experiments import cli, registry
from experiments.arrays import ArraysSettings
from experiments.errors import NonFiniteError, SettingsError, WorkdirError
from experiments.report import report
from experiments.run.loop import run
from experiments.run.program import unfinished_warm_up
from experiments.run.setup import continued, make_experiment
from experiments.settings import Settings
from experiments.show.console import describe
from experiments.store.checkpoints import Checkpoints
from experiments.store.manifests import verify
from experiments.store.workdir import FORMAT, Workdir, read_results, read_trained
from lvae_jax import evaluation, load
from lvae_jax.data import Dataset, as_stored
from lvae_jax.data.validation import VALIDATION_SEED
from lvae_jax.training import named_key

SETTINGS = Settings(
    depth=2,
    latent_sizes=(3, 2),
    hidden_sizes=(8, 6),
    epochs=4,
    warmup_epochs=2,
    batch_size=16,
    eval_every=2,
    eval_samples=30,
)


def stripes() -> Dataset:
    """Images of 4×3 grey values that fall off from a bright row, whose number is the label."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 60).astype(np.int32)
    distance = np.abs(np.arange(4)[None, :, None] - labels[:, None, None])
    images = np.broadcast_to(255 // (1 + 3 * distance), (60, 4, 3)).astype(np.uint8)
    return Dataset(
        "stripes", images[:50], labels[:50], images[50:], labels[50:], "bernoulli", "dynamic"
    )


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(values: dict) -> dict:
    return {name: value for name, value in values.items() if "seconds" not in name}


def checkpoint_of(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, the newest by default, by orbax alone."""
    manager = ocp.CheckpointManager(workdir / "checkpoints")
    tree = manager.restore(step or manager.latest_step(), args=ocp.args.StandardRestore())
    manager.close()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "stripes"
    run(dataclasses.replace(SETTINGS, workdir=str(workdir)), stripes())
    return workdir


def events_of(workdir: Path) -> EventAccumulator:
    """All that TensorBoard shows of a run."""
    keep_all = {"scalars": 0, "histograms": 0, "images": 0}
    events = EventAccumulator(str(workdir / "tensorboard"), size_guidance=keep_all)
    return events.Reload()


def test_metrics_hold_a_line_an_epoch_with_beta_and_learning_rate(finished):
    lines = lines_of(finished)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]  # 50 images, 16 a step
    assert [line["beta"] for line in lines] == [0.0, 0.5, 1.0, 1.0]
    assert [line["learning_rate"] for line in lines] == [1e-3] * 4
    for line in lines:
        assert np.isfinite([line["train_elbo"], line["log_px"], *line["kl_per_layer"]]).all()
        elbo, kl = line["log_px"] - sum(line["kl_per_layer"]), sum(line["kl_per_layer"])
        assert_close(line["train_elbo"], elbo, roundings=16, size=abs(line["log_px"]) + kl)
    assert [line["epoch"] for line in lines if "test_elbo" in line] == [1, 3]
    assert [len(layer) for layer in lines[1]["kl_per_unit"]] == [3, 2]


def test_a_warm_up_that_the_run_does_not_finish_is_said():
    short = dataclasses.replace(SETTINGS, epochs=3, warmup_epochs=10)
    assert unfinished_warm_up(short) == (
        "--epochs=3 --warmup_epochs=10: the weight of the KL terms ends at 0.2 of --beta; for the "
        "ELBO give fewer epochs of warm-up"
    )
    # The last epoch is the first one with the full weight, or not yet.
    assert unfinished_warm_up(dataclasses.replace(short, epochs=11)) == ""
    as_long = unfinished_warm_up(dataclasses.replace(short, epochs=1000, warmup_epochs=1000))
    assert "ends at 0.999 of --beta" in as_long
    one_of_two = dataclasses.replace(short, epochs=11, warmup_epochs=(2, 20), replicas=2)
    assert "--warmup_epochs=20: the weight of the KL terms ends at 0.5" in unfinished_warm_up(
        one_of_two
    )


def test_results_hold_what_the_run_found_and_its_settings_say(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results.keys() >= {
        "dataset",
        "model",
        "epochs",
        "seed",
        "test_elbo",
        "test_log_likelihood",
        "test_log_likelihood_standard_error",
        "eval_samples",
        "train_elbo",
        "kl_per_layer",
        "active_units",
        "effective_sample_size",
        "wall_seconds",
        "device",
    }
    assert (results["dataset"], results["model"], results["epochs"]) == ("stripes", "lvae", 4)
    assert results["chosen_epoch"] == 4  # the last, without --validation
    assert 1 <= results["effective_sample_size"] <= 30
    # An untrained model of 12 binary pixels: somewhere around 12 log 2. L_30 is above L_1, but by
    # chance: the mean log weight of 10 images has about the relative deviation of a mean weight.
    error = np.sqrt((30 / results["effective_sample_size"] - 1) / 10)
    uniform = -12 * np.log(2)
    assert 2 * uniform < results["test_elbo"] < results["test_log_likelihood"] + threshold() * error
    assert results["test_log_likelihood"] < uniform / 4
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["latent_sizes"] == [3, 2]
    assert config["settings"]["warmup_epochs"] == 2
    assert config["versions"]["jax"] == jax.__version__
    assert config["experiment"] is None  # code of the tests' own


@pytest.mark.usefixtures("without_figures")
def test_every_number_is_of_the_saved_model_and_of_its_own_images(tmp_path):
    # Most pixels of the held-out images are white, half of the test images', and few of the others.
    held = np.sort(np.random.RandomState(VALIDATION_SEED).permutation(60)[:10])
    white = np.full(60, 0.1)
    white[held] = 0.9
    generator = np.random.default_rng(1)
    train, test = (
        generator.uniform(size=(len(each), 4, 3)) < each[:, None, None]
        for each in (white, np.full(10, 0.5))
    )
    labels = np.zeros(60, np.int32)
    dataset = Dataset(
        "shades", np.uint8(255 * train), labels, np.uint8(255 * test), labels[:10], "bernoulli",
        "dynamic",  # a black or a white pixel is always drawn as it is
    )  # fmt: skip
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path), seed=3, validation=10, eval_subset=5
    )
    run(settings, dataset)

    results = json.loads((tmp_path / "results.json").read_text())
    chosen = results["chosen_epoch"]
    model, variables = load(tmp_path)
    root = jax.random.key(3)

    def recomputed(variables, *images):
        variables, *images = jax.tree.map(jnp.float32, (variables, *images))
        names = ("validation_elbo", "train_elbo", "test_elbo")
        subset = evaluation.elbo(
            model, variables, as_stored, images[-1][:5], named_key(root, "test_elbo", chosen)
        )
        elbos = {
            name: evaluation.elbo(
                model, variables, as_stored, x, named_key(root, name, chosen)
            ).elbo
            for name, x in zip(names, images, strict=True)
        }
        of_images = evaluation.log_likelihood(
            model, variables, images[-1][:5], named_key(root, "log_likelihood"), num_samples=30
        ).log_likelihood
        return elbos | {
            "subset_elbo": subset.elbo,
            "test_log_likelihood": np.mean(of_images),
            "test_log_likelihood_standard_error": stats.sem(of_images),
        }

    images = [x.reshape(-1, 12) for x in (train[held], np.delete(train, held, axis=0), test)]
    expected, error = value_and_error(recomputed, variables, *images, roundings=16)
    found = results | {"validation_elbo": lines_of(tmp_path)[chosen - 1]["validation_elbo"]}
    assert_trees_within({name: found[name] for name in expected}, expected, error)


@pytest.mark.usefixtures("without_figures")
def test_every_evaluation_takes_part_in_the_seconds_and_has_the_key_of_its_epoch(
    tmp_path, monkeypatch
):
    # By this clock, nothing takes time but estimating batch statistics: a second.
    keys, estimate = [], evaluation.reestimate_batch_stats

    def in_a_second(model, params, preprocess, images, key, **options):
        keys.append(key)
        return estimate(model, params, preprocess, images, key, **options)

    clock = types.SimpleNamespace(monotonic=lambda: 100.0 + len(keys))
    for module in ("loop", "evaluation", "final"):
        monkeypatch.setattr(f"experiments.run.{module}.time", clock)
    monkeypatch.setattr(evaluation, "reestimate_batch_stats", in_a_second)
    run(dataclasses.replace(SETTINGS, workdir=str(tmp_path), seed=3), stripes())
    assert [line["seconds"] for line in lines_of(tmp_path)] == [0.0, 1.0, 0.0, 1.0]
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["training_seconds"], results["wall_seconds"]) == (2.0, 3.0)
    root = jax.random.key(3)
    # After the second and the fourth epoch, and in the end.
    assert keys == [named_key(root, "batch_stats", epoch) for epoch in (2, 4, 4)]


def test_tensorboard_holds_the_scalars_of_metrics_written_without_tensorflow(finished):
    assert "tensorflow" not in sys.modules
    events = events_of(finished)
    lines = lines_of(finished)
    for name in ("beta", "train_elbo", "log_px"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [0, 1, 2, 3]
        assert_close([scalar.value for scalar in scalars], [line[name] for line in lines], 1)
    assert len(events.Scalars("kl_per_layer/z_2")) == 4
    assert set(events.Tags()["scalars"]) == {
        "seconds", "beta", "learning_rate", "train_elbo", "log_px", "test_elbo",
        "kl_per_layer/z_1", "kl_per_layer/z_2", "active_units/z_1", "active_units/z_2",
    }  # fmt: skip


def test_tensorboard_holds_a_histogram_of_the_kl_of_each_layers_units(finished):
    events = events_of(finished)
    evaluated = [line for line in lines_of(finished) if "kl_per_unit" in line]
    for i in (1, 2):
        histograms = events.Histograms(f"kl_per_unit/z_{i}")
        assert [histogram.step for histogram in histograms] == [1, 3]
        for histogram, line in zip(histograms, evaluated, strict=True):
            units, found = line["kl_per_unit"][i - 1], histogram.histogram_value
            assert found.num == len(units) == (3, 2)[i - 1]
            assert_close(found.sum, sum(units), len(units), np.abs(units).sum(), EPSILON_64)
            assert [found.min, found.max] == [min(units), max(units)]
            assert sum(found.bucket) == len(units)


FIGURES = {
    "learning_curves", "kl_per_unit", "kl_per_layer", "principal_components", "samples",
    "reconstructions", "layers", "interpolations",
}  # fmt: skip


def test_tensorboard_holds_every_figure_pixel_by_pixel(finished):
    assert {file.name for file in (finished / "figures").iterdir()} == {f"{n}.png" for n in FIGURES}
    events = events_of(finished)
    assert set(events.Tags()["images"]) == FIGURES
    for name in FIGURES:
        (picture,) = events.Images(name)
        assert picture.step == 4
        with (
            Image.open(finished / "figures" / f"{name}.png") as file,
            Image.open(io.BytesIO(picture.encoded_image_string)) as shown,
        ):
            assert (picture.width, picture.height) == shown.size == file.size
            np.testing.assert_array_equal(
                np.asarray(shown.convert("RGB")), np.asarray(file.convert("RGB")), err_msg=name
            )


def test_the_report_of_a_finished_run_shows_every_figure(finished):
    page = (finished / "report.html").read_text()
    for name in FIGURES:
        content = base64.b64encode((finished / "figures" / f"{name}.png").read_bytes()).decode()
        assert page.count(f"data:image/png;base64,{content}") == 1


def test_figures_hold_samples_and_reconstructions(finished):
    # Images of 4×3, a pixel apart: 80 samples in rows of ten; ten test images above their copies.
    for name, rows in (("samples", 8), ("reconstructions", 2)):
        with Image.open(finished / "figures" / f"{name}.png") as image:
            enlarged = 15  # to 600 pixels at least
            assert image.size == ((10 * 4 + 1) * enlarged, (rows * 5 + 1) * enlarged)
    with Image.open(finished / "figures" / "reconstructions.png") as image:
        first_row = np.asarray(image)[1::15][1:5, 1::15]
    test_x = stripes().test_x().reshape(10, 4, 3)
    np.testing.assert_array_equal(
        first_row[:, [x for i in range(10) for x in range(1 + 4 * i, 4 + 4 * i)]],
        255 * test_x.transpose(1, 0, 2).reshape(4, 30),
    )


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    run(dataclasses.replace(SETTINGS, workdir=str(finished)), stripes())
    out = capsys.readouterr().out
    assert f"{finished} is finished." in out
    assert "the paper" not in out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_model_of_the_papers_is_described_with_the_papers_number():
    config = {"dataset": "mnist", "settings": Settings().changing_results()}
    text = describe(run_results(), config)
    assert text.startswith("mnist, lvae with 5 layers, 2000 epochs, seed 0\n")
    one = replica_results(active_units=[1], kl_per_unit=[[1.0]], chosen_epoch=1)
    assert describe(run_results(one, epochs=1), config).startswith(
        "mnist, lvae with 1 layer, 1 epoch, seed 0\n"
    )
    assert "(the paper: -82.12)" in text.splitlines()[1]
    assert "(the paper: -85.23)" in text.splitlines()[2]
    config["settings"]["epochs"] = 300
    assert "(the paper, at its own settings: -82.12)" in describe(run_results(), config)
    config["settings"]["model"] = "vae"
    assert "the paper" not in describe(run_results(), config)


def test_other_settings_on_the_same_workdir_are_refused_with_the_difference(finished):
    other = dataclasses.replace(SETTINGS, workdir=str(finished), seed=1, epochs=5)
    with pytest.raises(WorkdirError) as refusal:
        run(other, stripes())
    assert str(refusal.value) == (
        f"{finished} holds a run with other settings: epochs was 4 and is now 5; seed was 0 and is "
        "now 1. Give those settings again, another --workdir, or --overwrite to start again"
    )


def test_a_run_of_a_version_that_lacked_a_setting_had_its_default(finished, tmp_path):
    config = json.loads((finished / "config.json").read_text())
    for name in ("gradient", "free_bits"):
        del config["settings"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    now = json.loads((finished / "config.json").read_text())
    Workdir(tmp_path, now)
    now["settings"]["gradient"] = "dreg"
    with pytest.raises(WorkdirError, match="gradient was standard and is now dreg"):
        Workdir(tmp_path, now)


@pytest.mark.parametrize("name", registry.EXPERIMENTS)
def test_any_setting_that_a_version_lacked_had_the_default_of_its_experiment(name, tmp_path):
    defaults = registry.experiment(name).defaults
    config = {"format": FORMAT, "experiment": name, "dataset": name}
    config["settings"] = defaults.changing_results()
    for lacking in config["settings"]:
        older = {key: value for key, value in config["settings"].items() if key != lacking}
        (tmp_path / "config.json").write_text(json.dumps(config | {"settings": older}))
        Workdir(tmp_path, json.loads(json.dumps(config)), defaults=defaults)
        stored = json.loads((tmp_path / "config.json").read_text())
        assert registry.settings_of(stored) == defaults


def test_a_folder_that_is_no_runs_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(WorkdirError, match=r"holds files but no config\.json"):
        run(dataclasses.replace(SETTINGS, workdir=str(tmp_path)), stripes())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_workdir_that_cannot_be_made_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WorkdirError) as refusal:
        run(dataclasses.replace(SETTINGS, workdir=str(tmp_path / name)), stripes())
    reason = "File exists" if name == "file" else "Not a directory"
    assert str(refusal.value) == (
        f"cannot write to {tmp_path / name} ({reason}); repair it, or give another path"
    )


def test_a_folder_whose_config_was_being_written_when_the_run_was_killed_is_used(tmp_path):
    (tmp_path / "config.json.tmp").write_text('{"dataset": ')
    workdir = Workdir(tmp_path, {"dataset": "stripes", "settings": {}})
    workdir.create()
    workdir.close()
    assert json.loads((tmp_path / "config.json").read_text())["dataset"] == "stripes"


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"dataset": ')
    with pytest.raises(WorkdirError, match=r"config\.json is damaged"):
        run(dataclasses.replace(SETTINGS, workdir=str(tmp_path)), stripes())


@pytest.mark.usefixtures("without_figures")
def test_a_run_without_a_complete_checkpoint_says_that_it_starts_again(finished, tmp_path, capsys):
    again = tmp_path / "run"
    shutil.copytree(finished, again)
    shutil.rmtree(again / "checkpoints")
    (again / "results.json").unlink()
    run(dataclasses.replace(SETTINGS, workdir=str(again)), stripes())
    said = capsys.readouterr().err
    assert f"{again} holds no complete checkpoint: starting again from epoch 0\n" in said
    assert read_results(again).replicas == read_results(finished).replicas


def test_metrics_of_epochs_that_no_checkpoint_remembers_are_dropped(tmp_path):
    workdir = Workdir(tmp_path / "run", {"dataset": "stripes", "settings": {}})
    workdir.create()
    for epoch in range(5):
        workdir.append_metrics(records.epoch(epoch))
    with (workdir.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "sec')  # the process was killed while it wrote
    kept = workdir.truncate_metrics(3)
    workdir.close()
    assert [record.epoch for record in kept] == [0, 1, 2]
    assert lines_of(workdir.path) == [json.loads(json.dumps(r.to_json())) for r in kept]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(("fresh", "updates"), [(False, 15), (True, 3)])
def test_init_from_starts_from_the_other_runs_parameters(finished, tmp_path, fresh, updates):
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path / "tuned"), init_from=str(finished), epochs=1,
        warmup_epochs=0, learning_rate=1e-30, eval_every=0, fresh_optimizer=fresh,
    )  # fmt: skip
    run(settings, stripes())
    before, after = checkpoint_of(finished), checkpoint_of(tmp_path / "tuned")
    params = [path for path in before if path.startswith("['params']")]
    assert params
    for path in params:
        np.testing.assert_array_equal(before[path], after[path])
    # Draws carry on after the four epochs of three steps; Adam's state does unless it is new.
    assert after["['step']"].tolist() == [15]
    (count,) = (leaf for path, leaf in after.items() if "count" in path)
    assert count.tolist() == [updates]


def test_init_from_one_starts_every_replica_from_its_parameters(finished, tmp_path):
    settings = dataclasses.replace(SETTINGS, init_from=str(finished), replicas=2)
    fields = continued(make_experiment(settings, stripes()), tmp_path / "tuned")
    leaves = {jax.tree_util.keystr(path): leaf
              for path, leaf in jax.tree_util.tree_leaves_with_path(fields)}  # fmt: skip
    before = {name: leaf for name, leaf in checkpoint_of(finished).items() if "params" in name}
    assert before
    for name, leaf in before.items():
        assert len(leaves[name]) == 2
        for replica in leaves[name]:
            np.testing.assert_array_equal(leaf[0], replica)
    assert leaves["['step']"].tolist() == [12, 12]
    (count,) = (leaf for name, leaf in leaves.items() if "count" in name)
    assert count.tolist() == [12, 12]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.faults
def test_continuing_a_run_is_the_longer_run_bit_for_bit_and_resumes_exactly(finished, tmp_path):
    whole = dataclasses.replace(SETTINGS, epochs=6, eval_every=0, workdir=str(tmp_path / "a"))
    run(whole, stripes())
    shutil.copytree(finished, tmp_path / "source")
    settings = dataclasses.replace(
        SETTINGS, epochs=2, warmup_epochs=0, init_from=str(tmp_path / "source"),
        checkpoint_seconds=0.0,
    )  # fmt: skip
    continued, resumed = tmp_path / "continued", tmp_path / "resumed"
    run(dataclasses.replace(settings, workdir=str(continued)), stripes())
    trained = ("train_elbo", "log_px", "kl_per_layer", "beta", "learning_rate")
    for one, other in zip(lines_of(tmp_path / "a")[4:], lines_of(continued), strict=True):
        assert [one[name] for name in trained] == [other[name] for name in trained]
    assert [line["step"] for line in lines_of(continued)] == [3, 6]
    state = checkpoint_of(continued)
    for path, leaf in checkpoint_of(tmp_path / "a").items():
        np.testing.assert_array_equal(leaf, state[path])
    # A run that was killed after its first epoch, and resumes without the one that it continued.
    shutil.copytree(continued, resumed)
    shutil.rmtree(tmp_path / "source")
    for path in (resumed / "model", resumed / "checkpoints" / "6"):
        shutil.rmtree(path)
    (resumed / "results.json").unlink()
    run(dataclasses.replace(settings, workdir=str(resumed)), stripes())
    for path, leaf in checkpoint_of(resumed).items():
        np.testing.assert_array_equal(leaf, state[path])
    one, other = (json.loads((path / "results.json").read_text()) for path in (continued, resumed))
    assert without_times(one) == without_times(other)


@pytest.mark.usefixtures("without_figures")
def test_a_run_of_another_batch_size_continues_with_a_whole_epoch(finished, tmp_path):
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path / "run"), init_from=str(finished), epochs=1, batch_size=8,
        validation=10,
    )  # fmt: skip
    run(settings, stripes())
    # Twelve steps there, and five an epoch here: those after the fifteenth.
    assert checkpoint_of(tmp_path / "run")["['step']"] == 20
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [5]


def refusal_to_continue(other: Path, tmp_path: Path, **changed) -> str:
    """What is said of --init_from with these settings; nothing is written."""
    workdir = tmp_path / "run"
    settings = dataclasses.replace(SETTINGS, workdir=str(workdir), init_from=str(other), **changed)
    with pytest.raises(SettingsError) as refusal:
        run(settings, stripes())
    assert not workdir.exists()
    return str(refusal.value)


def test_a_moving_average_is_continued_only_by_an_optimiser_that_keeps_one(finished, tmp_path):
    assert refusal_to_continue(finished, tmp_path, ema_decay=0.9) == (
        f"--init_from={finished}: --ema_decay=0.0 there, 0.9 here, and only one of the optimisers "
        "keeps an average; give the same, or --fresh_optimizer"
    )


@pytest.mark.usefixtures("without_figures")
def test_a_moving_average_is_evaluated_saved_and_resumed_exactly(tmp_path):
    settings = dataclasses.replace(SETTINGS, ema_decay=0.9, learning_rate=0.05)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(dataclasses.replace(settings, workdir=str(whole)), stripes())
    results = json.loads((whole / "results.json").read_text())
    trained, average = checkpoint_of(whole), read_trained(whole)[0]
    by_hand = {f"['params']{jax.tree_util.keystr(path)}": leaf
               for path, leaf in jax.tree_util.tree_leaves_with_path(average)}  # fmt: skip
    assert by_hand.keys() == {name for name in trained if name.startswith("['params']")}
    assert any(np.any(leaf != trained[name]) for name, leaf in by_hand.items())
    # What was evaluated is the model that was saved, and its parameters are the average.
    _, variables = load(whole)
    for one, other in zip(
        jax.tree.leaves(variables["params"]), jax.tree.leaves(average), strict=True
    ):
        np.testing.assert_array_equal(one, np.asarray(other)[0])
    # A run that ended before it evaluated: the average comes from the checkpoint.
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "model")
    (parts / "results.json").unlink()
    run(dataclasses.replace(settings, workdir=str(parts)), stripes())
    resumed = json.loads((parts / "results.json").read_text())
    assert without_times(resumed) == without_times(results)


@pytest.mark.usefixtures("without_figures")
def test_the_epoch_with_the_best_validation_elbo_is_the_one_evaluated(tmp_path):
    # The learning rate is so large from the third epoch on, where beta is 1, that things get worse.
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path / "run"), batch_size=8, validation=10, eval_every=1,
        learning_rate=0.3,
    )  # fmt: skip
    run(settings, stripes())
    lines = lines_of(tmp_path / "run")
    assert lines[0]["step"] == 5  # 40 images are left to train on
    elbos = [line["validation_elbo"] for line in lines]
    assert len(set(elbos)) == 4
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["chosen_epoch"] == 1 + int(np.argmax(elbos))
    # What is reported is what was measured on the test set after that epoch.
    assert results["test_elbo"] == lines[results["chosen_epoch"] - 1]["test_elbo"]
    assert not any("validation" in name for name in results)


@pytest.mark.usefixtures("without_figures")
def test_a_lost_choice_of_validation_is_not_replaced(tmp_path):
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path), validation=10, eval_every=1, checkpoint_seconds=0.0
    )
    run(settings, stripes())
    (tmp_path / "results.json").unlink()
    shutil.rmtree(tmp_path / "chosen")
    with pytest.raises(WorkdirError, match=r"its chosen/ is missing; restore it, or start again"):
        run(settings, stripes())


@pytest.mark.usefixtures("without_figures")
def test_what_validation_chooses_is_the_moving_average(tmp_path):
    # Of one epoch, so that its state is the one of the checkpoint.
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path), ema_decay=0.9, validation=10, eval_every=1, epochs=1
    )
    run(settings, stripes())
    assert json.loads((tmp_path / "results.json").read_text())["chosen_epoch"] == 1
    kept = {name: array for name, array in checkpoint_of(tmp_path).items() if "average" in name}
    _, variables = load(tmp_path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        (average,) = (a for name, a in kept.items() if name.endswith(jax.tree_util.keystr(path)))
        np.testing.assert_array_equal(leaf, average[0])


def test_other_data_of_the_same_name_are_refused(finished):
    other = dataclasses.replace(stripes(), train_images=stripes().train_images[::-1].copy())
    with pytest.raises(WorkdirError, match=r"data_sha256 was [0-9a-f]{12} and is now [0-9a-f]{12}"):
        run(dataclasses.replace(SETTINGS, workdir=str(finished)), other)


@pytest.mark.faults
def test_the_same_images_split_otherwise_are_refused(finished):
    images, labels = (
        np.concatenate([getattr(stripes(), f"{split}_{what}") for split in ("train", "test")])
        for what in ("images", "labels")
    )
    other = Dataset(
        "stripes", images[:45], labels[:45], images[45:], labels[45:], "bernoulli", "dynamic"
    )
    with pytest.raises(WorkdirError) as refusal:
        run(dataclasses.replace(SETTINGS, workdir=str(finished)), other)
    assert "test_images was 10 and is now 15; train_images was 50 and is now 45" in str(
        refusal.value
    )


@pytest.mark.faults
def test_a_run_is_not_continued_in_its_own_folder(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    settings = dataclasses.replace(
        SETTINGS, workdir=str(finished), init_from=str(finished), overwrite=True
    )
    with pytest.raises(SettingsError, match=f"--init_from={finished} is this run's own folder"):
        run(settings, stripes())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_init_from_another_model_is_refused_with_the_difference(finished, tmp_path):
    assert refusal_to_continue(finished, tmp_path, hidden_sizes=(8, 5)) == (
        f"--init_from={finished}: its model differs (hidden_sizes [8, 6] there, [8, 5] "
        "here); give the same model settings"
    )
    assert refusal_to_continue(finished, tmp_path, activation="tanh", variance_floor=1e-3) == (
        f"--init_from={finished}: its model differs (activation leaky_relu there, tanh here; "
        "variance_floor 1e-05 there, 0.001 here); give the same model settings"
    )


@pytest.mark.usefixtures("without_figures")
def test_init_from_a_model_that_observes_x_otherwise_is_refused(tmp_path):
    # Both heads return two numbers for each value of x.
    grey = stripes()
    there, here = (
        dataclasses.replace(grey, observation=observation, binarisation="none")
        for observation in ("gaussian", "discretized_logistic")
    )
    settings = ArraysSettings(**dataclasses.asdict(SETTINGS) | {"epochs": 1})
    settings = dataclasses.replace(
        settings, workdir=str(tmp_path / "there"), observation=there.observation
    )
    run(settings, there)
    other = dataclasses.replace(
        settings, workdir=str(tmp_path / "here"), init_from=str(tmp_path / "there"),
        observation=here.observation,
    )  # fmt: skip
    with pytest.raises(SettingsError) as refusal:
        run(other, here)
    assert str(refusal.value) == (
        f"--init_from={tmp_path / 'there'}: its model differs (observation gaussian there, "
        "discretized_logistic here); give the same model settings"
    )


@pytest.mark.faults
def test_a_run_that_diverges_stops_and_says_where(tmp_path):
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path / "run"), learning_rate=1e30, eval_every=0
    )
    with pytest.raises(NonFiniteError, match=r"epoch 0, step 1: .* of z_\d is (nan|-?inf)\. Try"):
        run(settings, stripes())


def said_with_status(status: int, settings: Settings, capsys) -> str:
    """The line with which the command of a run ends, and its exit status."""
    with pytest.raises(SystemExit) as stopped, cli.errors_in_one_line():
        run(settings, stripes())
    assert stopped.value.code == status
    return capsys.readouterr().err.splitlines()[-1]


def overflowing(workdir: Path, **changed) -> Settings:
    """A run without the KL in its first epoch; its weight then makes the loss overflow."""
    return dataclasses.replace(
        SETTINGS, workdir=str(workdir), beta=3e38, warmup_epochs=1, eval_every=0,
        checkpoint_seconds=0.0, **changed,
    )  # fmt: skip


@pytest.mark.faults
def test_a_loss_that_is_not_finite_stops_with_status_3_and_keeps_the_last_checkpoint(
    tmp_path, capsys
):
    line = said_with_status(3, overflowing(tmp_path), capsys)
    assert line == (
        f"error: epoch 1, step 3: the loss is inf; the last checkpoint in {tmp_path} is kept. Try "
        "a smaller --learning_rate or --max_gradient_norm=4 in a new --workdir, or "
        "--on_nonfinite=skip"
    )
    assert verify(tmp_path / "checkpoints" / "3", 3) is None
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3]
    assert all(np.isfinite(array).all() for array in checkpoint_of(tmp_path).values())
    assert len(lines_of(tmp_path)) == 1


@pytest.mark.faults
@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"beta": (1.0, 3e38, 3e38)}, r"epoch 1, step 3 of seed 8: the loss is inf; "),
        (
            {"beta": 1.0, "learning_rate": (1e-3, 1e30, 1e30)},
            r"epoch 0, step 1 of seed 8: .* of z_\d is (nan|-?inf)\. Try",
        ),
    ],
)
def test_of_several_replicas_the_first_that_diverges_is_named(tmp_path, changed, where):
    settings = dataclasses.replace(overflowing(tmp_path), replicas=3, seed=7, **changed)
    with pytest.raises(NonFiniteError, match=f"^{where}"):
        run(settings, stripes())


@pytest.mark.faults
def test_updates_that_are_not_finite_are_skipped_and_counted_up_to_a_limit(tmp_path, capsys):
    settings = overflowing(tmp_path, on_nonfinite="skip", max_nonfinite=7)
    line = said_with_status(3, settings, capsys)
    assert line.startswith("error: epoch 3, step 10: the loss is inf, after 7 skipped updates; ")
    lines = lines_of(tmp_path)
    assert [line["skipped_updates"] for line in lines] == [0, 3, 6]
    # An epoch without an update has no means, which JSON calls null: NaN is not of JSON.
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert [line["train_elbo"] is None for line in lines] == [False, True, True]
    assert lines[1]["kl_per_layer"] == [None, None]
    report(tmp_path)
    assert "Every update of the last one was skipped" in (tmp_path / "report.html").read_text()
    # Nothing but the counts has changed since the first epoch.
    first, last = (checkpoint_of(tmp_path, step) for step in (3, 9))
    parameters = [name for name in first if "params" in name or "opt_state" in name]
    assert len(parameters) > 10
    for name in parameters:
        assert first[name].tobytes() == last[name].tobytes(), name


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:.*tfevents:pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_with_tensorboards_events_ends_the_run_in_one_line(
    finished, tmp_path, capsys, monkeypatch
):
    """Its programs are those of `finished`: there is no room to keep one."""
    # metrics.jsonl grows more slowly, but Python 3.14 keeps 128 KiB of events before it writes.
    monkeypatch.setattr("experiments.show.tensorboard.FLUSH_SECONDS", 0.0)
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path), epochs=100_000, eval_every=0, checkpoint_seconds=1000.0
    )
    with no_room_beyond(20_000):
        line = said_with_status(2, settings, capsys)
    gc.collect()  # tensorboardX has not closed its file
    assert lines_of(tmp_path)
    assert re.match(
        rf"error: cannot write to {tmp_path}/tensorboard/\S+ \(File too large\); free space", line
    )


@pytest.mark.faults
def test_parameters_that_the_last_update_ruins_are_no_result(tmp_path):
    # The only update is finite, and the parameters after it are of the size of the learning rate:
    # the other two of the epoch are skipped.
    settings = dataclasses.replace(
        SETTINGS, workdir=str(tmp_path / "run"), learning_rate=1e30, epochs=1,
        on_nonfinite="skip", max_nonfinite=2,
    )  # fmt: skip
    with pytest.raises(
        NonFiniteError, match=r"evaluated after 1 epoch: the test ELBO is not finite\. Try a sm"
    ):
        run(settings, stripes())
    assert not (tmp_path / "run" / "results.json").exists()
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
