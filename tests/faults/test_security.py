"""Files from somebody else: nothing in them is run, and nothing is written but where it belongs."""

import ast
import contextlib
import dataclasses
import gc
import html
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import io
from small_runs import SINGLE, train

from experiments import compare, registry, report
from experiments.errors import WorkdirError
from experiments.results import Run
from experiments.run import draws
from experiments.show import drawing, page
from experiments.store.workdir import read_metrics, read_results, read_run, read_trained
from lvae_jax.data import DataError, arrays, omniglot
from lvae_jax.data.array_file import read_arrays

ROOT = Path(__file__).parents[2]

EVIL = "<script>alert(1)</script>\"'&"


class Payload:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trace(tmp_path):
    """The file that a payload creates: it is not there before, nor at the end of the test."""
    path = tmp_path / "the payload ran"
    yield path
    assert not path.exists()


def test_a_payload_would_run_if_it_were_loaded(tmp_path):
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()


# Arrays


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.npz:arr_0"])
def test_no_object_in_an_array_file_is_loaded(tmp_path, trace, name):
    path = tmp_path / name.split(":")[0]
    objects = np.array([[Payload(trace), 1.0]] * 3, object)
    (np.save if path.suffix == ".npy" else np.savez)(path, objects)
    with pytest.raises(DataError, match="holds Python objects, which are never loaded"):
        arrays.load(str(tmp_path / name))
    assert read_arrays(path, ["arr_0"]) is None


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_pickle_under_the_name_of_an_array_is_not_loaded(tmp_path, trace, name):
    (tmp_path / name).write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(DataError, match=r"is a pickle, .*, not an \.npy or \.npz file"):
        arrays.load(tmp_path / name)
    assert read_arrays(tmp_path / name, ["images"]) is None


def test_an_npz_whose_members_have_paths_writes_nothing(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    images = np.eye(6, dtype=np.float32)
    np.savez(folder / "a.npz", **{"../../outside": images, "/tmp/outside": images})
    for key in ("../../outside", "/tmp/outside"):
        loaded = arrays.load(f"{folder / 'a.npz'}:{key}")
        assert loaded.data_dim == 6
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in folder.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    "content",
    [
        np.array([["import os; os.system('touch ran')", 1.0]], object),
        {"f": "@(x) system('touch ran')"},
        "system('touch ran')",
    ],
    ids=["cell", "struct", "text"],
)
def test_nothing_but_numbers_of_a_matlab_file_is_taken(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    io.savemat("chardata.mat", dict.fromkeys(["data", "target", "testdata", "testtarget"], content))
    with pytest.raises(DataError, match="has no matrix of numbers called data"):
        omniglot.read_chardata(tmp_path / "chardata.mat")
    assert [path.name for path in tmp_path.iterdir()] == ["chardata.mat"]


def test_a_pickle_under_the_name_of_a_matlab_file_is_not_loaded(tmp_path, trace):
    (tmp_path / "chardata.mat").write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(DataError, match="expected a MATLAB file"):
        omniglot.read_chardata(tmp_path / "chardata.mat")


# Runs


RECORDED: list[str] | None = None
"""The classes that are unpickled, while they are recorded."""


def hook(event, arguments):
    if RECORDED is not None and event == "pickle.find_class":
        RECORDED.append(".".join(arguments))


@pytest.fixture(scope="module", autouse=True)
def _audited():
    sys.addaudithook(hook)  # which stays: Python has no way to take one off


@pytest.fixture
def unpickled(monkeypatch):
    """What is unpickled during the test."""
    events: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "RECORDED", events)
    return events


@pytest.fixture
def finished(finished_run) -> Path:
    return finished_run


def test_the_audit_notices_what_is_unpickled(tmp_path, unpickled):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert unpickled


def test_a_run_and_its_checkpoints_are_read_and_written_without_a_pickle(
    finished, tmp_path, unpickled, monkeypatch
):
    # These read and write none of it.
    monkeypatch.setattr(draws, "draw", lambda *_: None)
    monkeypatch.setattr(drawing, "draw_model", lambda *_: None)
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    train(tmp_path / "run", SINGLE)  # resumes from the checkpoint
    report.report(tmp_path / "run")
    read_trained(tmp_path / "run")
    assert unpickled == []


