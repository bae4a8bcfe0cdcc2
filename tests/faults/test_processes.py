"""Runs that are killed, stopped, refused, diverge or have no disk: real commands, real signals.

Nothing here depends on how fast the machine is: a signal is sent when a file or a line says that
the moment has come, and where the moment is short the process is stopped before it is looked
again. Random moments are of a seed.
"""

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from xla_flags import with_cpu_devices

from experiments.store.checkpoints import Checkpoints
from experiments.store.manifests import verify

ROOT = Path(__file__).parents[2]

PATIENCE = 300.0  # seconds, of a machine that does much else

EPOCHS, STEPS = 20, 4

FLAGS = [
    "--latent_sizes=3", "--hidden_sizes=8", "--warmup_epochs=5", "--batch_size=200",
    f"--epochs={EPOCHS}", "--eval_every=2", "--eval_samples=20", "--validation=100",
]  # fmt: skip
"""Of the small runs here; 800 of the 1,000 images are left to train on."""

OFTEN = "--checkpoint_seconds=0.05"

ONE_DEVICE = with_cpu_devices(1)


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory) -> None:
    """What commands find: images, and no torch, which tensorboardX imports in seconds."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (1000, 64), np.uint8))
    (folder / "torch.py").write_text("raise ImportError('of the tests')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("IMAGES", str(folder / "images.npy"))
        yield


@pytest.fixture(scope="module", autouse=True)
def heeds_sigint() -> None:
    """Commands do not inherit that SIGINT is ignored, as it is in the background of a script."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Command:
    """A command that was started, and what it has said and written so far."""

    def __init__(self, workdir: Path, command: list[str], name: str = "", **variables: str):
        self.workdir = workdir
        said = workdir.with_name(workdir.name + name + ".said")
        self._said = said
        with said.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file,
                env=os.environ | {"XLA_FLAGS": ONE_DEVICE, "JAX_PLATFORMS": "cpu"} | variables,
            )  # fmt: skip

    def said(self) -> str:
        return self._said.read_text()

    def trains(self) -> bool:
        """Whether this start has taken a step."""
        return " took until " in self.said()

    def epochs(self) -> int:
        """The number of epochs in metrics.jsonl, once this start has taken a step."""
        return (self.workdir / "metrics.jsonl").read_text().count("\n") if self.trains() else 0

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.002)

    def stop_while(self, condition: Callable[[], bool]) -> None:
        """Stops the process at a moment at which the condition holds, however short that is."""
        while True:
            self.wait_until(condition)
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if condition():
                return
            self.process.send_signal(signal.SIGCONT)

    def send(self, number: int) -> int:
        """Sends a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def last_line(self) -> str:
        """The last line said; there was no traceback."""
        assert "Traceback" not in self.said(), self.said()
        return self.said().splitlines()[-1]


def training(workdir: Path, *flags: str) -> list[str]:
    files = [f"--train={os.environ['IMAGES']}", f"--workdir={workdir}"]
    return [sys.executable, "-m", "experiments.arrays", *FLAGS, *files, *flags]


def finish(workdir: Path, *flags: str) -> str:
    """Runs to the end; returns what was said."""
    command = Command(workdir, training(workdir, *flags))
    assert command.process.wait(PATIENCE) == 0, command.said()
    return command.said()


def is_being_written(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix == ".new" for path in folder.iterdir())


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by orbax alone."""
    import jax

    step = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(folder / str(step) / "default")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return arrays | {"step": np.asarray(step)}


