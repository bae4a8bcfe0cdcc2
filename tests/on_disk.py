"""What is on the disk, so that a machine that loses power keeps it, and what only in memory."""

import os
from pathlib import Path

import pytest


class Disk:
    """Follows what this process syncs and renames from now on, until the patch is undone."""

    def __init__(self, patch: pytest.MonkeyPatch):
        """Starts with nothing on the disk."""
        self._synced: set[tuple[int, int]] = set()
        self.missing_when_named: dict[Path, list[Path]] = {}
        """By the new name of what was renamed: `missing` of it at that moment."""
        fsync = os.fsync

        def recorded(descriptor):
            fsync(descriptor)
            self._synced.add(_identity(os.fstat(descriptor)))

        patch.setattr(os, "fsync", recorded)
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._recorded(getattr(os, name)))

    def missing(self, path: Path) -> list[Path]:
        """What of a file, or of a folder and all in it, is not on the disk.

        A folder is there once it was synced after the last renaming in it.
        """
        found = (path, *path.rglob("*"))
        return [each for each in found if _identity(each.stat()) not in self._synced]

    def _recorded(self, rename):
        def recorded(source, target, **options):
            self.missing_when_named[Path(target)] = self.missing(Path(source))
            rename(source, target, **options)
            for folder in (Path(source).parent, Path(target).parent):
                self._synced.discard(_identity(folder.stat()))

        return recorded


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
