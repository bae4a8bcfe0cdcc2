"""Reads a trained model and its data for `probe`, `outliers`, `impute` and `certify`.

The model is loaded by `lvae_jax.load`, so a folder made by `lvae_jax.save` works like a run.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lvae_jax
from experiments import registry
from experiments.errors import SettingsError, WorkdirError
from experiments.progress import Progress
from experiments.run import compilation_cache, devices
from experiments.run.evaluation import standard_error
from experiments.run.setup import at_precision
from experiments.settings import MOST_SEEDS, Settings, choice, setting, whole
from experiments.show.figures import write_png
from experiments.store.files import check_writable, read_json, write_json, writing
from lvae_jax import observations
from lvae_jax.data import Dataset
from lvae_jax.models import HierarchicalVAE
from lvae_jax.observations import BernoulliObservation, GaussianObservation
from lvae_jax.trained import ModelFolderError


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The settings that all commands on a trained model share."""

    seed: int = setting(0, whole(0, MOST_SEEDS - 1), "seed of every random draw of this command")


@dataclasses.dataclass(frozen=True)
class UseSettings(registry.MovedData, ModelSettings):
    """The settings of commands that need the model's data, too."""

    data: str = setting(
        "",
        choice("", *registry.EXPERIMENTS),
        "data set, if no config.json names it, or another one than the run's",
    )


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model."""

    path: Path
    model: HierarchicalVAE
    variables: dict[str, Any]
    config: dict[str, Any]
    """The run's config.json; without settings if the folder is not part of a run."""

    def precision(self) -> AbstractContextManager[None]:
        """Within it, matrix products have the precision with which the run was evaluated."""
        return at_precision(
            self.config["settings"].get("matmul_precision", Settings().matmul_precision)
        )

    @property
    def tfds_dir(self) -> str:
        """The run's folder of prepared data sets; empty for the default."""
        return str(self.config.get("other_settings", {}).get("tfds_dir", ""))

    def check_observation(self) -> None:
        """Raises a WorkdirError if p(x | z_1) is not Bernoulli or Gaussian."""
        observed = observations.named(self.model.observation, self.model.variance_floor)
        if not isinstance(observed, BernoulliObservation | GaussianObservation):
            raise WorkdirError(
                f"{self.path} observes x as {self.model.observation}; give a run whose "
                "p(x | z_1) is Bernoulli or Gaussian"
            )


@dataclasses.dataclass(frozen=True)
class Finished(Trained):
    """A trained model and the data it was trained on."""

    dataset: Dataset

    def train_x(self) -> np.ndarray:
        """x of the training images, binarised or dequantised once, as test images are."""
        return self.as_test_images(self.dataset.train_images, self.dataset.train_labels).test_x()

    def as_test_images(self, images: np.ndarray, labels: np.ndarray, name: str = "") -> Dataset:
        """The data set with other test images, which are preprocessed as its own.

        Raises:
          DataError: the images have another shape or dtype.
        """
        return dataclasses.replace(
            self.dataset,
            name=name or self.dataset.name,
            test_images=images,
            test_labels=labels,
        )


def read_model(command: str, workdirs: Sequence[str]) -> Trained:
    """The model of a finished run, or of a folder made by `lvae_jax.save`.

    Args:
      command: the command's name, for the message.
      workdirs: the folders on the command line; there must be one.

    Raises:
      SettingsError: not exactly one folder was given, or JAX cannot use its devices.
      WorkdirError: there is no model, or it takes a condition.
    """
    if len(workdirs) != 1:
        raise SettingsError(f"give one run's folder: python -m experiments.{command} RUN")
    path = Path(workdirs[0])
    check_writable(path)
    compilation_cache.enable("")
    devices.find_devices()
    try:
        # Absolute, because `load` replaces a ~ at its start, which here is a folder's name.
        model, variables = lvae_jax.load(path.absolute())
    except ModelFolderError as error:
        raise WorkdirError(str(error)) from error
    if model.condition_dim:
        raise WorkdirError(
            f"the model of {path} takes a condition, which {command} cannot give; use "
            "lvae_jax.evaluation and lvae_jax.latents, whose functions take it"
        )
    return Trained(path, model, variables, _read_config(path))


def read(settings: UseSettings, command: str, workdirs: Sequence[str]) -> Finished:
    """`read_model`, and the data that the model was trained on.

    Args:
      settings: locate the data, if the run does not.
      command: see `read_model`.
      workdirs: see `read_model`.

    Raises:
      SettingsError: see `read_model`.
      WorkdirError: there is no model, its data set is unknown, or the data do not fit the model.
      DataError: the data cannot be read, or are not those that the run was trained on.
    """
    trained = read_model(command, workdirs)
    path, model, config = trained.path, trained.model, trained.config
    if settings.data:  # other data than the run's may be asked for
        config = {
            "experiment": settings.data,
            "settings": config["settings"],
            "other_settings": {"tfds_dir": trained.tfds_dir},
        }
    if not config.get("experiment"):
        raise WorkdirError(f"{path} does not say which data it was trained on; give --data")
    # Own arrays without a run's settings are observed as the model observes them.
    dataset = registry.load(config, path, observation=model.observation, **settings.given())
    if dataset.data_dim != model.data_dim:
        raise WorkdirError(
            f"the images of {dataset.name} have {dataset.data_dim} values, but the model of "
            f"{path} takes {model.data_dim}; give the data that it was trained on, with --data, or "
            "--train for own arrays"
        )
    if isinstance(model.observation, str) and dataset.observation != model.observation:
        raise WorkdirError(
            f"{dataset.name} is observed as {dataset.observation}, but the model of {path} "
            f"observes x as {model.observation}; give the data that it was trained on with --data"
        )
    return Finished(**vars(trained), dataset=dataset)


def _read_config(path: Path) -> dict[str, Any]:
    """See `Trained.config`."""
    here = path.absolute()
    folders = [here]
    if here.name == "model":
        folders.append(here.parent)
    elif here.parent.name == "model":  # of one of several replicas, RUN/model/0
        folders.append(here.parent.parent)
    for folder in folders:
        config = read_json(folder / "config.json")
        if isinstance(config, dict) and isinstance(config.get("settings"), dict):
            return config
    return {"settings": {}}


def chunks(description: str, total: int, size: int) -> Iterator[np.ndarray]:
    """Yields row numbers, `size` at a time (the last time fewer), and shows progress."""
    with Progress(description, total) as progress:
        for start in range(0, total, size):
            rows = np.arange(start, min(start + size, total))
            yield rows
            progress.update(int(rows[-1]) + 1)


def mean_and_error(values: np.ndarray) -> dict[str, float | None]:
    """The mean over images and its standard error, which is None for a single image; for JSON."""
    mean = float(values.mean(dtype=np.float64))
    return {"mean": mean, "standard_error": standard_error(values)}


def write(run: Trained, name: str, results: Any, figure: Figure) -> None:
    """Writes NAME.json and figures/NAME.png into the run's folder, and prints their names.

    Raises:
      WorkdirError: the folder cannot be written to.
    """
    with writing(run.path):
        write_json(run.path / f"{name}.json", results)
        write_png(run.path / "figures" / f"{name}.png", figure)
    print(f"{run.path} holds this as {name}.json and figures/{name}.png.")
