"""Paths that users give, and files that must be on disk: for `trained`, `data`, a run's folder."""

import errno
import os
from pathlib import Path

_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)
"""Errors of systems that cannot sync; errors of the disk are not among them."""


def expanded(path: str | os.PathLike[str], error: type[ValueError]) -> Path:
    """The path with `~` replaced by the home directory.

    Raises:
      ValueError: of the type `error`, if the user, or the one named after the ~, has no home
        directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as reason:
        raise error(
            f"{os.fspath(path)}: its home directory is not known; give a path without ~"
        ) from reason


def sync(path: Path) -> None:
    """Returns once a file's content, or a folder's list of names, is on disk.

    Windows cannot open folders, and some file systems cannot sync; then this does nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
