"""Times what a user waits for before training: imports, compilation, resuming.

Each command is timed in a separate process, started as a user would start it.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import Row, spread
from benchmarks.training_step import random_images
from lvae_jax.data import mnist
from lvae_jax.data.array_file import write_arrays
from lvae_jax.data.prepared import ARRAYS_FILE


class Plan(NamedTuple):
    """What is measured, and how often."""

    sizes: Sizes = PAPER
    rounds: int = 3
    train_images: int = 60_000
    """Number of random images, which replace MNIST."""
    test_images: int = 10_000


FULL = Plan()
QUICK = Plan(sizes=PAPER.lowest(2), rounds=1, train_images=5120, test_images=1000)

COMMANDS = {
    "`python -c 'import jax'`": ("-c", "import jax"),
    "`python -c 'import lvae_jax'`": ("-c", "import lvae_jax"),
    "`python -m experiments.mnist --help`": ("-m", "experiments.mnist", "--help"),
}

FIRST_STEPS = re.compile(r"the first \d+ steps? took until")


def measure(plan: Plan) -> dict[str, Any]:
    """Times first steps and imports."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tfds_dir = Path(folder) / "data"
        write_random_images(tfds_dir, plan.train_images, plan.test_images)
        for i in range(plan.rounds):
            cache = Path(folder) / f"cache{i}"
            # The second run uses the programs that the first compiled; the third resumes it.
            for name, run in (
                ("first steps, nothing compiled before", "cold"),
                ("first steps, warm compilation cache", "warm"),
                ("first steps of a resumed run, warm", "warm"),
            ):
                workdir = Path(folder) / f"{run}{i}"
                command = training_command(plan.sizes, tfds_dir, workdir, cache)
                times.setdefault(name, []).append(first_steps(command))
            if not (cache.is_dir() and any(cache.iterdir())):
                raise RuntimeError(f"no run kept a compiled program in --compilation_cache={cache}")
            for name, arguments in COMMANDS.items():
                process = [sys.executable, *arguments]
                start = time.perf_counter()
                subprocess.run(process, capture_output=True, check=True)
                times.setdefault(name, []).append(time.perf_counter() - start)
    rows: list[Row] = [{"": name, "seconds": spread(values)} for name, values in times.items()]
    caption = f"From the shell command on; {plan.rounds} rounds, median (min to max)."
    return {"tables": {caption: rows}, "notes": []}


def training_command(sizes: Sizes, tfds_dir: Path, workdir: Path, cache: Path) -> list[str]:
    """The command line of a run."""
    return [
        sys.executable,
        "-m",
        "experiments.mnist",
        f"--depth={len(sizes.latent)}",
        "--eval_every=0",
        f"--tfds_dir={tfds_dir}",
        f"--workdir={workdir}",
        f"--compilation_cache={cache}",
    ]


def first_steps(command: Sequence[str]) -> float:
    """Starts or resumes a run, and stops it by SIGTERM once its first steps are done.

    Args:
      command: the command line of a run.

    Returns:
      Seconds from the start of the command until the run reports its first steps.

    Raises:
      RuntimeError: the run ended before its first steps.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if FIRST_STEPS.search(line):
                elapsed = time.perf_counter() - start
                process.terminate()
                process.communicate()  # it saves
                return elapsed
    raise RuntimeError(f"{' '.join(command)} ended before its first steps: {said.strip()}")


def write_random_images(tfds_dir: Path, train_images: int, test_images: int) -> None:
    """Writes random images in place of a prepared MNIST."""
    folder = tfds_dir / mnist.SOURCE.name / mnist.SOURCE.version
    folder.mkdir(parents=True)
    images = random_images(train_images + test_images, 784).reshape(-1, *mnist.SOURCE.image_shape)
    labels = np.zeros(len(images), np.int32)
    arrays = {
        "train_images": images[:train_images],
        "train_labels": labels[:train_images],
        "test_images": images[train_images:],
        "test_labels": labels[train_images:],
    }
    write_arrays(folder / ARRAYS_FILE, arrays)
