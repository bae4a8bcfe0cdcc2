"""Records every epoch of a run: metrics.jsonl, TensorBoard, progress."""

import shutil

from experiments import processes
from experiments.progress import Progress
from experiments.results import EpochRecord
from experiments.show import console
from experiments.show.tensorboard import Events
from experiments.store.workdir import Workdir


class Record:
    """Writes every epoch to metrics.jsonl, TensorBoard and the progress; a context manager.

    All processes keep the epochs; only the first one writes.
    """

    def __init__(self, workdir: Workdir, epochs: list[EpochRecord], progress: Progress):
        """Writes TensorBoard's files again from the epochs so far.

        Args:
          workdir: the run's folder.
          epochs: the epochs so far.
          progress: counts epochs.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        self.workdir, self.epochs, self.progress = workdir, epochs, progress
        self._events: Events | None = None
        processes.by_first(self._write_earlier)

    def __enter__(self) -> "Record":
        self.progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.__exit__()
        if self._events is not None:
            self._events.close()

    def add(self, epoch: EpochRecord) -> None:
        """Records an epoch.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        self.epochs.append(epoch)
        self.workdir.append_metrics(epoch)
        processes.by_first(lambda: self._write_events(epoch))
        self.progress.update(epoch.epoch + 1, console.progress(epoch))

    def _write_earlier(self) -> None:
        shutil.rmtree(self.workdir.path / "tensorboard", ignore_errors=True)
        for epoch in self.epochs:
            self._write_events(epoch)

    def _write_events(self, epoch: EpochRecord) -> None:
        self._events = self._events or Events(self.workdir.path, "metrics")
        self._events.add_epoch(epoch)
