"""JAX's persistent compilation cache: a program is compiled once and later read from disk.

Its folder is `--compilation_cache=DIR` (`off` for none), else `$JAX_COMPILATION_CACHE_DIR`, else
`lvae_jax/xla` in the user's cache directory.
"""

import os
import platform
import tempfile
import zlib
from pathlib import Path

from experiments.errors import SettingsError
from experiments.settings import PATH

OFF = "off"
VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def directory(setting: str) -> Path | None:
    """The folder for compiled programs.

    Args:
      setting: a folder; `off`; or empty for the environment's or the default folder.

    Returns:
      The folder; None for no cache.
    """
    setting = setting or PATH.convert(os.environ.get(VARIABLE, ""))
    if setting == OFF:
        return None
    if setting:
        return Path(setting)
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(caches).expanduser() / "lvae_jax" / "xla" / processor()
    except RuntimeError:  # a user without a home directory
        return None


def processor() -> str:
    """A name for the processor's instruction sets.

    A home directory is often shared by hosts of several kinds, and what XLA compiles for one CPU
    may not run on another; JAX's own key does not tell them apart.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    words = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    words = " ".join(sorted(words.split())) or platform.processor()
    return f"{platform.machine()}-{zlib.crc32(words.encode()):08x}"


def enable(setting: str) -> None:
    """Makes JAX store every program it compiles; call it before the first compilation.

    Args:
      setting: see `directory`.

    Raises:
      SettingsError: the folder that the flag or the environment gives cannot be written. If the
        default folder cannot, there is no cache.
    """
    import jax  # imported here, because `--help` does not need it

    path = directory(setting)
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            variable = os.environ.get(VARIABLE, "")
            if setting or variable:
                name = "--compilation_cache" if setting else VARIABLE
                raise SettingsError(
                    f"{name}={setting or variable}: cannot be written ({error.strerror}); give "
                    f"another folder, or {name}={OFF}"
                ) from error
            path = None
    jax.config.update("jax_compilation_cache_dir", None if path is None else str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
