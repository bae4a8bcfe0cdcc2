"""The experiments by name, one per data set, and how a run's config.json leads back to its own."""

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
    """What a data set's command is made of."""

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
    """The experiment of a name.

    Raises:
      WorkdirError: there is no such experiment; the name may come from anybody's config.json.
    """
    if name not in EXPERIMENTS:
        raise WorkdirError(f"there is no experiment {name!r}; give one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def settings_of(config: Mapping[str, Any], **changed: Any) -> Settings:
    """The settings that a config.json holds, some of them changed."""
    kind: Any = type(experiment(config["experiment"]).defaults)
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
    """The command line that makes a run, from what its config.json holds.

    Args:
      config: of config.json.
      workdir: of the run.

    Returns:
      One line for a shell; None if the run was not made by an experiment's command.
    """
    name = config.get("experiment")
    if name is None:
        return None
    return Command(name, experiment(name).defaults).line(settings_of(config), workdir)
