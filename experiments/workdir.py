"""A run's folder: config.json, metrics.jsonl, results.json, checkpoints/, tensorboard/."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from experiments.settings import Settings
from lvae_jax.training import TrainState

_CONFIG_TMP = "config.json.tmp"


class WorkdirError(ValueError):
    """A workdir that cannot be used; the message is one line: what is there, what to do."""


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Reads a JSON file; None if there is none.

    Raises:
      WorkdirError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); restore it, or give another --workdir"
        ) from error


class Workdir:
    """The files of one run: looked at when opened, written to only after `create`."""

    def __init__(self, path: Path, config: dict[str, Any]):
        """Checks that the folder, if it is there, belongs to this run.

        Args:
          path: the folder.
          config: what config.json says; its "dataset" and "settings" are those of the run.

        Raises:
          WorkdirError: the folder belongs to another run, or is no run's.
        """
        self.path, self.config = path, config
        existing = read_json(path / "config.json")
        # A start that was killed at once can leave config.json half written, under its other name.
        if existing is None and path.is_dir() and {p.name for p in path.iterdir()} - {_CONFIG_TMP}:
            raise WorkdirError(
                f"{path} holds files but no config.json, so it is no run's; give another --workdir"
            )
        if existing is not None:
            _refuse_another_run(path, existing, config)

    def create(self) -> None:
        """Creates what is missing, and opens the checkpoints.

        Raises:
          WorkdirError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / "config.json").exists():
                write_json(self.path / "config.json", self.config)
        except OSError as error:
            raise WorkdirError(
                f"cannot write to {self.path} ({error.strerror}); give another --workdir"
            ) from error
        self._checkpoints = _checkpoint_manager(self.path / "checkpoints")

    def results(self) -> dict[str, Any] | None:
        """results.json of a finished run."""
        return read_json(self.path / "results.json")

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes results.json: the run is finished."""
        write_json(self.path / "results.json", results)

    def restore(self, like: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint and its number of finished epochs, or `like` and 0."""
        return _restore_newest(self._checkpoints, like)

    def save(self, state: TrainState, epoch: int) -> None:
        """Saves the state after `epoch` epochs, on disk when this returns."""
        self._checkpoints.save(epoch, args=ocp.args.StandardSave(state))
        self._checkpoints.wait_until_finished()

    def save_chosen(self, state: TrainState, epoch: int) -> None:
        """Keeps the state after `epoch` epochs as the chosen one, in place of the one before."""
        with _checkpoint_manager(self.path / "chosen", keep=1) as chosen:
            # A resumed run comes by the same states again.
            for later in [e for e in chosen.all_steps() if e >= epoch]:
                chosen.delete(later)
            chosen.save(epoch, args=ocp.args.StandardSave(state))

    def restore_chosen(self, like: TrainState) -> tuple[TrainState, int]:
        """The chosen state, and the number of epochs that led to it."""
        with _checkpoint_manager(self.path / "chosen", keep=1) as chosen:
            return _restore_newest(chosen, like)

    def truncate_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Drops the lines of epochs that no checkpoint remembers, and a half-written last line.

        Args:
          epochs: number of epochs finished at the checkpoint.

        Returns:
          The lines that stay.
        """
        path = self.path / "metrics.jsonl"
        kept = [values for values in read_metrics(self.path) if values["epoch"] < epochs]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(values) + "\n" for values in kept))
        temporary.replace(path)
        return kept

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpoints.close()


def _checkpoint_manager(path: Path, keep: int = 3) -> ocp.CheckpointManager:
    """Orbax's checkpoints in a folder; a step of theirs is a number of finished epochs."""
    return ocp.CheckpointManager(
        path.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep)
    )


def _restore_newest(checkpoints: ocp.CheckpointManager, like: TrainState) -> tuple[TrainState, int]:
    epoch = checkpoints.latest_step()
    if epoch is None:
        return like, 0
    return checkpoints.restore(epoch, args=ocp.args.StandardRestore(like)), epoch


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one that is being written just now is left out."""
    lines = []
    if path.joinpath("metrics.jsonl").exists():
        for line in path.joinpath("metrics.jsonl").read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run.

    Raises:
      WorkdirError: there is none.
    """
    config = read_json(path / "config.json")
    if config is None:
        raise WorkdirError(
            f"{path} holds no config.json, so it is no run's; give a run's --workdir"
        )
    return config


def read_trained(path: Path) -> tuple[Any, int]:
    """The parameters of a run, those chosen by validation, else the newest, and their epoch.

    Raises:
      WorkdirError: there are none.
    """
    folders = (folder for folder in (path / "chosen", path / "checkpoints") if folder.is_dir())
    folder = next(folders, None)
    if folder is not None:
        with _checkpoint_manager(folder) as checkpoints:
            epoch = checkpoints.latest_step()
            if epoch is not None:
                tree = checkpoints.restore(epoch, args=ocp.args.StandardRestore())
                return tree["params"], epoch
    raise WorkdirError(
        f"{path} holds no run with a checkpoint; give the --workdir of one that was trained"
    )


def _refuse_another_run(path: Path, existing: dict[str, Any], config: dict[str, Any]) -> None:
    # A run of an earlier version lacks the settings that came later; it had their defaults.
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    now, was = (
        {"dataset": c["dataset"], "data_sha256": c.get("data_sha256", "")[:12], **c["settings"]}
        for c in (config, existing)
    )
    was = {name: defaults[name] for name in now.keys() & defaults.keys()} | was
    differences = [
        f"{name} was {was.get(name)} and is now {now.get(name)}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    if differences:
        raise WorkdirError(
            f"{path} holds a run with other settings: {'; '.join(differences)}. "
            "Give those settings again, or another --workdir"
        )


def remove_tensorboard(path: Path) -> None:
    """Removes the event files, which are written again from metrics.jsonl."""
    shutil.rmtree(path / "tensorboard", ignore_errors=True)
