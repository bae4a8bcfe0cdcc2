"""Makes sure that what was written is on disk: for `trained`, `data`, and a run's folder."""

import errno
import os
from pathlib import Path

_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)
"""Errors of systems that cannot sync; errors of the disk are not among them."""


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
