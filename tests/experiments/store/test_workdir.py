"""A run's folder: whose it is, who may write it, and what of it survives what."""

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import records
from full_disk import no_room_beyond
from on_disk import Disk
from random_parameters import random_params

import lvae_jax
from experiments.errors import WorkdirError
from experiments.settings import Settings
from experiments.store import locks
from experiments.store.files import remove, write_json
from experiments.store.workdir import (
    FORMAT,
    Workdir,
    read_config,
    read_metrics,
    read_results,
    read_run,
    read_trained,
)
from lvae_jax import LadderVAE

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[3]
CONFIG = {"dataset": "stripes", "settings": {"seed": 0}}
RESULTS = records.run_results()
OTHER = {"dataset": "stripes", "settings": {"seed": 1}}


class State(NamedTuple):
    """What is saved, in the form of a run's."""

    params: Any
    opt_state: Any
    step: Any


def state_of(step: int) -> State:
    return State({"w": jnp.full(3, step, jnp.float32)}, (), jnp.int32(step))


def run_of(path: Path, config: dict = CONFIG) -> Path:
    """A run of two epochs, of three steps each, with all files that a run makes."""
    workdir = Workdir(path, config)
    workdir.create()
    for epoch in (0, 1):
        workdir.append_metrics(records.epoch(epoch))
        workdir.save(state_of(3 * epoch + 3), 3 * epoch + 3)
    workdir.chosen.save(state_of(3), 3)
    workdir.write_results(RESULTS)
    for name in ("tensorboard/events", "figures/samples.png", "report.html"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("of the run")
    workdir.close()
    return path


def contents_of(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def run(tmp_path) -> Path:
    return run_of(tmp_path / "run")


@pytest.mark.parametrize("name", ["~", "~no-such-user"])
def test_the_model_is_saved_in_the_runs_folder_even_if_its_name_begins_with_a_tilde(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model = LadderVAE(4, (2,), (3,), batch_norm=False)
    variables = {"params": random_params(model)}
    Workdir(Path(name), CONFIG).save_model(model, variables, {}, replica=None)
    assert lvae_jax.load(tmp_path / name / "model")[0] == model
    assert not (tmp_path / "home").exists()


def test_what_was_saved_is_found_again(run):
    workdir = Workdir(run, CONFIG)
    workdir.create()
    state, step = workdir.restore(state_of(0))
    assert (step, int(state.step), state.params["w"].tolist()) == (6, 6, [6.0] * 3)
    state, step = workdir.chosen.restore(state_of(0))
    assert (step, state.params["w"].tolist()) == (3, [3.0] * 3)
    assert [record.epoch for record in workdir.truncate_metrics(2)] == [0, 1]
    assert workdir.results() == RESULTS
    assert read_config(run) == {"format": FORMAT, **CONFIG}
    workdir.close()
    params, step = read_trained(run)
    assert (step, params["w"].tolist()) == (3, [3.0] * 3)  # the chosen one
    shutil.rmtree(run / "chosen")
    params, step = read_trained(run)
    assert (step, params["w"].tolist()) == (6, [6.0] * 3)


def test_a_damaged_chosen_state_is_refused(run):
    (run / "chosen" / "3" / "default" / "_METADATA").write_text("{}")
    workdir = Workdir(run, CONFIG)
    workdir.create()
    with pytest.raises(WorkdirError, match="holds no checkpoint that is intact"):
        workdir.chosen.restore(state_of(0))
    workdir.close()


def test_other_settings_are_refused_with_the_difference_and_what_to_do(run):
    before = contents_of(run)
    with pytest.raises(WorkdirError) as refusal:
        Workdir(run, OTHER)
    assert str(refusal.value) == (
        f"{run} holds a run with other settings: seed was 0 and is now 1. Give those settings "
        "again, another --workdir, or --overwrite to start again"
    )
    assert contents_of(run) == before


def test_overwrite_removes_what_the_run_made_and_nothing_else(run):
    (run / "notes.txt").write_text("precious")
    for name in ("probe", "outliers-mnist", "impute-0.5", "certify"):
        (run / f"{name}.json").write_text("{}")
    elsewhere = run.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("precious")
    shutil.rmtree(run / "figures")
    (run / "figures").symlink_to(elsewhere)
    before = contents_of(run)
    workdir = Workdir(run, OTHER, overwrite=True)
    assert workdir.results() is None
    assert not workdir.resumes()
    assert contents_of(run) == before  # until it is created
    workdir.create()
    assert {path.name for path in run.iterdir()} == {"config.json", "notes.txt", "lock"}
    assert (elsewhere / "file").read_text() == "precious"
    assert read_config(run)["settings"] == {"seed": 1}
    assert workdir.restore(state_of(0)) is None
    workdir.append_metrics(records.epoch(0))
    workdir.create()  # the run's own files are not removed by a second call
    assert len(read_metrics(run)) == 1
    workdir.close()


def failing_after(count: int):
    """`files.remove` until it has removed so many; then an error. With it, what it has removed."""
    removed = []

    def remove_or_fail(path):
        if path.exists():
            if len(removed) == count:
                raise OSError(errno.EIO, "Input/output error")
            removed.append(path.name)
        remove(path)

    return remove_or_fail, removed


def test_overwrite_broken_off_anywhere_leaves_no_finished_run_and_is_begun_again(
    run, tmp_path, monkeypatch
):
    """Results are left only beside all that the run made."""
    (run / "probe.json").write_text("{}")
    shutil.copytree(run / "figures", run / "model")
    names = {path.name for path in run.iterdir()} - {"lock"}
    for count in range(len(names)):
        folder = shutil.copytree(run, tmp_path / f"after {count}")
        before = contents_of(folder)
        del before[str(folder / "probe.json")]
        remove_or_fail, removed = failing_after(count)
        workdir = Workdir(folder, OTHER, overwrite=True)
        with monkeypatch.context() as patch:
            patch.setattr("experiments.store.workdir.remove", remove_or_fail)
            with pytest.raises(WorkdirError, match="Input/output error"):
                workdir.create()
        workdir.close()
        assert len(removed) == count
        if read_results(folder):
            assert before.items() <= contents_of(folder).items()
        again = Workdir(folder, OTHER, overwrite=True)
        again.create()
        again.close()
        assert {path.name for path in folder.iterdir()} == {"config.json", "lock"}
        assert read_config(folder)["settings"] == OTHER["settings"]


@pytest.mark.parametrize("config", [None, "[1]", '{"dataset": "x"}', '{"model_type": "bert"}'])
def test_a_folder_that_is_no_runs_is_not_overwritten(config, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "thesis.tex").write_text("precious")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = contents_of(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(WorkdirError, match=r"is not a run's"):
            Workdir(tmp_path, CONFIG, overwrite=overwrite)
    assert contents_of(tmp_path) == before


HOLD = """
import sys, time
from pathlib import Path
from experiments.store.workdir import Workdir
workdir = Workdir(Path(sys.argv[1]), {"dataset": "stripes", "settings": {"seed": 0}})
workdir.create()
print("created", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(run):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout.readline() == "created\n"
            before = contents_of(run)
            for overwrite in (True, False):
                second = Workdir(run, CONFIG, overwrite=overwrite)
                with pytest.raises(WorkdirError) as refusal:
                    second.create()
                assert str(refusal.value) == (
                    f"{run} is in use by process {first.pid} on {socket.gethostname()}; "
                    "wait for it, stop it, or give another --workdir"
                )
                assert contents_of(run) == before
            assert Workdir(run, CONFIG).results() == RESULTS  # without the lock
        finally:
            first.send_signal(signal.SIGKILL)
    second.create()
    second.close()


def test_the_lock_ends_with_close_and_is_not_passed_on_to_children(tmp_path):
    first, second = (Workdir(tmp_path / "run", CONFIG) for _ in range(2))
    first.create()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.raises(WorkdirError, match=f"in use by process {os.getpid()} on "):
        second.create()
    first.close()
    second.create()
    second.close()
    child.communicate(b"\n")


def test_a_run_that_another_process_began_meanwhile_is_seen(tmp_path):
    late = Workdir(tmp_path / "run", OTHER)
    run_of(tmp_path / "run")
    with pytest.raises(WorkdirError, match="seed was 0 and is now 1"):
        late.create()
    again = Workdir(tmp_path / "run", CONFIG)
    again.create()  # the refused one holds no lock
    again.close()


def test_a_process_that_is_not_the_first_leaves_all_as_it_is(run, monkeypatch):
    before = contents_of(run)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    workdir = Workdir(run, CONFIG)
    workdir.create()
    assert len(workdir.truncate_metrics(1)) == 1
    workdir.append_metrics(records.epoch(1))
    workdir.write_results(RESULTS)
    workdir.close()
    assert contents_of(run) == before


@pytest.mark.parametrize("version", [FORMAT + 1, "new", None])
def test_another_format_is_refused_but_to_overwrite_it(version, run):
    found = CONFIG if version is None else {"format": version, **CONFIG}  # the first said nothing
    (run / "config.json").write_text(json.dumps(found))
    shown = 1 if version is None else version
    for use in (lambda: Workdir(run, CONFIG), lambda: read_config(run), lambda: read_trained(run)):
        with pytest.raises(WorkdirError, match=f"has format {shown}, and this version"):
            use()
    again = Workdir(run, CONFIG, overwrite=True)
    again.create()
    again.close()
    assert read_config(run)["format"] == FORMAT


def test_the_same_data_by_another_name_are_the_same_run(tmp_path):
    config = {"dataset": "mine", "data_sha256": 64 * "a", "settings": {"seed": 0}}
    first = Workdir(tmp_path / "run", config)
    first.create()
    first.close()
    Workdir(tmp_path / "run", config | {"dataset": "moved"})
    with pytest.raises(WorkdirError, match="data_sha256 was aaaaaaaaaaaa and is now bbbbbbbbbbbb"):
        Workdir(tmp_path / "run", config | {"data_sha256": 64 * "b"})


def test_a_run_that_continues_another_is_resumed_after_both_have_moved(tmp_path):
    def config(source: Path) -> dict:
        return {"dataset": "mine", "settings": {"init_from": str(source)}}

    here, there = tmp_path / "here", tmp_path / "there"
    (here / "first").mkdir(parents=True)
    workdir = Workdir(here / "second", config(here / "first"))
    workdir.create()
    workdir.close()
    # As long as the first is where it was, another of its name is another run.
    with pytest.raises(WorkdirError, match=f"init_from was {here / 'first'} and is now {there}"):
        Workdir(here / "second", config(there / "first"))
    here.rename(there)
    Workdir(there / "second", config(there / "first"))
    with pytest.raises(WorkdirError, match="holds a run with other settings: init_from was"):
        Workdir(there / "second", config(there / "third"))


# File systems that cannot do everything


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(number, tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    run_of(tmp_path / "run")
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'run'} cannot be locked ({os.strerror(number)}); let no other "
        "command write to it\n"
    )
    assert len(read_metrics(tmp_path / "run")) == 2


def test_a_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "fcntl", None)  # Windows
    run_of(tmp_path / "run")
    assert "cannot be locked (this system has no locks)" in capsys.readouterr().err


def test_a_json_file_gets_its_name_once_it_is_on_the_disk_and_then_the_name_is(
    tmp_path, monkeypatch
):
    disk = Disk(monkeypatch)
    write_json(tmp_path / "file.json", {"a": 1})
    assert disk.missing_when_named == {tmp_path / "file.json": []}
    assert disk.missing(tmp_path) == []


def test_folders_that_cannot_be_synced_are_written_all_the_same(tmp_path, monkeypatch):
    synced = os.fsync
    files = []

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        files.append(descriptor)
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run_of(tmp_path / "run")
    assert files
    assert read_trained(tmp_path / "run")[1] == 3  # what was chosen


def test_folders_that_cannot_be_opened_are_written_all_the_same(tmp_path, monkeypatch):
    opened = os.open

    def open_files(path, flags, *mode, **options):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *mode, **options)

    with monkeypatch.context() as windows:
        windows.setattr(os, "open", open_files)
        write_json(tmp_path / "file.json", {"a": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


def test_an_error_of_the_disk_is_none_of_the_file_system(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WorkdirError, match="Input/output error"):
        run_of(tmp_path / "run")


def test_lines_of_metrics_that_are_missing_are_noticed(run):
    workdir = Workdir(run, CONFIG)
    workdir.create()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1][:9]}\n")
    with pytest.raises(WorkdirError) as refusal:
        workdir.truncate_metrics(2)
    workdir.close()
    assert str(refusal.value) == (
        f"{run / 'metrics.jsonl'} is damaged: 2 epochs are finished, and it has 1 of them; "
        "restore it, or start again with --overwrite"
    )


def test_metrics_are_on_the_disk_before_the_checkpoint_that_claims_them(run, monkeypatch):
    workdir = Workdir(run, CONFIG)
    workdir.create()
    events = []
    monkeypatch.setattr("experiments.store.workdir.sync", lambda path: events.append(path.name))
    monkeypatch.setattr(workdir._checkpoints, "save", lambda *_: events.append("checkpoint"))
    workdir.save(state_of(9), 9)
    workdir.close()
    assert events == ["metrics.jsonl", "run", "checkpoint"]


def test_a_file_that_cannot_grow_is_a_line_and_the_next_start_goes_on(run):
    before = contents_of(run)
    size = (run / "metrics.jsonl").stat().st_size
    workdir = Workdir(run, CONFIG)
    workdir.create()
    for name, write, record in (
        ("metrics.jsonl", workdir.append_metrics, records.epoch(2)),
        ("results.json", workdir.write_results, records.run_results(device="x" * 10000)),
    ):
        with no_room_beyond(size + 10), pytest.raises(WorkdirError) as refusal:
            write(record)
        assert str(refusal.value) == (
            f"cannot write to {run / name} (File too large); free space and run the same command "
            "again"
        )
    workdir.close()
    assert (run / "results.json").read_bytes() == before[str(run / "results.json")]
    workdir = Workdir(run, CONFIG)
    workdir.create()
    assert len(workdir.truncate_metrics(2)) == 2
    workdir.close()
    assert (run / "metrics.jsonl").read_bytes() == before[str(run / "metrics.jsonl")]


@pytest.mark.parametrize("length", range(1, 26, 4))
def test_a_line_of_metrics_cut_anywhere_is_dropped(length, run):
    whole = (run / "metrics.jsonl").read_bytes()
    line = b'{"epoch": 2, "seconds": 1.0}\n'
    (run / "metrics.jsonl").write_bytes(whole + line[:length])
    workdir = Workdir(run, CONFIG)
    workdir.create()
    kept = workdir.truncate_metrics(2)
    workdir.close()
    assert [record.epoch for record in kept] == [0, 1]
    assert (run / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("line", [b"garbage", b"", b"\xff", b"[" * 100_000, b'{"epoch": 0'])
def test_only_the_last_line_of_metrics_may_be_damaged(line, run):
    metrics = run / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + line)
    assert [record.epoch for record in read_metrics(run)] == [0, 1]
    first, second = whole.splitlines()
    for number, lines in ((1, (line, first, second)), (2, (first, line, second))):
        metrics.write_bytes(b"\n".join(lines) + b"\n")
        for read in (lambda: read_metrics(run), lambda: Workdir(run, CONFIG).truncate_metrics(2)):
            with pytest.raises(WorkdirError) as refusal:
                read()
            assert str(refusal.value) == (
                f"{metrics} is damaged: line {number} is not JSON; restore it, or start again with "
                "--overwrite"
            )


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": None}, {"replicas": []}, {"replicas": 3}, {"replicas": [3]},
        {"train_elbo": "abc"}, {"kl_per_layer": 3.0}, {"kl_per_layer": [[1.0]]},
    ],
)  # fmt: skip
def test_a_record_of_other_types_is_damaged(change, tmp_path):
    for name, read, record in (
        ("metrics.jsonl", read_metrics, records.epoch(0)),
        ("results.json", read_results, RESULTS),
    ):
        (tmp_path / name).write_text(json.dumps(record.to_json()))
        assert read(tmp_path)
        (tmp_path / name).write_text(json.dumps(record.to_json() | change))
        with pytest.raises(WorkdirError, match=rf"{name} is damaged: .*; restore it, or start"):
            read(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_config_that_is_not_json_is_damaged(content, run):
    (run / "config.json").write_bytes(content)
    for use in (lambda: Workdir(run, CONFIG), lambda: read_config(run), lambda: read_run(run)):
        with pytest.raises(WorkdirError, match=r"config\.json is damaged \(.*\); restore it, or"):
            use()


def test_a_run_is_read_with_the_defaults_of_settings_added_since_its_version(run):
    (run / "config.json").write_text(
        json.dumps({"format": FORMAT, "dataset": "x", "settings": {"model": "vae", "depth": 2}})
    )
    assert read_run(run).settings == Settings().changing_results() | {"model": "vae", "depth": 2}
    for name in ("model", "depth"):
        settings = {"model": "vae", "depth": 2}
        del settings[name]
        config = {"format": FORMAT, "dataset": "x", "settings": settings}
        (run / "config.json").write_text(json.dumps(config))
        with pytest.raises(WorkdirError, match=rf"its settings have no {name}; restore it, or"):
            read_run(run)


def test_read_trained_says_what_it_found_damaged(run, capsys):
    shutil.rmtree(run / "chosen")
    file = run / "checkpoints" / "6" / "default" / "_METADATA"
    file.write_bytes(file.read_bytes()[:-1])
    params, step = read_trained(run)
    assert step == 3
    np.testing.assert_array_equal(params["w"], [3.0] * 3)
    assert "default/_METADATA has " in capsys.readouterr().err
