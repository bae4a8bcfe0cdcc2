"""The report of a run on demand: of one that is going on, of a finished one, and of none."""

import dataclasses
import html
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from PIL import Image
from small_runs import SINGLE, break_off, train

from experiments import compare, digits, registry
from experiments.errors import WorkdirError
from experiments.report import ReportSettings, main, report
from experiments.run import draws
from experiments.show import drawing, page
from experiments.store.workdir import read_run
from lvae_jax.data import DataError

ROOT = Path(__file__).parents[2]

OF_THE_MODEL = {"principal_components", "samples", "reconstructions", "layers", "interpolations"}
ALL = OF_THE_MODEL | {"learning_curves", "kl_per_unit", "kl_per_layer"}


@pytest.fixture
def finished(finished_run) -> Path:
    return finished_run


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory) -> Path:
    """A run that was interrupted after the second of its three epochs."""
    saved_at_every_step = dataclasses.replace(SINGLE, checkpoint_seconds=0.0)
    return break_off(tmp_path_factory.mktemp("runs") / "broken off", saved_at_every_step)


def copy_of(workdir: Path, folder: Path, **changes) -> Path:
    """A copy of the run, its config.json changed."""
    shutil.copytree(workdir, folder / "copy")
    config = json.loads((folder / "copy" / "config.json").read_text()) | changes
    (folder / "copy" / "config.json").write_text(json.dumps(config))
    return folder / "copy"


def figures_of(workdir: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in (workdir / "figures").glob("*.png")}


