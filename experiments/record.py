"""What a run records as it goes: metrics.jsonl, TensorBoard, progress."""

import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from experiments.files import writing
from experiments.progress import Progress
from experiments.workdir import Workdir, remove_tensorboard

_EDGES = 1e-12 * 1.1 ** np.arange(775)  # TensorBoard's own
_EDGES = np.concatenate([-_EDGES[::-1], [0.0], _EDGES])


class Record:
    """Writes a line an epoch to metrics.jsonl, TensorBoard and the progress; a context manager.

    Of several processes only the one that writes does; all have the lines.
    """

    def __init__(self, workdir: Workdir, lines: list[dict[str, Any]], progress: Progress):
        """Starts TensorBoard's files anew from the lines there are.

        Args:
          workdir: of the run.
          lines: of metrics.jsonl so far.
          progress: counts epochs.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        self.workdir, self.lines, self.progress = workdir, lines, progress
        self._events = events_file(workdir.path)
        if workdir.writes:
            remove_tensorboard(workdir.path)
            write_events(self._events, [event for line in lines for event in events_of(line)])

    def __enter__(self) -> "Record":
        self.progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.__exit__()

    def add(self, line: dict[str, Any]) -> None:
        """Records the line of an epoch.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        self.lines.append(line)
        self.workdir.append_metrics(line)
        if self.workdir.writes:
            write_events(self._events, events_of(line))
        note = f"beta {line['beta']:.2f}  ELBO {line['train_elbo']:.2f}"
        if "replicas" in line:
            note += f" ± {line['standard_deviation']['train_elbo']:.2f}"
        self.progress.update(line["epoch"] + 1, note)


def events_of(line: dict[str, Any]) -> list[Event]:
    """A line of metrics.jsonl for TensorBoard: a layer a curve, its units' KL a histogram.

    Of several replicas the means, and each one's ELBO.
    """
    summaries = []
    for name, value in line.items():
        if name in ("kl_per_layer", "active_units"):
            for i, layer_value in enumerate(value, start=1):
                summaries.append(summary.scalar(f"{name}/z_{i}", layer_value))
        elif name == "kl_per_unit":
            for i, units in enumerate(value, start=1):
                finite = np.array([unit for unit in units if np.isfinite(unit)])
                if finite.size:
                    summaries.append(summary.histogram(f"{name}/z_{i}", finite, _EDGES))
        elif name == "replicas":
            for i, replica in enumerate(value, start=1):
                for bound in ("train_elbo", "test_elbo"):
                    if bound in replica:
                        summaries.append(summary.scalar(f"{bound}/replica_{i}", replica[bound]))
        elif isinstance(value, float):
            summaries.append(summary.scalar(name, value))
    return [Event(wall_time=time.time(), step=line["epoch"], summary=s) for s in summaries]


def write_pictures(path: Path, epoch: int) -> None:
    """Writes figures/*.png to TensorBoard.

    Raises:
      WorkdirError: the disk is full, or cannot be written.
    """
    events = []
    for file in sorted((path / "figures").glob("*.png")):
        with Image.open(file) as image:
            picture = np.asarray(image.convert("RGB"))
        shown = summary.image(file.stem, picture, dataformats="HWC")
        events.append(Event(wall_time=time.time(), step=epoch, summary=shown))
    write_events(events_file(path), events)


def events_file(path: Path) -> Path:
    """A file for TensorBoard in a run's folder, the last of them by its name."""
    return path / "tensorboard" / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"


def write_events(path: Path, events: Iterable[Event]) -> None:
    """Appends to a file of TensorBoard.

    By the caller itself: tensorboardX's writer has a thread for it, and once that has died of a
    full disk, whoever hands it the next event waits for ever.

    Raises:
      WorkdirError: the disk is full, or cannot be written.
    """
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            if not file.tell():
                first = Event(wall_time=time.time(), file_version="brain.Event:2")
                file.write(_framed(first.SerializeToString()))
            for event in events:
                file.write(_framed(event.SerializeToString()))


def _framed(data: bytes) -> bytes:
    """A TFRecord: the length, its checksum, the data, their checksum."""
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)
