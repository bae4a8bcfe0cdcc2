"""A run's folder: config.json, metrics.jsonl, results.json, checkpoints/, tensorboard/."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import lvae_jax
from experiments.errors import WorkdirError
from experiments.results import EpochRecord, Run, RunResults
from experiments.settings import Settings
from experiments.store.checkpoints import Checkpoints, by_first_process
from experiments.store.files import (
    read_json,
    remove,
    sync,
    write_json,
    write_text,
    writing,
)
from experiments.store.locks import LOCK, lock
from lvae_jax.models import HierarchicalVAE
from lvae_jax.training import TrainState

__all__ = [
    "FORMAT",
    "Workdir",
    "WorkdirError",
    "read_chosen_epochs",
    "read_config",
    "read_metrics",
    "read_results",
    "read_run",
    "read_state",
    "read_step",
    "read_trained",
    "remove_tensorboard",
    "write_json",
]

FORMAT = 2
"""Of a run's folder; config.json says it."""

_BEFORE_CONFIG = {LOCK, "config.json.tmp"}  # of a start that was killed at once

_MADE_BY_A_RUN = (
    "results.json",  # first: a run that is being removed is not finished
    "metrics.jsonl",
    "model",
    "checkpoints",
    "chosen",
    "tensorboard",
    "figures",
    "report.html",
    "config.json",  # last: it says that the rest is a run's
)