def page_of(workdir: Path) -> str:
    return html.unescape((workdir / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def without_models_figures(monkeypatch):
    monkeypatch.setattr(draws, "draw", lambda *_: None)
    monkeypatch.setattr(drawing, "draw_model", lambda *_: None)


def test_a_run_that_is_not_finished_gets_every_figure_and_a_page_that_says_so(broken_off, tmp_path):
    copied = copy_of(broken_off, tmp_path)
    assert not (copied / "results.json").exists()
    assert not (copied / "figures").exists()
    files = {file for file in copied.rglob("*") if file.is_file()}
    before = {file: file.read_bytes() for file in files}
    report(copied)
    assert figures_of(copied).keys() == ALL
    for name in ALL:
        with Image.open(copied / "figures" / f"{name}.png") as image:
            image.load()
    text = page_of(copied)
    assert "Not finished: 2 of 3 epochs." in text
    assert "test log-likelihood" not in text
    assert text.count("<img ") == len(ALL)
    # Nothing but the figures and the page is touched: the run can go on.
    assert {file: file.read_bytes() for file in files} == before
    new = {file for file in copied.rglob("*") if file.is_file()} - files
    assert new == {copied / "report.html", *(copied / "figures").iterdir()}


def test_a_finished_run_is_drawn_again_byte_for_byte(finished, tmp_path):
    expected, shown = figures_of(finished), page_of(finished)
    assert expected.keys() == ALL
    assert "test log-likelihood" in shown
    copied = copy_of(finished, tmp_path)
    shutil.rmtree(copied / "figures")
    (copied / "report.html").unlink()
    report(copied)
    assert figures_of(copied) == expected
    assert page_of(copied) == shown.replace(str(finished), str(copied))


@pytest.mark.usefixtures("without_models_figures")
def test_the_page_of_a_resumed_run_says_where_it_first_started(finished, tmp_path):
    copied = copy_of(finished, tmp_path, device="an earlier machine", versions={"jax": "0.1.2"})
    (copied / "results.json").unlink()
    train(copied, SINGLE)
    shown = page_of(copied)
    assert "an earlier machine" in shown
    assert "0.1.2" in shown
    report(copied)
    assert page_of(copied) == shown


def test_the_model_is_drawn_with_the_matmul_precision_of_its_run(finished, tmp_path, monkeypatch):
    found = []

    def draw(*_):
        found.append(jax.config.jax_default_matmul_precision)

    monkeypatch.setattr(draws, "draw", draw)
    monkeypatch.setattr(drawing, "draw_model", lambda *_: None)
    report(copy_of(finished, tmp_path))
    assert found == ["float32"]  # None is the device's own, which is another on a GPU


def test_the_command_on_the_page_is_the_runs(finished):
    (line,) = (line for line in page_of(finished).splitlines() if "python -m" in line)
    expected = registry.command(json.loads((finished / "config.json").read_text()), finished)
    assert f"<pre>{expected}</pre>" in line
    for flag in ("experiments.digits", "--latent_sizes=4,2", "--epochs=3", "--eval_samples=20"):
        assert flag in expected


def test_interpolations_are_made_in_the_layer_that_is_asked_for(finished, tmp_path):
    copied = copy_of(finished, tmp_path)
    before = figures_of(copied)
    report(copied, layer=2)  # the top one, as before
    assert figures_of(copied) == before
    main(ReportSettings(layer=1), str(copied))
    after = figures_of(copied)
    assert {name for name in ALL if after[name] != before[name]} == {"interpolations"}


def test_a_layer_that_the_model_does_not_have_is_refused(finished, tmp_path):
    copied = copy_of(finished, tmp_path)
    before = figures_of(copied)
    with pytest.raises(WorkdirError) as refusal:
        report(copied, layer=3)
    assert str(refusal.value) == f"--layer=3: the model of {copied} has 2 layers; give 1 to 2"
    assert figures_of(copied) == before


def test_a_run_that_does_not_name_its_experiment_keeps_its_pictures_until_it_is_named(
    finished, tmp_path
):
    copied = copy_of(finished, tmp_path)
    config = json.loads((copied / "config.json").read_text())
    del config["experiment"]
    (copied / "config.json").write_text(json.dumps(config))
    expected = figures_of(copied)
    (copied / "figures" / "samples.png").write_bytes(b"of the run's end")
    (copied / "figures" / "learning_curves.png").unlink()
    report(copied)
    kept = figures_of(copied)
    assert kept["samples"] == b"of the run's end"
    assert kept["learning_curves"] == expected["learning_curves"]
    assert "python -m" not in page_of(copied)
    with pytest.raises(WorkdirError, match="names no experiment, so its model cannot be drawn"):
        report(copied, layer=1)
    report(copied, experiment="digits")
    assert figures_of(copied) == expected
    assert "python -m experiments.digits" in page_of(copied)


def test_a_name_that_is_no_experiments_is_refused_and_not_imported(finished, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"imported {arguments}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    expected = "there is no experiment 'os'; give one of mnist, "
    with pytest.raises(WorkdirError, match=expected):
        report(copy_of(finished, tmp_path, experiment="os"))
    with pytest.raises(WorkdirError, match=expected):
        report(finished, experiment="os")


def test_data_that_have_changed_are_refused(finished, tmp_path, monkeypatch):
    copied = copy_of(finished, tmp_path)
    before = figures_of(copied)
    dataset = digits.load(SINGLE)
    other = dataclasses.replace(dataset, train_images=dataset.train_images[::-1].copy())
    changed = registry.Entry(lambda settings: other, digits.DEFAULTS)
    monkeypatch.setitem(registry.EXPERIMENTS, "digits", changed)
    with pytest.raises(DataError) as refusal:
        report(copied)
    assert str(refusal.value) == (
        f"digits is not the data that {copied} was trained on; give the right data with "
        "--data_dir, --tfds_dir, or --train and --test"
    )
    assert figures_of(copied) == before


def test_a_folder_without_a_run_or_an_epoch_or_a_checkpoint_is_refused(finished, tmp_path):
    with pytest.raises(WorkdirError) as refusal:
        report(tmp_path)
    message = f"{tmp_path} holds no config.json; give a run's folder"
    assert str(refusal.value) == message
    copied = copy_of(finished, tmp_path)
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(
        WorkdirError,
        match="holds no checkpoint; give the folder of a run that was trained, or wait",
    ):
        report(copied)
    (copied / "metrics.jsonl").write_text('{"epoch": 0, "train')  # being written just now
    with pytest.raises(WorkdirError) as refusal:
        report(copied)
    assert str(refusal.value) == f"{copied} has no finished epoch; wait for one if it trains"


def test_a_comparison_of_the_two_holds_their_numbers(finished, broken_off):
    runs = [read_run(path) for path in (finished, broken_off)]
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in compare.table(runs).splitlines()
    )
    done, going_on = (dict(zip(header, row, strict=True)) for row in rows)
    results = json.loads((finished / "results.json").read_text())
    (*_, evaluated) = map(json.loads, (broken_off / "metrics.jsonl").read_text().splitlines())
    assert done["epochs"] == "3"
    assert going_on["epochs"] == "2 of 3"
    assert done["test ELBO"] == f"{results['test_elbo']:.2f}"
    assert going_on["test ELBO"] == f"{evaluated['test_elbo']:.2f}"
    assert done["test log-likelihood"].startswith(f"{results['test_log_likelihood']:.2f} ± ")
    assert going_on["test log-likelihood"] == ""


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.report", *arguments],
        cwd=ROOT,
        # Compiled as in this process, where most has been compiled already.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_writes_the_report_and_says_where(finished, tmp_path):
    copied = copy_of(finished, tmp_path, experiment=None)  # whose model is not drawn again
    (copied / "report.html").unlink()
    result = command(str(copied))
    assert (result.returncode, result.stdout) == (0, f"{copied / page.NAME} is written.\n")
    assert page_of(copied).count("<img ") == len(ALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one workdir: python -m experiments.report WORKDIR"),
        (["a", "b"], "give one workdir: python -m experiments.report WORKDIR"),
        (
            ["a", "--layer=-1"],
            "flag --layer=-1: give a whole number of at least 0 and at most 2147483647",
        ),
    ],
)
def test_a_command_that_cannot_be_followed_is_refused_in_one_line_with_status_2(arguments, message):
    result = command(*arguments)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {message}\n")
