"""Checkpoints: what is saved comes back, or a line says why not, whatever befalls the files."""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from full_disk import no_room_beyond
from on_disk import Disk
from xla_flags import with_cpu_devices

from experiments.errors import WorkdirError
from experiments.store import checkpoints as checkpoints_lib
from experiments.store import manifests
from experiments.store.checkpoints import Checkpoints

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[3]


class State(NamedTuple):
    """What is saved, in the form of a run's."""

    params: Any
    opt_state: Any
    step: Any


def state_of(step: int) -> State:
    """A state whose every number is known from its step."""
    params = {
        "layer": {
            "kernel": np.arange(40, dtype=np.float32).reshape(8, 5) + step,
            "bias": np.full(5, step, np.float32),
        }
    }
    state = State(params, optax.adam(1e-3).init(params), np.int32(step))
    return jax.tree.map(jnp.asarray, state)


def assert_is_state_of(step: int, state: State) -> None:
    expected = state_of(step)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for found, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(leaf))


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints of the steps 1, 2 and 3."""
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(path)
    for step in (1, 2, 3):
        checkpoints.save(state_of(step), step)
    checkpoints.close()
    return path


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_the_newest_state_comes_back_bit_for_bit(saved, capsys):
    state, step = Checkpoints(saved).restore(state_of(0))
    assert step == 3
    assert_is_state_of(3, state)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    assert_is_state_of(3, Checkpoints(saved).restore(abstract)[0])
    assert capsys.readouterr().err == ""


def test_one_gets_its_name_once_all_of_it_is_on_the_disk_and_then_the_name_is(
    tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    disk = Disk(monkeypatch)
    checkpoints.save(state_of(1), 1)
    monkeypatch.undo()
    checkpoints.close()
    assert disk.missing_when_named[tmp_path / "checkpoints" / "1"] == []
    assert disk.missing(tmp_path) == []


def test_orbax_itself_reads_them(saved):
    with ocp.CheckpointManager(saved) as manager:
        assert manager.all_steps() == [1, 2, 3]
        restored = manager.restore(2, args=ocp.args.StandardRestore(state_of(0)))
    assert_is_state_of(2, restored)


def test_parameters_alone_come_back_as_numpy_arrays(saved):
    params, step = Checkpoints(saved).read("params")
    assert step == 3
    assert jax.tree.structure(params) == jax.tree.structure(state_of(3).params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(params["layer"]["bias"], np.full(5, 3.0))
    with pytest.raises(WorkdirError, match="holds no 'weights'"):
        Checkpoints(saved).read("weights")


@pytest.mark.parametrize("moment", ["before it is verified", "before it is read"])
def test_one_that_a_run_replaces_meanwhile_is_no_damage(moment, copied, monkeypatch, capsys):
    """As `report` meets it beside a run in training that keeps only its newest choice."""
    writer, reader = Checkpoints(copied, keep=1), Checkpoints(copied, keep=1)
    owner, name = (
        (checkpoints_lib, "verify") if moment == "before it is verified" else (reader, "_metadata")
    )
    inner = getattr(owner, name)

    def replaced_first(*arguments):
        monkeypatch.undo()
        writer.save(state_of(5), 5)
        return inner(*arguments)

    monkeypatch.setattr(owner, name, replaced_first)
    params, step = reader.read("params")
    assert step == 5
    np.testing.assert_array_equal(params["layer"]["bias"], np.full(5, 5.0))
    assert capsys.readouterr().err == ""


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(state_of(0)) is None
    assert Checkpoints(tmp_path / "none").read("params") is None
    assert Checkpoints(tmp_path / "none").best() is None


def test_the_last_three_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    kept = []
    for step, score in enumerate([-90.0, -80.0, -85.0, float("nan"), None, -82.0, -80.0], start=1):
        checkpoints.save(state_of(step), step, score)
        kept.append((checkpoints.steps(), checkpoints.best()))
    assert kept == [
        ([1], 1),
        ([1, 2], 2),
        ([1, 2, 3], 2),
        ([2, 3, 4], 2),
        ([2, 3, 4, 5], 2),
        ([2, 4, 5, 6], 2),
        ([5, 6, 7], 7),  # of two that are as good, the newer
    ]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "longer":
        path.write_bytes(content + b"\0")
    else:  # one bit
        at = random.Random(len(content)).randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)


@pytest.mark.parametrize("how", ["missing", "truncated", "longer", "flipped"])
def test_damage_to_any_file_falls_back_to_the_checkpoint_before(how, saved, tmp_path, capsys):
    names = files_of(saved / "3")
    assert {"manifest.json", "default/_METADATA", "default/_CHECKPOINT_METADATA"} < set(names)
    assert any(name.startswith("default/ocdbt.process_0/d/") for name in names)
    for name in names:
        path = tmp_path / "checkpoints"
        shutil.copytree(saved, path)
        damage(path / "3" / name, how)
        state, step = Checkpoints(path).restore(state_of(0))
        assert step == 2, name
        assert_is_state_of(2, state)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: {path / '3'} is damaged (")
        assert Path(name).name in line
        assert line.endswith("the checkpoint of step 2 is used instead")
        shutil.rmtree(path)


def test_damage_to_two_is_two_warnings_and_to_all_an_error(copied, capsys):
    damage(copied / "3" / "default/_METADATA", "flipped")
    damage(copied / "2" / "default/manifest.ocdbt", "truncated")
    _, step = Checkpoints(copied).read("params")
    assert step == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
    damage(copied / "1" / "manifest.json", "missing")
    for use in (lambda c: c.restore(state_of(0)), lambda c: c.read("params")):
        with pytest.raises(WorkdirError) as refusal:
            use(Checkpoints(copied))
        message = str(refusal.value)
        assert message.startswith(f"{copied} holds no checkpoint that is intact (step 3: ")
        assert message.endswith("Restore them from a copy, or start again with --overwrite")
        assert "\n" not in message
    assert Checkpoints(copied).steps() == [1, 2, 3]  # nothing was removed


def test_a_checkpoint_under_another_steps_name_is_not_used(copied):
    (copied / "3").rename(copied / "30")
    assert Checkpoints(copied).restore(state_of(0))[1] == 2


def test_a_resumed_run_replaces_the_damaged_and_the_later(copied):
    damage(copied / "3" / "default/_METADATA", "flipped")
    checkpoints = Checkpoints(copied, keep=3)
    assert checkpoints.restore(state_of(0))[1] == 2
    checkpoints.save(state_of(2), 2)  # the same step once more
    assert checkpoints.steps() == [1, 2]
    for step in (3, 4):
        checkpoints.save(state_of(step), step)
    assert checkpoints.steps() == [2, 3, 4]
    state, step = checkpoints.restore(state_of(0))
    assert step == 4
    assert_is_state_of(4, state)


def test_a_damaged_one_that_was_passed_over_counts_as_none(copied):
    damage(copied / "2" / "default/_METADATA", "flipped")
    damage(copied / "3" / "default/_METADATA", "flipped")
    checkpoints = Checkpoints(copied)
    assert checkpoints.restore(state_of(0))[1] == 1
    checkpoints.save(state_of(5), 5)
    assert checkpoints.steps() == [1, 5]


def test_what_a_manifest_names_outside_its_folder_is_never_opened(copied, tmp_path):
    (tmp_path / "secret").write_text("secret")
    sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    manifest = json.loads((copied / "3" / "manifest.json").read_text())
    del manifest["sha256"]
    for name in ("../../secret", str(tmp_path / "secret"), "default/../../../secret"):
        content = manifest | {"files": manifest["files"] | {name: [6, sha256]}}
        content["sha256"] = manifests._digest(content)
        (copied / "3" / "manifest.json").write_text(json.dumps(content))
        assert manifests.verify(copied / "3", 3) == f"{name} is missing"


def test_a_link_in_place_of_a_file_is_not_followed(copied):
    file = copied / "3" / "default/_METADATA"
    file.rename(copied / "elsewhere")
    file.symlink_to(copied / "elsewhere")
    assert manifests.verify(copied / "3", 3) == "default/_METADATA is missing"


@pytest.mark.parametrize("content", ["[]", "{}", "null", "[" * 100_000, '{"sha256": 1}', "\udcff"])
def test_a_manifest_of_anything_else_is_damaged(content, copied):
    (copied / "3" / "manifest.json").write_text(content, errors="surrogateescape")
    assert manifests.verify(copied / "3", 3) == "manifest.json is missing or damaged"


def test_another_models_state_is_refused_with_the_difference(saved):
    params = {"layer": {"kernel": jnp.zeros((8, 6)), "bias": jnp.zeros(5)}}
    wider = State(params, optax.adam(1e-3).init(params), jnp.int32(0))
    with pytest.raises(WorkdirError) as refusal:
        Checkpoints(saved).restore(wider)
    assert str(refusal.value) == (
        f"{saved / '3'} holds another state than this run's (opt_state/0/mu/layer/kernel is "
        "(8, 5) there, and (8, 6) here, and 2 more); give another run's folder"
    )
    with pytest.raises(WorkdirError, match=r"\(more is missing there, and \(2,\) here\)"):
        Checkpoints(saved).restore({**state_of(0)._asdict(), "more": jnp.zeros(2)})


COMMON = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from experiments.store.checkpoints import Checkpoints
from tests_of import assert_is_state_of, state_of
"""


