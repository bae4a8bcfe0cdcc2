"""A run's folder: config.json, metrics.jsonl, results.json, checkpoints/, chosen/, model/."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lvae_jax
from experiments import processes
from experiments.errors import WorkdirError
from experiments.results import EpochRecord, Run, RunResults
from experiments.settings import Settings, with_defaults
from experiments.store.checkpoints import Checkpoints
from experiments.store.files import (
    read_json,
    remove,
    write_json,
    write_text,
    writing,
)
from experiments.store.locks import LOCK, lock
from lvae_jax._files import sync
from lvae_jax.models import HierarchicalVAE
from lvae_jax.training import TrainState

FORMAT = 2
"""The format of a run's folder, stored in config.json."""

_BEFORE_CONFIG = {LOCK, "config.json.tmp"}  # left by a start that was killed at once

_MADE_BY_A_RUN = (
    "results.json",  # first: a run that is being removed is not finished
    "metrics.jsonl",
    "model",
    "checkpoints",
    "chosen",
    "tensorboard",
    "figures",
    "report.html",
    "config.json",  # last: it marks the folder as a run's
)
_MADE_FROM_A_RUN = ("probe.json", "outliers-*.json", "impute-*.json", "certify.json")
"""What commands on the finished run have written."""

_RESTORE = "restore it, or start again with --overwrite"
"""What to do about a damaged file of a run."""


class Workdir:
    """The files of one run: checked when it is opened, written only after `create`.

    If a run has several processes, each opens the workdir, and all of them call its methods
    together. Process 0 writes.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        overwrite: bool = False,
        defaults: Settings | None = None,
    ):
        """Checks that the folder, if it exists, belongs to this run.

        Args:
          path: the folder.
          config: the content of config.json, with the run's "dataset" and "settings".
          overwrite: whether `create` removes a run that the folder holds, whatever its settings.
          defaults: those of the experiment, for settings that a run of an older version lacks;
            None: `Settings`' own.

        Raises:
          WorkdirError: the folder belongs to another run, or holds files of something else.
        """
        self.path, self._config = path, {"format": FORMAT, **config}
        self._overwrite, self._defaults = overwrite, defaults or Settings()
        self._lock: int | None = None
        self._checkpoints = Checkpoints(path / "checkpoints")
        self.chosen = Checkpoints(path / "chosen", keep=1)
        """The parameters chosen by validation, under the step of the choice."""
        self._check()

    def _check(self) -> None:
        """Reads config.json; refuses a folder of another run, or of something else."""
        existing = read_json(self.path / "config.json")
        if existing is None:
            if self.path.is_dir() and {p.name for p in self.path.iterdir()} - _BEFORE_CONFIG:
                raise WorkdirError(
                    f"{self.path} holds files but no config.json, so it is not a run's folder; "
                    "give another --workdir"
                )
            return
        _refuse_if_not_a_run(self.path, existing)
        if not self._overwrite:
            _refuse_another_format(self.path, existing)
            _refuse_another_run(self.path, existing, self._config, self._defaults)

    def lock(self) -> None:
        """Creates the folder and locks it until `close`; writes nothing else.

        Raises:
          WorkdirError: the folder cannot be written, is in use by another process, or belongs to
            another run.
        """
        processes.by_first(self._make_and_lock)

    def create(self) -> None:
        """Locks the folder and writes config.json; with `overwrite` removes the earlier run first.

        Raises:
          WorkdirError: the folder cannot be written.
        """
        self.lock()
        _by_first(self.path, self._create)
        self._overwrite = False

    def _make_and_lock(self) -> None:
        if self._lock is not None:
            return
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path)
        try:
            self._check()  # another process may have written before the lock was taken
        except WorkdirError:
            self.close()
            raise

    def _create(self) -> None:
        if self._overwrite:
            for pattern in _MADE_FROM_A_RUN:
                for path in self.path.glob(pattern):
                    remove(path)
            for name in _MADE_BY_A_RUN:
                remove(self.path / name)
        if not (self.path / "config.json").exists():
            write_json(self.path / "config.json", self._config)

    def results(self) -> RunResults | None:
        """The results of a finished run; None if it is not finished, or is to be overwritten."""
        return None if self._overwrite else read_results(self.path)

    def save_model(
        self, model: HierarchicalVAE, variables: Any, metadata: dict[str, Any], replica: int | None
    ) -> None:
        """Writes `model/`, or `model/0`, `model/1`, ... for a run with several replicas.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        # Absolute, because `save` replaces a ~ at its start, which here is a folder's name.
        folder = self.path.absolute() / "model" / ("" if replica is None else str(replica))
        _by_first(folder, lambda: lvae_jax.save(folder, model, variables, metadata))

    def write_results(self, results: RunResults) -> None:
        """Writes results.json: the run is finished."""
        path = self.path / "results.json"
        _by_first(path, lambda: write_json(path, results.to_json()))

    def resumes(self) -> bool:
        """Whether there is a checkpoint, from which the run is resumed."""
        return not self._overwrite and self.has_checkpoint()

    def has_checkpoint(self) -> bool:
        """Whether the folder holds a checkpoint, of this run or of one to be overwritten."""
        return bool(self._checkpoints.steps())

    def restore(self, like: TrainState) -> tuple[TrainState, int] | None:
        """The newest intact checkpoint and its step; None if there is no checkpoint.

        Args:
          like: see `Checkpoints.restore`.

        Raises:
          WorkdirError: there are checkpoints, but none is intact.
        """
        return self._checkpoints.restore(like)

    def save(self, state: TrainState, step: int, score: float | None = None) -> None:
        """Saves a checkpoint; it is on disk when this returns, and metrics.jsonl before it.

        Args:
          state: after the step.
          step: counted over the whole run.
          score: quality of the state, higher is better; the best checkpoint is kept.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        path = self.path / "metrics.jsonl"

        def sync_metrics() -> None:
            if path.exists():
                sync(path)
                sync(self.path)

        _by_first(path, sync_metrics)
        self._checkpoints.save(state, step, score)

    def truncate_metrics(self, epochs: int) -> list[EpochRecord]:
        """Drops the lines of epochs after the checkpoint, and a half-written last line.

        Args:
          epochs: number of epochs finished at the checkpoint.

        Returns:
          The epochs that are kept.

        Raises:
          WorkdirError: lines are missing, or the file cannot be written.
        """
        path = self.path / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record.epoch < epochs]
        if [record.epoch for record in kept] != list(range(epochs)):
            raise WorkdirError(
                f"{path} is damaged: {epochs} epochs are finished, and it has {len(kept)} of them; "
                f"{_RESTORE}"
            )
        _by_first(path, lambda: write_text(path, "".join(map(_line, kept))))
        return kept

    def append_metrics(self, record: EpochRecord) -> None:
        """Appends a line to metrics.jsonl.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        path = self.path / "metrics.jsonl"

        def append() -> None:
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(record))

        _by_first(path, append)

    def close(self) -> None:
        """Unlocks the folder."""
        self._checkpoints.close()
        self.chosen.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _by_first(path: Path, write: Callable[[], None]) -> None:
    """Process 0 writes to a path; an error is one line that names it."""

    def in_one_line() -> None:
        with writing(path):
            write()

    processes.by_first(in_one_line)


