"""A run on own arrays, which are named by a relative path, move, and get another name."""

import dataclasses
import shutil

import numpy as np
import pytest
from small_runs import SINGLE

from experiments import arrays, finished
from experiments.finished import UseSettings
from experiments.report import report
from experiments.run import draws
from experiments.run.loop import run
from experiments.settings import Command, Settings
from experiments.show import drawing
from lvae_jax.data import DataError

ARRAYS = Command("arrays", arrays.DEFAULTS)

# Of the digits' number and size and with the model of their small runs, whose programs these are.
SETTINGS = dataclasses.replace(
    arrays.DEFAULTS,
    **{field.name: getattr(SINGLE, field.name) for field in dataclasses.fields(Settings)},
    train="mine.npy",
    holdout=297 / 1797,
)


def test_a_run_on_own_arrays_is_resumed_reported_and_used_wherever_they_are(
    tmp_path, monkeypatch, capsys
):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    images = np.random.default_rng(0).random((1797, 8, 8), np.float32)
    np.save(here / "mine.npy", images)

    monkeypatch.chdir(here)
    settings = dataclasses.replace(SETTINGS, workdir=str(tmp_path / "run"))
    run(settings, arrays.load(settings), ARRAYS)

    # From another folder. The reports draw what the run has drawn.
    monkeypatch.setattr(draws, "draw", lambda *_: None)
    monkeypatch.setattr(drawing, "draw_model", lambda *_: None)
    monkeypatch.chdir(there)
    page = tmp_path / "run" / "report.html"
    page.unlink()
    report(tmp_path / "run")
    assert f"--train={here / 'mine.npy'}" in page.read_text(encoding="utf-8")

    # After the file has moved, and got another name.
    (here / "mine.npy").rename(there / "yours.npy")
    with pytest.raises(DataError, match=r"mine\.npy is not a file.*; if they have moved, give --"):
        report(tmp_path / "run")
    moved = dataclasses.replace(settings, train="yours.npy")
    page.unlink()
    report(tmp_path / "run", train="yours.npy")
    assert page.exists()
    workdir = [str(tmp_path / "run")]
    with pytest.raises(DataError, match=r"mine\.npy is not a file"):
        finished.read(UseSettings(), "impute", workdir)
    used = finished.read(UseSettings(train="yours.npy"), "impute", workdir)
    assert used.dataset.sha256() == arrays.load(moved).sha256()
    capsys.readouterr()
    run(moved, arrays.load(moved), ARRAYS)  # the same bytes are the same run
    assert f"{tmp_path / 'run'} is finished." in capsys.readouterr().out

    # Other bytes are none of it.
    np.save(there / "yours.npy", images[::-1])
    for use in (
        lambda: report(tmp_path / "run", train="yours.npy"),
        lambda: finished.read(UseSettings(train="yours.npy"), "impute", workdir),
    ):
        with pytest.raises(DataError, match=r"yours is not the data that .* was trained on"):
            use()
    # A model without its run takes any data that fit, as it observes them.
    others = UseSettings(data="arrays", train="yours.npy", test="yours.npy")
    for folder in (tmp_path / "run", shutil.copytree(tmp_path / "run" / "model", there / "sent")):
        used = finished.read(others, "impute", [str(folder)])
        np.testing.assert_array_equal(used.dataset.test_images, images[::-1])
