import errno
import signal
import subprocess
import sys

import numpy as np
import pytest

from experiments import cli, errors
from experiments.show.pictures import write_png
from experiments.store.files import write_text
from lvae_jax.data import DataError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.SettingsError("--depth=9: too deep"), 2),
        (errors.WorkdirError("runs/a is in use"), 2),
        (DataError("mine.npy is not a file"), 2),
        (errors.NonFiniteError("epoch 1, step 4:\n the loss is inf"), 3),
        (errors.Interrupted(signal.SIGTERM, "stopped after step 3"), 143),
        (errors.Interrupted(signal.SIGINT, "stopped after step 3"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_is_one_line_and_its_exit_status(error, status, capsys):
    with pytest.raises(SystemExit) as end, cli.errors_in_one_line():
        raise error
    assert end.value.code == status
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith("\n")
    assert said.count("\n") == 1
    assert " ".join(str(error).split()) in said


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("data_dir=a lacks b; give it as tfds_dir", "--data_dir=a lacks b; give it as --tfds_dir"),
        ("of none: train_labels, and test_labels", "of none: --train_labels, and --test_labels"),
        ("use observation='gaussian'", "use --observation=gaussian"),
        ("set check_scale=False to use them", "give --nocheck_scale to use them"),
        ("give --data_dir; /home/data_dir is none", "give --data_dir; /home/data_dir is none"),
        ("data_directories", "data_directories"),
    ],
)
def test_errors_of_data_name_flags_in_place_of_arguments(message, shown, capsys):
    with pytest.raises(SystemExit), cli.errors_in_one_line():
        raise DataError(message)
    assert capsys.readouterr().err == f"error: {shown}\n"


PICTURE = np.zeros((1, 1), np.uint8)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: write_text(path, "text"), "Is a directory"),  # as a report.html
        (lambda path: write_png(path / "file" / "a.png", PICTURE), "File exists"),
    ],
)
def test_what_cannot_be_written_is_named_by_its_own_name(write, reason, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SystemExit) as end, cli.errors_in_one_line():
        write(tmp_path)
    path = tmp_path if reason == "Is a directory" else tmp_path / "file"
    assert (end.value.code, capsys.readouterr().err) == (
        2,
        f"error: cannot use {path} ({reason}); repair it, or give another path\n",
    )


def test_an_interrupted_command_promises_nothing(capsys):
    with pytest.raises(SystemExit), cli.errors_in_one_line():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("error", [OSError("truncated"), OSError(errno.EIO, "Input/output error")])
def test_an_error_of_the_system_without_a_file_keeps_its_traceback(error):
    with pytest.raises(OSError, match=error.args[-1]), cli.errors_in_one_line():
        raise error


def test_an_error_that_nobody_foresaw_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli.errors_in_one_line():
        1 / 0  # noqa: B018


def test_a_message_names_the_signal():
    assert str(errors.Interrupted(signal.SIGTERM, "stopped")) == "SIGTERM: stopped"


def test_errors_import_no_jax():
    code = "import experiments.errors, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