def start(script: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
    """A process that knows this file as `tests_of`."""
    load = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('tests_of', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['tests_of'] = module\nspec.loader.exec_module(module)\n"
    )
    environment = os.environ | {
        "XLA_FLAGS": with_cpu_devices(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", load + COMMON + script, *map(str, arguments)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


SHARDED = """
path, devices = Path(sys.argv[1]), jax.devices()
mesh = Mesh(np.array(devices), ("data",))
def sharding(leaf):
    return NamedSharding(mesh, P("data") if leaf.ndim == 2 else P())
like = jax.tree.map(
    lambda l: jax.ShapeDtypeStruct(l.shape, l.dtype, sharding=sharding(l)), state_of(0)
)
checkpoints = Checkpoints(path)
restored = checkpoints.restore(like)
if restored is not None:
    state, step = restored
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(step)), strict=True):
        assert leaf.sharding == sharding(leaf), leaf.sharding
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(expected)[shard.index])
    bias = checkpoints.read("params")[0]["layer"]["bias"]
    np.testing.assert_array_equal(bias, np.full(5, step, np.float32))
step = int(sys.argv[2])
state = jax.tree.map(
    lambda l: jax.make_array_from_callback(l.shape, sharding(l), lambda i: np.asarray(l)[i]),
    state_of(step),
)
checkpoints.save(state, step)
checkpoints.close()
print("restored", restored and restored[1], "saved", step)
"""


def test_a_state_comes_back_onto_another_number_of_devices(tmp_path):
    path = tmp_path / "checkpoints"
    for step, devices, before in ((1, 8, None), (2, 2, 1)):
        out = finish(start(SHARDED, path, step, devices=devices))
        assert out == f"restored {before} saved {step}\n"
    state, step = Checkpoints(path).restore(state_of(0))
    assert step == 2
    assert_is_state_of(2, state)


def test_two_processes_save_and_restore_together_and_use_the_same_one(saved, tmp_path):
    distributed = """
jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=int(sys.argv[4]))
"""
    path = tmp_path / "checkpoints"
    shutil.copytree(saved, path)  # of one process and one device
    damage(path / "3" / "default/_METADATA", "flipped")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [start(distributed + SHARDED, path, 5, address, i, devices=2) for i in (0, 1)]
    for process in both:
        assert finish(process).splitlines()[-1] == "restored 2 saved 5"
    state, step = Checkpoints(path).restore(state_of(0))
    assert step == 5
    assert_is_state_of(5, state)


def test_a_limit_on_file_sizes_ends_in_one_line_and_leaves_the_one_before_intact(tmp_path, capfd):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(1), 1)
    with no_room_beyond(1000), pytest.raises(WorkdirError) as refusal:
        checkpoints.save(state_of(2), 2)
    assert str(refusal.value) == (
        f"cannot save the checkpoint of step 2 in {tmp_path}: "
        f"{os.strerror(errno.EFBIG).lower()}; the one of step 1 is intact. "
        "Free space and run the same command again"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_is_state_of(1, Checkpoints(tmp_path).restore(state_of(0))[0])
    checkpoints.save(state_of(2), 2)
    assert checkpoints.steps() == [1, 2]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("where", ["_make_sure_of_room", "write_manifest", "orbax"])
def test_a_full_disk_at_any_stage_leaves_the_one_before_intact(
    where, number, tmp_path, monkeypatch
):
    def fail(*_args, **_kwargs):
        if where == "orbax":  # tensorstore's errors have the reason in their message alone
            raise ValueError(f"RESOURCE_EXHAUSTED: file 18: {os.strerror(number)} [os_error_code]")
        raise OSError(number, os.strerror(number))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(1), 1)
    with monkeypatch.context() as patch:
        if where == "orbax":
            patch.setattr(checkpoints._orbax, "save", fail)
        else:
            patch.setattr(checkpoints_lib, where, fail)
        with pytest.raises(WorkdirError, match="the one of step 1 is intact") as refusal:
            checkpoints.save(state_of(2), 2)
    assert os.strerror(number).lower() in str(refusal.value)
    full = number in (errno.ENOSPC, errno.EDQUOT)
    what_to_do = "Free space and run the same" if full else "Repair the folder, or give another"
    assert what_to_do in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_is_state_of(1, checkpoints.restore(state_of(0))[0])


def test_a_file_in_place_of_the_folder_is_no_lack_of_room(tmp_path):
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(WorkdirError) as refusal:
        Checkpoints(tmp_path / "checkpoints").save(state_of(1), 1)
    assert str(refusal.value) == (
        f"cannot save the checkpoint of step 1 in {tmp_path / 'checkpoints'}: file exists; there "
        "is no other. Repair the folder, or give another --workdir"
    )


SAVING = """
checkpoints = Checkpoints(Path(sys.argv[1]))
restored = checkpoints.restore(state_of(0))
step = 0
if restored is not None:
    state, step = restored
    assert_is_state_of(step, state)
print("restored", step, flush=True)
while True:
    step += 1
    checkpoints.save(state_of(step), step)
    print("saved", step, flush=True)
"""


def stop_while_saving(process: subprocess.Popen, path: Path) -> None:
    """Stops the process at a moment at which a folder is half written, however short that is."""

    def half_written() -> bool:
        return any(not folder.name.isdecimal() for folder in path.iterdir())

    while True:
        while not half_written():
            assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if half_written():
            return
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_process_that_only_saves_is_killed_at_random_moments_and_loses_nothing(kills, tmp_path):
    path, moments = tmp_path / "checkpoints", random.Random(0)
    claimed = 0
    for saving in (False, True) * (kills // 2):
        with start(SAVING, path) as process:
            line = process.stdout.readline()
            # Everything that was said to be saved is there; at most the one that was begun is more.
            assert line.startswith("restored "), process.stderr.read()
            assert claimed <= int(line.split()[1]) <= claimed + 1
            saved = process.stdout.readline()
            if saving:
                stop_while_saving(process, path)
            else:
                time.sleep(moments.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            *_, saved = [saved, *process.stdout]
            assert process.stderr.read() == ""
            assert process.wait(60) == -signal.SIGKILL
            assert not saving or any(not folder.name.isdecimal() for folder in path.iterdir())
        claimed = int(saved.removeprefix("saved "))
        state, step = Checkpoints(path).restore(state_of(0))
        assert claimed <= step <= claimed + 1
        assert_is_state_of(step, state)