class Workdir:
    """The files of one run: looked at when opened, written to only after `create`.

    Where a run has several processes, each opens its workdir; one of them writes. All of them
    call `create`, `restore`, `save`, `save_chosen` and `restore_chosen` together.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], overwrite: bool = False, writes: bool = True
    ):
        """Checks that the folder, if it is there, belongs to this run.

        Args:
          path: the folder.
          config: what config.json says; its "dataset" and "settings" are those of the run.
          overwrite: whether a run that is there, of whatever settings, is removed by `create`.
          writes: whether this process writes; one of a run's processes does, the first.

        Raises:
          WorkdirError: the folder belongs to another run, or is no run's.
        """
        self.path, self.config = path, {"format": FORMAT, **config}
        self._overwrite, self.writes = overwrite, writes
        self._lock: int | None = None
        self._checkpoints = Checkpoints(path / "checkpoints")
        self._chosen = Checkpoints(path / "chosen", keep=1)
        self._check()

    def _check(self) -> dict[str, Any] | None:
        """What config.json says, unless the folder is another run's, or no run's."""
        existing = read_json(self.path / "config.json")
        if existing is None:
            if self.path.is_dir() and {p.name for p in self.path.iterdir()} - _BEFORE_CONFIG:
                raise WorkdirError(
                    f"{self.path} holds files but no config.json, so it is no run's; "
                    "give another --workdir"
                )
            return None
        _refuse_what_is_no_runs(self.path, existing)
        if not self._overwrite:
            _refuse_another_format(self.path, existing)
            _refuse_another_run(self.path, existing, self.config)
        return existing

    def lock(self) -> None:
        """Makes the folder and locks it until `close`, and writes nothing else.

        Raises:
          WorkdirError: the folder cannot be written, is being written by another process, or
            belongs to another run.
        """
        by_first_process(self._make_and_lock)

    def create(self) -> None:
        """Writes what is missing, of a folder that is locked, before the first checkpoint.

        With `overwrite`, the files of the run that is there are removed.

        Raises:
          WorkdirError: the folder cannot be written.
        """
        self.lock()
        by_first_process(self._create)

    def _make_and_lock(self) -> int:
        if self.writes and self._lock is None:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = lock(self.path)
            try:
                self._check()  # another process may have been here before the lock was taken
            except WorkdirError:
                self.close()
                raise
        return 0

    def _create(self) -> int:
        if self.writes:
            with writing(self.path):
                if self._overwrite:
                    for name in _MADE_BY_A_RUN:
                        remove(self.path / name)
                    self._overwrite = False
                if not (self.path / "config.json").exists():
                    write_json(self.path / "config.json", self.config)
        return 0

    def results(self) -> RunResults | None:
        """The results of a finished run; None also of one that is to be overwritten."""
        return None if self._overwrite else read_results(self.path)

    def save_model(
        self, model: HierarchicalVAE, variables: Any, metadata: dict[str, Any], replica: int | None
    ) -> None:
        """Writes `model/`, or `model/0` and so on where a run has several replicas.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        if self.writes:
            folder = self.path / "model" / ("" if replica is None else str(replica))
            with writing(folder):
                lvae_jax.save(folder, model, variables, metadata)

    def write_results(self, results: RunResults) -> None:
        """Writes results.json: the run is finished."""
        if self.writes:
            with writing(self.path / "results.json"):
                write_json(self.path / "results.json", results.to_json())

    def restore(self, like: TrainState) -> tuple[TrainState, int] | None:
        """The newest intact checkpoint and its step; None if there is no checkpoint.

        Args:
          like: see `Checkpoints.restore`.

        Raises:
          WorkdirError: there are checkpoints, but none is intact.
        """
        return self._checkpoints.restore(like)

    def save(self, state: TrainState, step: int, score: float | None = None) -> None:
        """Saves the state after `step` steps, on disk when this returns.

        What metrics.jsonl says of these steps is on the disk before.

        Args:
          state: after the step.
          step: counted over the whole run.
          score: how good the state is, the higher the better; the best is kept.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        if self.writes and (self.path / "metrics.jsonl").exists():
            with writing(self.path / "metrics.jsonl"):
                sync(self.path / "metrics.jsonl")
                sync(self.path)
        self._checkpoints.save(state, step, score)

    def save_chosen(self, chosen: Any, step: int) -> None:
        """Keeps what was chosen after `step` steps, in place of what was before.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        self._chosen.save(chosen, step)

    def restore_chosen(self, like: Any) -> tuple[Any, int] | None:
        """What was chosen, and the step at which it was; None if nothing has been.

        Raises:
          WorkdirError: it is not intact.
        """
        return self._chosen.restore(like)

    def truncate_metrics(self, epochs: int) -> list[EpochRecord]:
        """Drops the lines of epochs that no checkpoint remembers, and a half-written last line.

        Args:
          epochs: number of epochs finished at the checkpoint.

        Returns:
          The epochs that stay.

        Raises:
          WorkdirError: lines are missing, or the file cannot be written.
        """
        path = self.path / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record.epoch < epochs]
        if [record.epoch for record in kept] != list(range(epochs)):
            raise WorkdirError(
                f"{path} is damaged: {epochs} epochs are finished, and it has {len(kept)} of them; "
                "restore it, or start again with --overwrite"
            )
        if self.writes:
            with writing(path):
                write_text(path, "".join(map(_line, kept)))
        return kept

    def append_metrics(self, record: EpochRecord) -> None:
        """Appends a line to metrics.jsonl.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        if self.writes:
            path = self.path / "metrics.jsonl"
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.write(_line(record))

    def close(self) -> None:
        """Gives the folder to other processes."""
        self._checkpoints.close()
        self._chosen.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _line(record: EpochRecord) -> str:
    return json.dumps(record.to_json()) + "\n"


def read_run(path: Path) -> Run:
    """A run as its JSON files have it by now.

    Raises:
      WorkdirError: the folder is no run's, or its files are damaged.
    """
    return Run(path, read_config(path), read_metrics(path), read_results(path))


def read_metrics(path: Path) -> list[EpochRecord]:
    """The epochs of a run's metrics.jsonl; one that is being written just now is left out.

    Raises:
      WorkdirError: a line is no epoch's.
    """
    epochs = []
    if path.joinpath("metrics.jsonl").exists():
        for line in path.joinpath("metrics.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break
            epochs.append(_record(EpochRecord, path / "metrics.jsonl", values))
    return epochs


def read_results(path: Path) -> RunResults | None:
    """results.json of a run; None if it is not finished.

    Raises:
      WorkdirError: it is damaged.
    """
    values = read_json(path / "results.json")
    return None if values is None else _record(RunResults, path / "results.json", values)


def _record(kind: Any, path: Path, values: Any) -> Any:
    try:
        return kind.from_json(values)
    except ValueError as error:
        raise WorkdirError(
            f"{path} is damaged: {error}; restore it, or start again with --overwrite"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run.

    Raises:
      WorkdirError: there is none, or it is of another format.
    """
    config = read_json(path / "config.json")
    if config is None:
        raise WorkdirError(
            f"{path} holds no config.json, so it is no run's; give a run's --workdir"
        )
    _refuse_what_is_no_runs(path, config)
    _refuse_another_format(path, config)
    return config


