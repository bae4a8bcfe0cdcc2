"""A checkpoint's manifest: the size and SHA-256 of each of its files, and of the manifest itself.

orbax silently restores a file with a flipped bit. A checkpoint that differs from its manifest is
not used.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from experiments.store.files import write_json
from lvae_jax._files import sync

MANIFEST = "manifest.json"


def verify(folder: Path, step: int) -> str | None:
    """Compares a checkpoint with its manifest.

    Opens only files that it finds in the folder, and follows no links, whatever names the manifest
    has.

    Args:
      folder: the checkpoint's folder.
      step: the step that the manifest must name.

    Returns:
      What is wrong, in a few words; None if the checkpoint is intact.
    """
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            return f"{MANIFEST} is missing or damaged"
        if manifest["step"] != step:
            return f"{MANIFEST} belongs to step {manifest['step']}"
        found = _files(folder)
        for name, (size, sha256) in manifest["files"].items():
            if name not in found:
                return f"{name} is missing"
            if found[name].stat().st_size != size:
                return f"{name} has {found[name].stat().st_size} bytes, not {size}"
            if _sha256(found[name]) != sha256:
                return f"{name} differs from what was written"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"  # a read names no file
    return None


def write_manifest(folder: Path, step: int, score: float | None) -> None:
    """Writes the manifest of a folder's files; all are on disk when this returns."""
    files = {}
    for name, path in sorted(_files(folder).items()):
        sync(path)
        files[name] = [path.stat().st_size, _sha256(path)]
    for directory, _, _ in os.walk(folder):
        sync(Path(directory))
    finite = score is not None and math.isfinite(score)
    content = {"step": step, "score": score if finite else None, "files": files}
    write_json(folder / MANIFEST, {**content, "sha256": _digest(content)})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest; None if it is missing or damaged."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
        return manifest if manifest.pop("sha256") == _digest(manifest) else None
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """Regular files in a folder and its subfolders, by their relative names; no links."""
    return {
        path.relative_to(folder).as_posix(): path
        for directory, _, names in os.walk(folder)
        for path in (Path(directory, name) for name in names)
        if path.is_file() and not path.is_symlink() and path != folder / MANIFEST
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