def _line(record: EpochRecord) -> str:
    return json.dumps(record.to_json()) + "\n"


def read_run(path: Path) -> Run:
    """A run, finished or not, from its JSON files.

    Raises:
      WorkdirError: the folder holds no run, or its files are damaged.
    """
    config = read_config(path)
    missing = [name for name in ("model", "depth") if name not in config["settings"]]
    if missing:
        raise WorkdirError(
            f"{path / 'config.json'} is damaged: its settings have no {' and no '.join(missing)}; "
            "restore it, or give another folder"
        )
    config["settings"] = with_defaults(config["settings"], Settings())
    return Run(path, config, read_metrics(path), read_results(path))


def read_metrics(path: Path) -> list[EpochRecord]:
    """The epochs in a run's metrics.jsonl, without a half-written last line.

    Raises:
      WorkdirError: a line does not describe an epoch.
    """
    file = path / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # the process was killed while it wrote
                break
            raise WorkdirError(
                f"{file} is damaged: line {number} is not JSON; {_RESTORE}"
            ) from error
        epochs.append(_record(EpochRecord, file, values))
    return epochs


def read_results(path: Path) -> RunResults | None:
    """The results in results.json; None if the run is not finished.

    Raises:
      WorkdirError: the file is damaged.
    """
    values = read_json(path / "results.json")
    return None if values is None else _record(RunResults, path / "results.json", values)