def without_times(values: dict) -> dict:
    return {name: value for name, value in values.items() if "seconds" not in name}


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(found: Path, expected: Path) -> None:
    """Bit for bit: the last checkpoint, what validation chose, metrics.jsonl and results.json."""
    for folder in ("checkpoints", "chosen"):
        there, here = arrays_of(expected / folder), arrays_of(found / folder)
        assert there.keys() == here.keys()
        for name, array in there.items():
            assert array.tobytes() == here[name].tobytes(), (folder, name)
    epochs = [line["epoch"] for line in lines_of(found)]
    assert epochs == list(range(len(epochs)))
    assert list(map(without_times, lines_of(found))) == list(map(without_times, lines_of(expected)))
    results = [json.loads((path / "results.json").read_text()) for path in (found, expected)]
    assert without_times(results[0]) == without_times(results[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(workdir)
    return workdir


def refuse_another(first: Command, *flags: str) -> None:
    """A second command on the folder of one that was stopped, which keeps its lock."""
    second = Command(first.workdir, training(first.workdir, *flags), name=".second")
    assert second.process.wait(PATIENCE) == 2, second.said()
    assert second.said() == (
        f"error: {first.workdir} is in use by process {first.process.pid} on "
        f"{socket.gethostname()}; wait for it, stop it, or give another --workdir\n"
    )


def kill_all(
    workdir: Path, moments: random.Random, kinds: list[str], *flags: str, epochs: int
) -> list[str]:
    """Starts one run again and again, and kills each start.

    The moments in training are uniform over the first epochs. While the first start that saves a
    checkpoint is there, a second command is refused.

    Returns:
      What each start was about when it was killed.
    """
    after = sorted(moments.uniform(0, epochs) for kind in kinds if kind != "evaluating")
    caught = []
    for kind in kinds:
        command = Command(workdir, training(workdir, OFTEN, *flags))
        least = after.pop(0) if kind != "evaluating" else EPOCHS
        if kind == "training":
            command.wait_until(lambda: command.trains() and command.epochs() >= least)  # noqa: B023
            time.sleep(moments.uniform(0, 0.1))
        elif kind == "starting":
            command.wait_until(lambda: bool(command.said()))  # noqa: B023
            time.sleep(moments.uniform(0, 0.5))
        elif kind in ("checkpoints", "chosen"):
            command.stop_while(
                lambda: (
                    command.epochs() >= least and is_being_written(workdir / kind)  # noqa: B023
                )
            )
        else:  # once the first picture is drawn
            begun = time.time()
            picture = workdir / "figures" / "samples.png"
            command.wait_until(
                lambda: picture.exists() and picture.stat().st_mtime > begun  # noqa: B023
            )
        if kind == "checkpoints" and kind not in caught:
            refuse_another(command, *flags)
        assert command.send(signal.SIGKILL) == -signal.SIGKILL, command.said()
        assert not (workdir / "results.json").exists()
        caught.append(kind)
    return caught


def resume_from(line: str) -> list[str]:
    """The command that a run says goes on."""
    python, *rest = shlex.split(line.split("; resume with: ")[1])
    assert python == "python"
    return [sys.executable, *rest]


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def limited(size: int, command: list[str]) -> list[str]:
    """A command none of whose files can grow beyond a size, as on a disk that is full."""
    return [sys.executable, "-c", LIMITED, str(size), *command[1:]]


def assert_was_asked_to_end(command: Command, name: str) -> int:
    """It said so, and has saved the step that is returned."""
    assert command.process.returncode == 128 + getattr(signal, name), command.said()
    saved = rf"stopped after step (\d+), which is saved in {command.workdir}; resume with: "
    said = re.match(f"error: {name}: {saved}", command.last_line())
    assert said, command.said()
    step = int(said[1])
    assert verify(command.workdir / "checkpoints" / str(step), step) is None
    return step


def test_a_run_killed_twice_asked_to_end_twice_and_without_room_equals_an_uninterrupted_one(
    whole, tmp_path
):
    workdir = tmp_path / "run"
    kinds = ["training", "checkpoints"]
    assert kill_all(workdir, random.Random(0), kinds, epochs=EPOCHS // 2 - 2) == kinds

    # Asked to end in training. Its checkpoints are a minute apart.
    command = Command(workdir, training(workdir))
    command.wait_until(lambda: command.epochs() >= EPOCHS // 2)
    command.send(signal.SIGINT)
    assert "resuming after epoch" in command.said()  # no lock was left
    step = assert_was_asked_to_end(command, "SIGINT")
    assert EPOCHS * STEPS // 2 <= step < EPOCHS * STEPS
    assert len(lines_of(workdir)) == step // STEPS
    resume = resume_from(command.last_line())

    # No room for another checkpoint.
    command = Command(workdir, limited(400_000, training(workdir, "--checkpoint_seconds=0.5")))
    assert command.process.wait(PATIENCE) == 2, command.said()
    assert re.match(
        rf"error: cannot save the checkpoint of step \d+ in {workdir}/(checkpoints|chosen): file "
        r"too large; the one of step \d+ is intact\. Free space and run the same command again$",
        command.last_line(),
    ), command.said()
    assert verify(workdir / "checkpoints" / str(step), step) is None
    assert Checkpoints(workdir / "checkpoints").steps()[-1] == step

    # Asked to end while evaluating.
    command = Command(workdir, resume)
    command.wait_until((workdir / "figures").exists)
    assert command.send(signal.SIGTERM) == 128 + signal.SIGTERM
    assert f"resuming after epoch {step // STEPS}" in command.said()
    assert command.last_line().startswith(
        f"error: SIGTERM: stopped while evaluating; training is done and saved in {workdir}; "
    )
    command = Command(workdir, resume_from(command.last_line()))
    assert command.process.wait(PATIENCE) == 0, command.said()
    assert_equal_runs(workdir, whole)


@pytest.mark.slow
def test_runs_killed_at_twenty_moments_equal_uninterrupted_ones_bit_for_bit(whole, tmp_path):
    begin = ["training", "chosen", "training", "checkpoints", "training", "checkpoints"]
    of_one, of_two = random.Random(0), random.Random(1)
    first = tmp_path / "one"

    def chain(workdir: Path, moments: random.Random, kinds: list[str], *flags: str) -> list[str]:
        caught = kill_all(workdir, moments, kinds, *flags, epochs=EPOCHS - 4)
        assert "resuming after epoch" in finish(workdir, OFTEN, *flags)
        return caught

    def one() -> list[str]:
        caught = kill_all(first, of_one, ["starting"], epochs=EPOCHS)
        # Asked to end while it compiles.
        command = Command(first, training(first))
        command.wait_until(lambda: "training images" in command.said())
        command.send(signal.SIGTERM)
        assert 0 < assert_was_asked_to_end(command, "SIGTERM") < EPOCHS * STEPS
        kinds = [*begin, "training", "training", "checkpoints", "evaluating", "evaluating"]
        return caught + chain(first, of_one, kinds)

    def two() -> list[str]:
        finish(tmp_path / "whole", "--replicas=2")
        return chain(tmp_path / "two", of_two, ["starting", *begin, "evaluating"], "--replicas=2")

    with ThreadPoolExecutor() as pool:
        both = [pool.submit(one), pool.submit(two)]
        kills = [kind for chain in both for kind in chain.result()]
    assert len(kills) == 20
    assert_equal_runs(first, whole)
    assert_equal_runs(tmp_path / "two", tmp_path / "whole")


def test_a_second_sigint_stops_at_once_even_while_a_program_is_compiled(tmp_path):
    workdir = tmp_path / "run"
    # Programs that no cache has, and that are compiled for seconds.
    sizes = ["--latent_sizes=7,6,5,4,3", "--hidden_sizes=29,23,19,17,13", "--iw_samples=3"]
    command = Command(
        workdir,
        training(workdir, *sizes, "--compilation_cache=off"),
        JAX_DISABLE_MOST_OPTIMIZATIONS="0",
    )
    command.wait_until(lambda: "training images" in command.said())
    command.process.send_signal(signal.SIGINT)
    command.wait_until(lambda: "again to stop at once" in command.said())
    assert command.send(signal.SIGINT) == 128 + signal.SIGINT
    assert not command.trains()
    assert not (workdir / "checkpoints").exists()


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("absl.flags", signal.SIGINT), ("numpy", signal.SIGTERM), ("flax", signal.SIGINT),
        ("matplotlib", signal.SIGTERM),
    ],
)  # fmt: skip
def test_a_signal_while_modules_are_imported_ends_the_process_without_a_run(
    module, number, tmp_path
):
    python, *arguments = training(tmp_path / "run")
    command = Command(tmp_path / "run", [python, "-X", "importtime", *arguments])
    command.wait_until(lambda: re.search(rf"\| +{module}\n", command.said()))
    assert command.send(number) in (-number, 128 + number), command.said()
    assert "Fatal" not in command.said()
    assert not (tmp_path / "run" / "results.json").exists()


LONG = """
import dataclasses, json, sys
from pathlib import Path
import jax
from experiments import digits
from experiments.run import record
from experiments.run.loop import run
from experiments.settings import Command

memory, traced = [], []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: traced.append((len(memory), event))
)
add = record.Record.add

def adding(self, line):
    add(self, line)
    status = dict(row.split(":") for row in Path("/proc/self/status").read_text().splitlines())
    memory.append(sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 1024)

record.Record.add = adding
settings = dataclasses.replace(
    digits.DEFAULTS, depth=2, latent_sizes=(16, 8), hidden_sizes=(128, 64), batch_size=50,
    epochs=500, eval_every=10, eval_samples=5, checkpoint_seconds=1.0, workdir=sys.argv[1],
)
data = digits.load(settings)
arrays = ("train_images", "train_labels", "test_images", "test_labels")
few = dataclasses.replace(data, **{name: getattr(data, name)[:100] for name in arrays})
run(settings, few, Command("digits", digits.DEFAULTS))
print(json.dumps([memory, traced]))
"""


@pytest.mark.slow
def test_500_epochs_take_no_more_memory_than_100_and_compile_nothing_new(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", LONG, str(tmp_path / "run")],
        cwd=ROOT, env=os.environ, text=True, check=True, stdout=subprocess.PIPE,
        timeout=2 * PATIENCE,
    ).stdout  # fmt: skip
    memory, events = json.loads(out.splitlines()[-1])  # in MiB, without what files are mapped
    assert len(memory) == 500
    compiling = [epoch for epoch, event in events if event.startswith("/jax/core/compile/")]
    assert compiling.count(0) > 10  # it is counted
    # Nothing is traced or compiled between the first evaluation and the one after the last epoch.
    assert [epoch for epoch in compiling if 10 <= epoch < 499] == []
    # A state has 0.9 MiB: one that was kept an epoch would be 45 MiB in 50. The median, because the
    # system is given back now and then, at once, what compiling took.
    memory = np.array(memory[50:])
    growth = np.median(memory[50:] - memory[:-50])
    print(f"{growth:.2f} MiB in 50 epochs")
    assert growth < 8, growth
