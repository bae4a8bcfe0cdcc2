"""What a run records as it goes: metrics.jsonl, TensorBoard, progress."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from experiments.progress import Progress
from experiments.workdir import Workdir, remove_tensorboard


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
        """
        self.workdir, self.lines, self.progress = workdir, lines, progress
        self._tensorboard = None
        if workdir.writes:
            remove_tensorboard(workdir.path)
            self._tensorboard = SummaryWriter(str(workdir.path / "tensorboard"))
            for line in lines:
                write_line(self._tensorboard, line)

    def __enter__(self) -> "Record":
        self.progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.__exit__()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def add(self, line: dict[str, Any]) -> None:
        """Records the line of an epoch."""
        self.lines.append(line)
        self.workdir.append_metrics(line)
        if self._tensorboard is not None:
            write_line(self._tensorboard, line)
        note = f"beta {line['beta']:.2f}  ELBO {line['train_elbo']:.2f}"
        if "replicas" in line:
            note += f" ± {line['standard_deviation']['train_elbo']:.2f}"
        self.progress.update(line["epoch"] + 1, note)


def write_line(tensorboard: SummaryWriter, line: dict[str, Any]) -> None:
    """Writes a line of metrics.jsonl to TensorBoard: a layer a curve, its units' KL a histogram.

    Of several replicas the means, and each one's ELBO.
    """
    for name, value in line.items():
        if name in ("kl_per_layer", "active_units"):
            for i, layer_value in enumerate(value, start=1):
                tensorboard.add_scalar(f"{name}/z_{i}", layer_value, line["epoch"])
        elif name == "kl_per_unit":
            for i, units in enumerate(value, start=1):
                tensorboard.add_histogram(f"{name}/z_{i}", np.array(units), line["epoch"])
        elif name == "replicas":
            for i, replica in enumerate(value, start=1):
                for bound in ("train_elbo", "test_elbo"):
                    if bound in replica:
                        tensorboard.add_scalar(
                            f"{bound}/replica_{i}", replica[bound], line["epoch"]
                        )
        elif isinstance(value, float):
            tensorboard.add_scalar(name, value, line["epoch"])


def write_pictures(path: Path, epoch: int) -> None:
    """Writes figures/*.png to TensorBoard."""
    with SummaryWriter(str(path / "tensorboard")) as tensorboard:
        for file in sorted((path / "figures").glob("*.png")):
            with Image.open(file) as image:
                picture = np.asarray(image.convert("RGB"))
            tensorboard.add_image(file.stem, picture, epoch, dataformats="HWC")
