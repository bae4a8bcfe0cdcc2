"""The command line where it meets consoles, closed streams and files that are no text."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import settings as settings_lib
from experiments.settings import Settings

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]


def command(name: str, *arguments: str, cwd: Path = ROOT, **options) -> subprocess.CompletedProcess:
    """A command of the experiments, which imports no JAX unless it runs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=cwd, env=environment, capture_output=True, check=False, **options,
    )  # fmt: skip


def test_help_exits_with_0_even_on_an_ascii_console():
    result = command("digits", "--help", env={"PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"--depth: number of layers" in result.stdout
    assert b"8?8 digits" in result.stdout


def test_warnings_and_errors_of_data_speak_of_flags(tmp_path):
    np.save(tmp_path / "train.npy", np.random.default_rng(0).random((20, 4)))
    np.save(tmp_path / "test.npy", 9 * np.random.default_rng(1).random((20, 4)))
    given = ["--train=train.npy", "--test=test.npy", "--observation=gaussian"]
    result = command("arrays", *given, cwd=tmp_path, text=True)
    assert result.returncode == 2
    assert result.stderr.endswith(
        "rescale one of them, or give --nocheck_scale to use them as they are\n"
    )
    dark = np.arange(80, dtype=np.uint8).reshape(20, 4)
    np.save(tmp_path / "train.npy", dark)
    result = command("arrays", given[0], "--batch_size=100", cwd=tmp_path, text=True)
    assert result.stderr.startswith("warning: train.npy: 255 is full in uint8, but the largest ")


def binary_flagfile(folder: Path) -> str:
    path = folder / "flags.bin"
    path.write_bytes(bytes(range(256)))
    return f"--flagfile={path}"


@pytest.mark.parametrize(
    "kind", ["a value after no", "binary", "absent", "cp437", "path", "run", "no flag"]
)
def test_what_is_no_command_line_is_one_line_with_status_2(kind, tmp_path):
    argument = {
        "path": b"--workdir=runs/\xff",
        "run": b"runs/\xff",
        "a value after no": "--nobatch_norm=false",
        "binary": binary_flagfile(tmp_path),
        "absent": f"--flagfile={tmp_path / 'absent'}",
        "cp437": "--model=\N{SNOWMAN}",
        "no flag": "figure3",
    }[kind]
    name = {"run": "compare", "no flag": "paper"}.get(kind, "digits")
    result = command(name, argument, env={"PYTHONIOENCODING": "cp437"})
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"error: ")
    assert result.stderr.count(b"\n") == 1
    assert (b"give a path in UTF-8" in result.stderr) == (kind in ("path", "run"))


SHOW = """
import sys
from experiments import cli, report

def show(settings, *arguments):
    print("-82.1 \\N{PLUS-MINUS SIGN} 0.1")
    print("\\N{PLUS-MINUS SIGN}", file=sys.stderr)

cli.start(show, report.ReportSettings())
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"-82.1 ? 0.1\n"),
        ("cp437", b"-82.1 \xf1 0.1\n"),
        ("utf-8", b"-82.1 \xc2\xb1 0.1\n"),
    ],
)
def test_what_a_console_cannot_show_is_replaced(encoding, shown):
    result = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        capture_output=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, shown)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_reads_no_further_ends_a_command_quietly(unbuffered):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW.replace("print(", "sys.stdin.read(); print(", 1)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    _, errors = process.communicate()  # closes stdin, upon which it prints
    assert process.returncode == 128 + signal.SIGPIPE
    assert b"BrokenPipe" not in errors


STUBBORN = """
import signal, time
from experiments import cli, report

# Commands of a script that runs in the background inherit that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def wait(settings, *arguments):
    print("begun", flush=True)
    try:
        time.sleep(300)
    except BaseException:  # as a callback from compiled code catches it
        pass

cli.start(wait, report.ReportSettings())
"""


def test_help_that_nobody_reads_ends_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as unread:
        result = subprocess.run(
            [sys.executable, "-m", "experiments.digits", "--help"],
            cwd=ROOT, stdout=unread, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_interrupted_command_ends_at_once_whatever_catches_exceptions():
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, b"error: interrupted\n")


def test_a_closed_stderr_is_no_error_and_nobody_else_gets_its_descriptor(tmp_path):
    code = (
        "import os, sys\n"
        "from experiments import cli, report\n"
        "def show(settings, *arguments):\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        assert file.fileno() > 2\n"
        "    print('said', file=sys.stderr)\n"
        "    os.write(2, b'by compiled code')\n"
        "    print('shown')\n"
        "cli.start(show, report.ReportSettings(), True)\n"
    )
    written = tmp_path / "written"
    result = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" "$2" 2>&- <&-', sys.executable, code, str(written)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "shown\n")
    assert written.read_text() == ""


PATHS = [f.name for f in Settings.__dataclass_fields__.values()
         if f.metadata["kind"] in (settings_lib.PATH, settings_lib.SOURCE)]  # fmt: skip

ARGUMENTS = """
import json, sys
from experiments import cli, report
cli.start(lambda settings, *given: print(json.dumps(given)), report.ReportSettings(), True)
"""


def test_a_tilde_is_the_home_folder_in_every_flag_and_argument_that_is_a_path(tmp_path):
    assert {"workdir", "init_from", "data_dir", "tfds_dir", "compilation_cache"} <= set(PATHS)
    for name in PATHS:
        kind = Settings.__dataclass_fields__[name].metadata["kind"]
        assert kind.convert("~/a/b") == str(Path.home() / "a/b"), name
        assert kind.convert("a/~b") == "a/~b"
    result = subprocess.run(
        [sys.executable, "-c", ARGUMENTS, "~/runs/a", "runs/b"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/elsewhere"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout == '["/elsewhere/runs/a", "runs/b"]\n'


def test_what_a_run_reads_is_stored_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir="files", init_from="runs/a", workdir="runs/b")
    assert settings.not_changing_results()["data_dir"] == str(tmp_path / "files")
    assert settings.changing_results()["init_from"] == str(tmp_path / "runs/a")
    # The workdir is shown as it was typed.
    assert settings.not_changing_results()["workdir"] == "runs/b"
    found = settings_lib.Command("mnist", Settings()).line(settings, Path("runs/b"))
    assert found == (
        f"python -m experiments.mnist --init_from={tmp_path}/runs/a --data_dir={tmp_path}/files "
        "--workdir=runs/b"
    )