def read_trained(path: Path) -> tuple[Any, int]:
    """The parameters of a run, those chosen by validation, else the newest, and their step.

    With --ema_decay they are the moving average, which is what is evaluated.

    Raises:
      WorkdirError: there are none, or they are of another format.
    """
    averaged = read_config(path)["settings"].get("ema_decay")
    for folder in (path / "chosen", path / "checkpoints"):
        checkpoints = Checkpoints(folder)
        trained = checkpoints.read("params")
        if trained and averaged and folder.name == "checkpoints":
            opt_state, step = checkpoints.read("opt_state") or (None, 0)
            trained = _entry(opt_state, "average"), step
        checkpoints.close()
        if trained is not None:
            return trained
    return _found(None, path)


def read_state(path: Path, like: Any) -> Any:
    """The state of a run's newest checkpoint, on the host.

    Args:
      path: of the run.
      like: NumPy arrays of the state's structure, shapes and dtypes.

    Raises:
      WorkdirError: there is no checkpoint, or its state is another one.
    """
    checkpoints = Checkpoints(path / "checkpoints")
    found = checkpoints.restore(like)
    checkpoints.close()
    return _found(found, path)[0]


def read_step(path: Path) -> Any:
    """By replica, the step of a run's newest checkpoint, counted since its parameters were drawn.

    Raises:
      WorkdirError: there is no checkpoint.
    """
    checkpoints = Checkpoints(path / "checkpoints")
    found = checkpoints.read("step")
    checkpoints.close()
    return _found(found, path)[0]


def _found(found: Any, path: Path) -> Any:
    if found is None:
        raise WorkdirError(
            f"{path} holds no run with a checkpoint; give the --workdir of one that was trained"
        )
    return found


def _entry(tree: Any, name: str) -> Any:
    """The first entry of a name in nested lists and dictionaries; None if there is none."""
    if isinstance(tree, dict) and name in tree:
        return tree[name]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return next((found for part in parts if (found := _entry(part, name)) is not None), None)


def read_chosen_epochs(path: Path) -> list[int] | None:
    """By replica, how many epochs led to what validation has chosen; None if it has not yet.

    Raises:
      WorkdirError: what is there is not intact.
    """
    checkpoints = Checkpoints(path / "chosen")
    found = checkpoints.read("epoch")
    checkpoints.close()
    return None if found is None else found[0].tolist()


def _refuse_what_is_no_runs(path: Path, config: Any) -> None:
    settings = config.get("settings") if isinstance(config, dict) else None
    if not isinstance(settings, dict) or "dataset" not in config:
        raise WorkdirError(
            f"{path / 'config.json'} is no run's: it has no dataset and settings; "
            "give another --workdir"
        )


def _refuse_another_format(path: Path, config: dict[str, Any]) -> None:
    version = config.get("format", 1)
    if version != FORMAT:
        raise WorkdirError(
            f"{path} is of format {version}, and this version of lvae_jax reads format {FORMAT}; "
            "install another version, or give another --workdir"
        )


def _refuse_another_run(path: Path, existing: dict[str, Any], config: dict[str, Any]) -> None:
    # A run of an earlier version lacks the settings that came later; it had their defaults.
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    now, was = (
        # The data are the same if their checksum is, whatever their file is named.
        {"data_sha256": c["data_sha256"][:12], **c["settings"]}
        if "data_sha256" in existing.keys() & config.keys()
        else {"dataset": c["dataset"], **c["settings"]}
        for c in (config, existing)
    )
    was = {name: defaults[name] for name in now.keys() & defaults.keys()} | was
    for settings in (was, now):  # earlier versions stored a relative path
        if settings.get("init_from"):
            settings["init_from"] = str(Path(settings["init_from"]).absolute())
    differences = [
        f"{name} was {was.get(name)} and is now {now.get(name)}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    if differences:
        raise WorkdirError(
            f"{path} holds a run with other settings: {'; '.join(differences)}. "
            "Give those settings again, another --workdir, or --overwrite to start again"
        )


def remove_tensorboard(path: Path) -> None:
    """Removes the event files, which are written again from metrics.jsonl."""
    shutil.rmtree(path / "tensorboard", ignore_errors=True)
