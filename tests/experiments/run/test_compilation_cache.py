"""The compilation cache: where it is, and that a second process reads what a first one compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.errors import SettingsError
from experiments.run import compilation_cache

# Compiles one program and says whether it came from the cache.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax import monitoring
from experiments.run import compilation_cache
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
compilation_cache.enable(sys.argv[1])
jax.jit(lambda x: jnp.sin(x) + 1)(jnp.arange(3.0)).block_until_ready()
print(any(name.endswith("cache_hits") for name in events))
"""


def hits(setting, **environment):
    """Whether a new process finds its program in the cache."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, setting],
        env=inherited | environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    return {"True": True, "False": False}[process.stdout.strip()]


def files(path):
    return {file for file in path.rglob("*") if file.is_file()}


def test_a_second_process_reads_what_the_first_compiled_unless_the_flag_says_otherwise(tmp_path):
    home, own = {"XDG_CACHE_HOME": str(tmp_path / "home")}, tmp_path / "own"
    assert [hits("", **home) for _ in range(2)] == [False, True]
    before = files(tmp_path / "home" / "lvae_jax" / "xla")
    assert before
    assert not hits(str(own), **home)
    assert files(own)
    assert not hits("off", **home)
    assert files(tmp_path / "home") == before


def test_the_flag_comes_before_jaxs_variable_and_that_before_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compilation_cache.directory("/flag") == Path("/flag")
    assert compilation_cache.directory("off") is None
    assert compilation_cache.directory("") == tmp_path / "jax"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "~/mine")
    assert compilation_cache.directory("") == Path.home() / "mine"
    # A flag's ~ was replaced when it was parsed, if there is such a home.
    assert compilation_cache.directory("~no-such-user/mine") == Path("~no-such-user/mine")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    default = tmp_path / "xdg" / "lvae_jax" / "xla"
    assert compilation_cache.directory("").parent == default
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compilation_cache.directory("").parent == tmp_path / ".cache" / "lvae_jax" / "xla"


def test_a_folder_that_cannot_be_written_is_refused_only_where_it_was_asked_for(
    tmp_path, monkeypatch
):
    file = tmp_path / "file"
    file.write_text("")
    no_file_can_be_made = "/proc/self/fd"
    for folder in (f"{file}/below", no_file_can_be_made):
        with pytest.raises(SettingsError) as raised:
            compilation_cache.enable(folder)
        assert str(raised.value).startswith(f"--compilation_cache={folder}: cannot be written")
        assert str(raised.value).endswith("or --compilation_cache=off")
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        with pytest.raises(SettingsError) as raised:
            compilation_cache.enable("")
        assert str(raised.value).startswith(f"JAX_COMPILATION_CACHE_DIR={folder}: cannot be")
        assert str(raised.value).endswith("or JAX_COMPILATION_CACHE_DIR=off")
    assert not hits("", XDG_CACHE_HOME=str(file))


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert compilation_cache.directory("") is None
