"""The experiments by name, one per data set, and the settings and command of a finished run."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import (
    arrays,
    binarized_mnist,
    digits,
    fashion_mnist,
    mnist,
    norb,
    omniglot,
)
from experiments.errors import WorkdirError
from experiments.settings import Command, Settings


class Experiment(NamedTuple):
    """How a data set's command loads data, and its default settings."""

    load: Callable[[Any], Any]
    """Loads the `Dataset` that the settings ask for."""
    defaults: Settings


EXPERIMENTS = {
    "mnist": Experiment(mnist.load, mnist.DEFAULTS),
    "binarized_mnist": Experiment(binarized_mnist.load, binarized_mnist.DEFAULTS),
    "fashion_mnist": Experiment(fashion_mnist.load, fashion_mnist.DEFAULTS),
    "omniglot": Experiment(omniglot.load, omniglot.DEFAULTS),
    "norb": Experiment(norb.load, norb.DEFAULTS),
    "digits": Experiment(digits.load, digits.DEFAULTS),
    "arrays": Experiment(arrays.load, arrays.DEFAULTS),
}


def experiment(name: str) -> Experiment:
    """The experiment with a name, which may come from a config.json.

    Raises:
      WorkdirError: there is no such experiment.
    """
    if name not in EXPERIMENTS:
        raise WorkdirError(f"there is no experiment {name!r}; give one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def settings_of(config: Mapping[str, Any], **changed: Any) -> Settings:
    """The settings in a config.json, with some of them changed."""
    kind: Any = type(experiment(config["experiment"]).defaults)
    values = config["settings"] | config.get("other_settings", {}) | changed
    # Another version may have had other settings.
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
    )


def load(config: Mapping[str, Any], **changed: Any) -> Any:
    """The `Dataset` that a config.json asks for, with some of its settings changed."""
    return experiment(config["experiment"]).load(settings_of(config, **changed))


def command(config: Mapping[str, Any], workdir: Path) -> str | None:
    """The command line that makes a run.

    Args:
      config: the content of its config.json.
      workdir: the run's folder.

    Returns:
      One line for a shell; None if the run was not made by an experiment's command.
    """
    name = config.get("experiment")
    if name is None:
        return None
    return Command(name, experiment(name).defaults).line(settings_of(config), workdir)