# Orbax leaves behind what it had begun to read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_file_of_a_checkpoint_is_ever_unpickled(finished, tmp_path, trace, unpickled):
    payload = pickle.dumps(Payload(trace))
    unpickled.clear()
    files = [p for p in (finished / "checkpoints").rglob("*") if p.is_file()]
    assert files
    for i, file in enumerate(files):
        copy = tmp_path / str(i)
        shutil.copytree(finished, copy)
        changed = copy / file.relative_to(finished)
        changed.write_bytes(payload)
        for name in ("checkpoint", "params.pkl", "default.pickle", "_CHECKPOINT"):
            (changed.parent / name).write_bytes(payload)
        # Whatever is said of the damage (other tests' concern), nothing in it is run.
        with contextlib.suppress(Exception):
            read_trained(copy)
        shutil.rmtree(copy)
    gc.collect()  # while that is ignored
    assert unpickled == []


@pytest.mark.parametrize(
    "name", ["evil", "os", "../evil", ".evil", "evil.evil", "experiments.evil", "digits;evil"]
)
def test_a_config_of_somebody_else_imports_no_module_of_theirs(
    finished, tmp_path, trace, name, monkeypatch
):
    code = f"import pathlib; pathlib.Path({str(trace)!r}).touch()"
    (tmp_path / "evil.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    config = json.loads((finished / "config.json").read_text()) | {"experiment": name}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkdirError, match="there is no experiment"):
        report.report(tmp_path / "run")


@pytest.mark.parametrize("value", ["__import__('os').system('x')", "evil:main", {"__class__": "x"}])
def test_a_setting_of_somebody_elses_config_is_a_value_and_nothing_else(finished, value):
    config = json.loads((finished / "config.json").read_text()) | {"experiment": "digits"}
    for name in config["settings"]:
        changed = config | {"settings": config["settings"] | {name: value}}
        assert getattr(registry.settings_of(changed), name) == value


# What is shown


def test_a_report_shows_names_as_they_are_and_makes_no_element_of_them(finished, tmp_path):
    workdir = tmp_path / "run <script>alert(1)<" / "script>"
    shutil.copytree(finished, workdir)
    config = json.loads((finished / "config.json").read_text())
    config |= {"dataset": EVIL, "experiment": "digits", "device": EVIL}
    config["settings"] |= {"init_from": EVIL, "seed": EVIL, EVIL: EVIL}
    config["versions"] |= {EVIL: EVIL}
    results = dataclasses.replace(read_results(finished), device=EVIL, seed=EVIL)
    # Files of figures that nobody asked for, one of them no picture, one a figure's.
    figures = workdir / "figures"
    (figures / "<script>.png").write_bytes(b"<script>")
    (figures / "samples.png").write_bytes(EVIL.encode())
    run = Run(workdir, config, read_metrics(finished), results)
    page.write(run, registry.command(config, workdir))
    text = (workdir / page.NAME).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img src" not in text
    assert html.unescape(text).count(EVIL) >= 8
    assert html.escape("/run <script>alert(1)</script>", quote=False) in text


def test_a_comparison_shows_names_as_they_are_and_makes_no_element_of_them(finished, tmp_path):
    workdir = tmp_path / "<img src=x onerror=alert(1)> ![a](http:x) `b`"
    shutil.copytree(finished, workdir)
    config = json.loads((finished / "config.json").read_text()) | {"dataset": EVIL}
    (workdir / "config.json").write_text(json.dumps(config))
    table = compare.table([read_run(workdir)])
    # Markdown passes HTML through; a backslash makes a letter of what would open an element.
    for opening in ("<img", "<script", "</script", "![a]"):
        assert opening not in table.replace("\\" + opening[0], "")
    assert r"\<img src=x onerror=alert(1)> !\[a](http:x) \`b\`" in table
    assert rf"\<script>alert(1)\</script>{EVIL[-3:]}" in table


# The code


FORBIDDEN_MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy",
    "tarfile", "yaml",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "extract", "extractall"}
FORBIDDEN_CALLS |= {"unpack_archive", "download_and_extract", "system", "popen"}


def sources() -> list[Path]:
    files = [*(ROOT / "lvae_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    assert len(files) > 30
    return files


def name_of(function: ast.expr) -> str:
    """The last name of what is called; that of a module's own compile() is `compile`."""
    if isinstance(function, ast.Attribute):
        return function.attr if function.attr != "compile" else ""  # a pattern, a program
    return function.id if isinstance(function, ast.Name) else ""


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_unpacks_an_archive_or_runs_a_text(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        if isinstance(node, ast.Call):
            assert name_of(node.func) not in FORBIDDEN_CALLS
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert given.get("shell", "False") == "False"
            if name_of(node.func) == "load" and ast.unparse(node.func).startswith(
                ("np.", "numpy.")
            ):
                assert given["allow_pickle"] == "False"
