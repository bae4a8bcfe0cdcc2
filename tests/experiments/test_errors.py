import signal
import subprocess
import sys

import pytest

from experiments import cli, errors
from lvae_jax.data import DataError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.SettingsError("--depth=9: too deep"), 2),
        (errors.WorkdirError("runs/a is in use"), 2),
        (errors.CheckpointError("runs/a/checkpoints is damaged"), 2),
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


def test_an_error_that_nobody_foresaw_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli.errors_in_one_line():
        1 / 0  # noqa: B018


def test_a_message_names_the_signal():
    assert str(errors.Interrupted(signal.SIGTERM, "stopped")) == "SIGTERM: stopped"


def test_errors_import_no_jax():
    code = "import experiments.errors, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
