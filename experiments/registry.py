"""The experiments by name, one per data set, and the settings, data and command of a run."""

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
from experiments.settings import SOURCE, Command, Settings, setting


class Entry(NamedTuple):
    """How a data set's command loads data, and its default settings."""

    load: Callable[[Any], Any]
    """Loads the `Dataset` that the settings ask for."""
    defaults: Settings


EXPERIMENTS = {
    "mnist": Entry(mnist.load, mnist.DEFAULTS),
    "binarized_mnist": Entry(binarized_mnist.load, binarized_mnist.DEFAULTS),
    "fashion_mnist": Entry(fashion_mnist.load, fashion_mnist.DEFAULTS),
    "omniglot": Entry(omniglot.load, omniglot.DEFAULTS),
    "norb": Entry(norb.load, norb.DEFAULTS),
    "digits": Entry(digits.load, digits.DEFAULTS),
    "arrays": Entry(arrays.load, arrays.DEFAULTS),
}


def experiment(name: str) -> Entry:
    """The experiment with a name, which may come from a config.json.

    Raises:
      WorkdirError: there is no such experiment.
    """
    if name not in EXPERIMENTS:
        raise WorkdirError(f"there is no experiment {name!r}; give one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def settings_of(config: Mapping[str, Any], **changed: Any) -> Settings:
    """The settings in a config.json, with some of them changed.

    Another version may have had other settings: unknown ones are ignored, missing ones get the
    experiment's defaults.
    """
    defaults = experiment(config["experiment"]).defaults
    values = config["settings"] | config.get("other_settings", {}) | changed
    known: dict[str, Any] = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(defaults)
        if field.name in values
        for value in [values[field.name]]
    }
    return dataclasses.replace(defaults, **known)


@dataclasses.dataclass(frozen=True)
class MovedData:
    """Where a run's data are now, if they have moved."""

    data_dir: str = setting("", SOURCE, "folder of the original files; the default is the run's")
    tfds_dir: str = setting("", SOURCE, "folder of prepared data sets; the default is the run's")
    train: str = setting(
        "", SOURCE, "own training images: FILE.npy, or FILE.npz:KEY; the default is the run's"
    )
    test: str = setting("", SOURCE, "own test images; the default is the run's")
    train_labels: str = setting("", SOURCE, "labels of --train; the default is the run's")
    test_labels: str = setting("", SOURCE, "labels of --test; the default is the run's")

    def given(self) -> dict[str, str]:
        """The paths that were given, by the names of the run's settings that they change."""
        names = [field.name for field in dataclasses.fields(MovedData)]
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def load(config: Mapping[str, Any], path: Path, **changed: Any) -> Any:
    """The `Dataset` that a run was trained on.

    Args:
      config: the content of its config.json. Without the identity of its data any are accepted.
      path: the run's folder, for the message.
      **changed: settings that have changed, such as those of `MovedData`.

    Raises:
      DataError: the data cannot be read, or are not those that the run was trained on.
    """
    from lvae_jax.data import DataError  # it imports JAX

    try:
        dataset = experiment(config["experiment"]).load(settings_of(config, **changed))
    except DataError as error:
        if "dataset" not in config:  # not a run's
            raise
        raise DataError(
            f"{error} (the data of {path}; if they have moved, give --data_dir, --tfds_dir, or "
            "--train and --test)"
        ) from error
    if any(config.get(name, value) != value for name, value in dataset.identity().items()):
        raise DataError(
            f"{dataset.name} is not the data that {path} was trained on; give the right data with "
            "--data_dir, --tfds_dir, or --train and --test"
        )
    return dataset


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
