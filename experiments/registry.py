"""The experiments by name, one a data set, and how a run's config.json leads back to its own."""

import dataclasses
import importlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from experiments.errors import WorkdirError
from experiments.settings import Settings

NAMES = ("mnist", "binarized_mnist", "fashion_mnist", "omniglot", "norb", "digits", "arrays")


class ExperimentModule(Protocol):
    """What a module of `NAMES` holds."""

    DEFAULTS: Settings

    def load(self, settings: Any) -> Any:
        """The `Dataset` that the settings ask for."""


def module(name: str) -> ExperimentModule:
    """The experiment of a name.

    Raises:
      WorkdirError: there is no such experiment. (A name comes from a config.json, which may be
        anybody's: nothing but the experiments is ever imported by it.)
    """
    if name not in NAMES:
        raise WorkdirError(f"there is no experiment {name!r}; give one of {', '.join(NAMES)}")
    return cast(ExperimentModule, importlib.import_module(f"experiments.{name}"))


def settings_of(config: Mapping[str, Any], **changed: Any) -> Settings:
    """The settings that a config.json holds, some of them changed."""
    kind: Any = type(module(config["experiment"]).DEFAULTS)
    values = config["settings"] | config.get("other_settings", {}) | changed
    # A run of another version may know fewer settings, or others.
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
    )


def command(config: Mapping[str, Any], workdir: Path) -> str | None:
    """The command that makes a run: its settings that differ from the experiment's defaults.

    Args:
      config: of config.json.
      workdir: of the run.

    Returns:
      One line for a shell; None if the run was not made by an experiment's command.
    """
    name, settings = config.get("experiment"), config["settings"]
    if name is None:
        return None
    defaults = module(name).DEFAULTS
    # Sizes that the depth alone decides need not be given.
    usual = dataclasses.replace(defaults, depth=settings["depth"]).changing_results()
    usual["depth"] = defaults.depth
    # Where the data are is no setting that changes results, yet the command needs it.
    sources = {
        key: value
        for key, value in config.get("other_settings", {}).items()
        if key in ("train", "test", "data_dir", "tfds_dir") and value
    }
    flags = []
    for key, value in (sources | settings).items():
        if value == usual.get(key):
            continue
        if isinstance(value, bool):
            flags.append(f"--{key}" if value else f"--no{key}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            flags.append(f"--{key}={text}")
    return shlex.join(["python", "-m", f"experiments.{name}", *flags, f"--workdir={workdir}"])