def _record(kind: Any, path: Path, values: Any) -> Any:
    try:
        return kind.from_json(values)
    except (ValueError, RecursionError) as error:
        raise WorkdirError(f"{path} is damaged: {error}; {_RESTORE}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The content of a run's config.json.

    Raises:
      WorkdirError: the file is missing, or has another format.
    """
    config = read_json(path / "config.json")
    if config is None:
        raise WorkdirError(f"{path} holds no config.json; give a run's folder")
    _refuse_if_not_a_run(path, config)
    _refuse_another_format(path, config)
    return config


def read_trained(path: Path) -> tuple[Any, int]:
    """A run's trained parameters and their step: those chosen by validation, else the newest.

    With --ema_decay they are the moving average, because that is evaluated.

    Raises:
      WorkdirError: the run has no checkpoint, or another format.
    """
    averaged = read_config(path)["settings"].get("ema_decay")
    if chosen := _read(path / "chosen", "params"):
        return chosen
    if averaged:
        opt_state, step = _found(_read(path / "checkpoints", "opt_state"), path)
        return _entry(opt_state, "average"), step
    return _found(_read(path / "checkpoints", "params"), path)


def read_state(path: Path, like: Any) -> Any:
    """The state of a run's newest checkpoint, on the host.

    Args:
      path: of the run.
      like: NumPy arrays of the state's structure, shapes and dtypes.

    Raises:
      WorkdirError: there is no checkpoint, or its state has other shapes.
    """
    with contextlib.closing(Checkpoints(path / "checkpoints")) as checkpoints:
        return _found(checkpoints.restore(like), path)[0]


def read_step(path: Path) -> Any:
    """The step of a run's newest checkpoint, per replica, counted since initialisation.

    Raises:
      WorkdirError: there is no checkpoint.
    """
    return _found(_read(path / "checkpoints", "step"), path)[0]


def _read(folder: Path, name: str) -> tuple[Any, int] | None:
    """See `Checkpoints.read`."""
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.read(name)


def _found(found: Any, path: Path) -> Any:
    if found is None:
        raise WorkdirError(
            f"{path} holds no checkpoint; give the folder of a run that was trained, or wait for "
            "the first if it trains (--checkpoint_seconds)"
        )
    return found


def _entry(tree: Any, name: str) -> Any:
    """The first entry of a name in nested lists and dictionaries; None if there is none."""
    if isinstance(tree, dict) and name in tree:
        return tree[name]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return next((found for part in parts if (found := _entry(part, name)) is not None), None)


def read_chosen_epochs(path: Path) -> list[int] | None:
    """The epoch that validation has chosen for each replica; None if it has chosen none yet.

    Raises:
      WorkdirError: the checkpoint is damaged.
    """
    found = _read(path / "chosen", "epoch")
    return None if found is None else found[0].tolist()


def _refuse_if_not_a_run(path: Path, config: Any) -> None:
    settings = config.get("settings") if isinstance(config, dict) else None
    if not isinstance(settings, dict) or "dataset" not in config:
        raise WorkdirError(
            f"{path / 'config.json'} is not a run's: it has no dataset and settings; "
            "give a run's folder"
        )


def _refuse_another_format(path: Path, config: dict[str, Any]) -> None:
    version = config.get("format", 1)
    if version != FORMAT:
        raise WorkdirError(
            f"{path} has format {version}, and this version of lvae_jax reads format {FORMAT}; "
            "install another version, or give another folder"
        )


def _short(value: str | int) -> str | int:
    """The first digits of a checksum."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


def _refuse_another_run(
    path: Path, existing: dict[str, Any], config: dict[str, Any], defaults: Settings
) -> None:
    known = existing.keys() & config.keys()
    # Equal checksums and sizes mean equal data, whatever the files' names.
    data = known & {"data_sha256", "train_images", "test_images"}
    now, was = (
        {name: _short(c[name]) for name in data or {"dataset"}} | c["settings"]
        for c in (config, existing)
    )
    # The run that was continued may have moved together with this one.
    source = Path(was.get("init_from", ""))
    if source.name == Path(now.get("init_from", "")).name and not source.exists():
        was["init_from"] = now["init_from"]
    if differences := _differences(was, now, defaults):
        raise WorkdirError(
            f"{path} holds a run with other settings: {differences}. "
            "Give those settings again, another --workdir, or --overwrite to start again"
        )


def _differences(was: dict[str, Any], now: dict[str, Any], defaults: Settings) -> str:
    was = {n: value for n, value in with_defaults(was, defaults).items() if n in was or n in now}
    return "; ".join(
        f"{name} was {was.get(name)} and is now {now.get(name)}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    )


def results_with(path: Path, settings: Settings, defaults: Settings) -> RunResults | None:
    """The results of a run with these settings; None if it is not finished, or not begun.

    Args:
      path: the run's folder.
      settings: what it must have been made with.
      defaults: those of the experiment, for settings that a run of an older version lacks.

    Raises:
      WorkdirError: the folder holds a run with other settings.
    """
    results = read_results(path)
    if results is None and not (path / "config.json").exists():
        return None
    was, now = read_config(path)["settings"], settings.changing_results()
    # The run that was continued may have moved together with this one.
    if differences := _differences(was | {"init_from": now["init_from"]}, now, defaults):
        raise WorkdirError(
            f"{path} holds a run with other settings: {differences}. Give another --workdir"
        )
    return results
