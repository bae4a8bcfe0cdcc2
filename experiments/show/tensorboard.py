"""TensorBoard's files, written without TensorFlow: the scalars of a run's metrics, and pictures."""

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

from experiments.replicas import each
from experiments.store.files import writing

_EDGES = 1e-12 * 1.1 ** np.arange(775)  # TensorBoard's own
_EDGES = np.concatenate([-_EDGES[::-1], [0.0], _EDGES])


def events_of(line: dict[str, Any]) -> list[Event]:
    """A line of metrics.jsonl for TensorBoard: a layer a curve, its units' KL a histogram.

    Of several replicas the means, each one's ELBO, and the KL of all their units.
    """
    summaries = []
    for name, value in line.items():
        if name in ("kl_per_layer", "active_units"):
            for i, layer_value in enumerate(value, start=1):
                if layer_value is not None:
                    summaries.append(summary.scalar(f"{name}/z_{i}", layer_value))
        elif name == "replicas":
            for i, replica in enumerate(value, start=1):
                for bound in ("train_elbo", "test_elbo"):
                    if replica.get(bound) is not None:
                        summaries.append(summary.scalar(f"{bound}/replica_{i}", replica[bound]))
        elif isinstance(value, float):
            summaries.append(summary.scalar(name, value))
    by_replica = [replica["kl_per_unit"] for replica in each(line) if "kl_per_unit" in replica]
    for i, layer in enumerate(zip(*by_replica, strict=True), start=1):
        units = np.concatenate(layer)
        finite = units[np.isfinite(units)]
        if finite.size:
            summaries.append(summary.histogram(f"kl_per_unit/z_{i}", finite, _EDGES))
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
    """The file for TensorBoard in a run's folder: the one there is, else a new one."""
    folder = path / "tensorboard"
    new = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    return max(folder.glob("events.out.tfevents.*"), default=new)


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
