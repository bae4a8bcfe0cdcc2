"""What a run records as it goes: metrics.jsonl, TensorBoard, progress."""

from experiments.progress import Progress
from experiments.results import EpochRecord
from experiments.show.shown import with_deviation
from experiments.store.workdir import Workdir, remove_tensorboard


class Record:
    """Writes a line an epoch to metrics.jsonl, TensorBoard and the progress; a context manager.

    Of several processes only the one that writes does; all have the lines.
    """

    def __init__(self, workdir: Workdir, lines: list[EpochRecord], progress: Progress):
        """Starts TensorBoard's files anew from the lines there are.

        Args:
          workdir: of the run.
          lines: of metrics.jsonl so far.
          progress: counts epochs.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        self.workdir, self.lines, self.progress = workdir, lines, progress
        if workdir.writes:
            remove_tensorboard(workdir.path)
            if lines:
                self._write_events(lines)

    def __enter__(self) -> "Record":
        self.progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.__exit__()

    def add(self, line: EpochRecord) -> None:
        """Records the line of an epoch.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        self.lines.append(line)
        self.workdir.append_metrics(line.to_json())
        if self.workdir.writes:
            self._write_events([line])
        note = f"beta {line.mean('beta'):.2f}  ELBO {with_deviation(line.each('train_elbo'))}"
        self.progress.update(line.epoch + 1, note)

    def _write_events(self, lines: list[EpochRecord]) -> None:
        # Not before the first epoch is done: tensorboardX imports PyTorch where that is installed.
        from experiments.show import tensorboard

        events = [event for line in lines for event in tensorboard.events_of(line.to_json())]
        tensorboard.write_events(tensorboard.events_file(self.workdir.path), events)
