"""The lock of a run's folder: one command at a time writes to it."""

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
    """Locks a folder until the returned descriptor is closed, as a killed process's is.

    The file stays: to remove it would let two processes lock two files of its name. Where the
    system or the file system knows no such locks, a warning says so.

    Raises:
      WorkdirError: another process has locked it.
      OSError: the file cannot be written.
    """
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # closed by exec
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
    except OSError as error:  # such as ENOSYS or ENOLCK, of some network file systems
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
