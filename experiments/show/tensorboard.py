"""TensorBoard's files of a run, written without TensorFlow: scalars, histograms, pictures."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from experiments.results import EpochRecord
from experiments.store.files import writing

FLUSH_SECONDS = 1.0
"""Added values are on disk, for TensorBoard to read, after about this time."""

_EDGES = 1e-12 * 1.1 ** np.arange(775)  # TensorBoard's own
_EDGES = np.concatenate([-_EDGES[::-1], [0.0], _EDGES])


class Events:
    """A new file for TensorBoard in a run's folder.

    The calling thread writes it. tensorboardX's `SummaryWriter` writes in another thread, and after
    a full disk has ended that thread, the next call blocks forever.
    """

    def __init__(self, workdir: Path, kind: str):
        """Creates the file.

        Args:
          workdir: the run's folder.
          kind: the end of the file's name.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        folder = workdir / "tensorboard"
        with writing(folder):
            folder.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), f".{kind}")
        self._file = max(folder.glob(f"*.{kind}"))
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes the rest and closes the file.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        with writing(self._file):
            self._writer.close()

    def add_epoch(self, record: EpochRecord) -> None:
        """Adds the numbers of an epoch.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        for found in _summaries(record):
            self._add(found, record.epoch)

    def add_figures(self, folder: Path, epoch: int) -> None:
        """Adds a folder's pictures, NAME.png, at an epoch.

        Raises:
          WorkdirError: the disk is full, or cannot be written.
        """
        for file in sorted(folder.glob("*.png")):
            encoded = file.read_bytes()
            width, height = struct.unpack(">II", encoded[16:24])  # of the PNG's header
            picture = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=encoded
            )
            self._add(Summary(value=[Summary.Value(tag=file.stem, image=picture)]), epoch)

    def _add(self, found: Any, epoch: int) -> None:
        with writing(self._file):
            self._writer.write_event(Event(wall_time=time.time(), step=epoch, summary=found))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()


def _summaries(record: EpochRecord) -> Iterator[Any]:
    """Yields scalars per number or layer, and a histogram of each layer's KL per unit.

    Scalars are means over replicas, with each replica's ELBO; histograms hold all their units.
    """
    scalars: dict[str, float | None] = {"seconds": record.seconds}
    for name in ("beta", "learning_rate", "train_elbo", "log_px", "validation_elbo", "test_elbo"):
        scalars[name] = record.mean(name)
    for name in ("kl_per_layer", "active_units"):
        for i, value in enumerate(record.mean(name) or (), start=1):
            scalars[f"{name}/z_{i}"] = value
    if len(record.replicas) > 1:
        for name in ("train_elbo", "test_elbo"):
            for i, value in enumerate(record.each(name), start=1):
                scalars[f"{name}/replica_{i}"] = value
    yield from (summary.scalar(name, v) for name, v in scalars.items() if v is not None)
    if record.evaluated:
        for i, layer in enumerate(zip(*record.each("kl_per_unit"), strict=True), start=1):
            units = np.concatenate(layer)
            finite = units[np.isfinite(units)]
            if finite.size:
                yield summary.histogram(f"kl_per_unit/z_{i}", finite, _EDGES)
