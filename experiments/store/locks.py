"""Locks a run's folder, so that one command at a time writes to it."""

import os
import socket
import sys
from pathlib import Path

from experiments.errors import WorkdirError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


def lock(path: Path) -> int:
    """Locks a folder until the returned descriptor is closed; a killed process unlocks it.

    The lock file stays: if it were removed, two processes could lock two files of that name. If the
    system or the file system has no locks, this prints a warning.

    Raises:
      WorkdirError: another process has locked it.
      OSError: the file cannot be written.
    """
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is None:
            _warn(path, "this system has no locks")
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 300).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise WorkdirError(
            f"{path} is in use by {holder}; wait for it, stop it, or give another --workdir"
        ) from error
    except OSError as error:  # ENOSYS or ENOLCK on some network file systems
        _warn(path, error.strerror or str(error))
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _warn(path: Path, reason: str) -> None:
    print(
        f"warning: {path} cannot be locked ({reason}); let no other command write to it",
        file=sys.stderr,
    )
