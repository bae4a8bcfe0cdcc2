"""The errors that end a run with one line: what was given, what was expected, what to do.

Each carries the exit status of the command that it ends. Nothing here imports JAX.
"""

import errno
import signal

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a limit on the size of a file."""


class RunError(Exception):
    """Base of all errors of the experiments; its message is one line."""

    status = 2
    """Exit status of the command that the error ends."""


class SettingsError(RunError):
    """A setting that cannot be used."""


class WorkdirError(RunError):
    """A run's folder that cannot be used."""


class NonFiniteError(RunError):
    """Training arrived at a number that is not finite."""

    status = 3


class Interrupted(RunError):  # noqa: N818 - nothing is wrong
    """A signal asked a run to end, and it has ended."""

    def __init__(self, received: int, message: str):
        """Puts the signal's name in front of the message.

        Args:
          received: number of the signal.
          message: one line: what is saved, and how to resume.
        """
        super().__init__(f"{signal.Signals(received).name}: {message}")
        self.status = 128 + received


def what_to_do(error: OSError) -> str:
    """The end of the line about an error of a file."""
    if error.errno in NO_ROOM:
        return "free space and run the same command again"
    return "repair it, or give another path"
