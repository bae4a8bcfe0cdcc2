"""What a user waits for before the first step: imports, data, compilation, checkpoints, resuming.

Commands are timed as a user would start them, each in a process of its own.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import markdown, seconds, shown, spread
from benchmarks.training_step import random_images
from experiments.settings import Settings
from experiments.workdir import Workdir
from lvae_jax import LadderVAE, evaluation, training
from lvae_jax.data import as_stored, binarise, mnist
from lvae_jax.data.array_file import write_arrays
from lvae_jax.data.prepared import ARRAYS_FILE


class Plan(NamedTuple):
    """What is measured, and how often."""

    sizes: Sizes = PAPER
    rounds: int = 3
    train_images: int = 60_000
    """Of the data set that stands in for MNIST where its files are not given."""
    test_images: int = 10_000


FULL = Plan()
QUICK = Plan(sizes=PAPER.lowest(2), rounds=1, train_images=5120, test_images=1000)

IMPORTS = {
    "python -c 'import jax'": ("-c", "import jax"),
    "python -c 'import lvae_jax'": ("-c", "import lvae_jax"),
    "python -m experiments.mnist --help": ("-m", "experiments.mnist", "--help"),
}

TIMEOUT_SECONDS = 600.0


def measure(plan: Plan, data_dir: Path | None) -> dict[str, Any]:
    """Times everything before the first step.

    Args:
      plan: what, and how often.
      data_dir: holds MNIST's original files in mnist/; None for random images of its size.

    Returns:
      Seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        tfds_dir = Path(folder) / "data"
        loading = _loading(plan, data_dir, tfds_dir)
        first_steps: dict[str, list[float]] = {"cold": [], "warm": [], "resumed": []}
        for i in range(plan.rounds):
            cache = Path(folder) / f"cache{i}"
            for kind in first_steps:
                # The resumed run is the warm one, killed after an epoch that was saved.
                name = "warm" if kind == "resumed" else kind
                workdir = Path(folder) / f"{name}{i}"
                command = training_command(plan.sizes, tfds_dir, workdir, cache)
                first_steps[kind].append(seconds_to_first_step(command, workdir, cache))
    imports = {
        name: spread([_process_seconds(arguments) for _ in range(plan.rounds)])
        for name, arguments in IMPORTS.items()
    }
    return {
        "rounds": plan.rounds,
        "first_step_seconds": {name: spread(values) for name, values in first_steps.items()},
        "import_seconds": imports,
        "loading_seconds": loading,
        "programs": programs(plan),
        "checkpoint_seconds": checkpoints(plan),
        "notes": [] if data_dir else ["random images stand in for MNIST (--data_dir is not given)"],
    }


def training_command(sizes: Sizes, tfds_dir: Path, workdir: Path, cache: Path) -> list[str]:
    """The command of a run that saves every epoch and evaluates none that is timed."""
    command = [
        sys.executable,
        "-m",
        "experiments.mnist",
        f"--depth={len(sizes.latent)}",
        "--eval_every=0",
        "--checkpoint_seconds=0",
        f"--tfds_dir={tfds_dir}",
        f"--workdir={workdir}",
    ]
    if "compilation_cache" in {field.name for field in dataclasses.fields(Settings)}:
        command.append(f"--compilation_cache={cache}")
    return command


def seconds_to_first_step(command: Sequence[str], workdir: Path, cache: Path) -> float:
    """Wall time from a shell command to the end of its first training step; the run is killed.

    An epoch is one program, whose first step no file shows. So it is the time until the first new
    epoch stands in metrics.jsonl, less the steps but one of the epoch after it, which has nothing
    to compile.

    Args:
      command: of a run, new or to be resumed.
      workdir: its folder.
      cache: the compilation cache.

    Returns:
      Seconds.

    Raises:
      RuntimeError: the run ended, or took longer than `TIMEOUT_SECONDS`.
    """
    known = max((line["epoch"] for line in metrics(workdir)), default=-1)
    environment = dict(os.environ)
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        first = 0.0
        try:
            while True:
                new = [line for line in metrics(workdir) if line["epoch"] > known]
                elapsed = time.perf_counter() - start
                first = first or (elapsed if new else 0.0)
                # The third: so that a checkpoint of the second is written before the kill.
                if len(new) >= 3:
                    steps = new[1]["step"] - new[0]["step"]
                    return first - new[1]["seconds"] * (1 - 1 / steps)
                if process.poll() is not None or elapsed > TIMEOUT_SECONDS:
                    output.seek(0)
                    last = output.read().strip().splitlines()[-1:]
                    raise RuntimeError(
                        f"{' '.join(command)} ended or came to nothing in {elapsed:.0f} s: "
                        f"{''.join(last)}; run it by itself"
                    )
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _process_seconds(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=arguments[-1] != "--help",  # absl's --help has a status of its own
    )
    return time.perf_counter() - start


def _loading(plan: Plan, data_dir: Path | None, tfds_dir: Path) -> dict[str, Any]:
    """Seconds of the first load of MNIST, where its files are given, and of later ones."""
    loading: dict[str, Any] = {}
    if data_dir is None:
        write_random_images(tfds_dir, plan.train_images, plan.test_images)
    else:
        loading["first"] = seconds(lambda: mnist.load(data_dir / "mnist", tfds_dir))[0]
    later = [seconds(lambda: mnist.load(None, tfds_dir))[0] for _ in range(plan.rounds)]
    return loading | {"later": spread(later)}


def write_random_images(tfds_dir: Path, train_images: int, test_images: int) -> None:
    """Writes random images where a prepared MNIST would be."""
    folder = tfds_dir / mnist.SOURCE.name / mnist.SOURCE.version
    folder.mkdir(parents=True)
    images = random_images(train_images + test_images, 784).reshape(-1, 28, 28, 1)
    labels = np.zeros(len(images), np.int32)
    arrays = {
        "train_images": images[:train_images],
        "train_labels": labels[:train_images],
        "test_images": images[train_images:],
        "test_labels": labels[train_images:],
    }
    write_arrays(folder / ARRAYS_FILE, arrays)


def programs(plan: Plan) -> dict[str, dict[str, float]]:
    """Seconds to trace and to compile each program of a run, without a cache."""
    model, optimizer, key = LadderVAE(*plan.sizes), training.make_optimizer(), jax.random.key(0)
    shape = jax.ShapeDtypeStruct
    images = shape((plan.train_images, plan.sizes.data_dim), jnp.uint8)
    x = shape((250, plan.sizes.data_dim), jnp.float32)
    state = jax.eval_shape(lambda key: training.init_state(model, optimizer, key), key)
    number = shape((), jnp.float32)

    def reestimate(params: Any) -> Any:
        return evaluation.reestimate_batch_stats.lower(
            model, params, binarise, images, key, batch_size=256
        )

    variables = jax.eval_shape(
        lambda params, images: evaluation.reestimate_batch_stats(
            model, params, binarise, images, key, batch_size=256
        ),
        state.params,
        images,
    )
    lowered: dict[str, Callable[[], Any]] = {
        "init_state": lambda: training.init_state.lower(model, optimizer, key),
        "train_epoch": lambda: training.train_epoch.lower(
            model, optimizer, binarise, state, images, key, number, number, batch_size=256
        ),
        "reestimate_batch_stats": lambda: reestimate(state.params),
        "elbo": lambda: evaluation.elbo.lower(model, variables, as_stored, x, key),
        "log_likelihood": lambda: evaluation.log_likelihood.lower(
            model, variables, x, key, 5000, 10
        ),
    }
    cached = bool(getattr(jax.config, "jax_enable_compilation_cache"))  # noqa: B009 (mypy)
    jax.config.update("jax_enable_compilation_cache", False)
    times = {}
    try:
        for name, lower in lowered.items():
            jax.clear_caches()
            trace, program = seconds(lower)
            times[name] = {"trace": trace, "compile": seconds(program.compile)[0]}
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    return times


def checkpoints(plan: Plan) -> dict[str, Any]:
    """Seconds to save and to restore a state, each on and from the disk."""
    model, optimizer = LadderVAE(*plan.sizes), training.make_optimizer()
    like = jax.eval_shape(lambda key: training.init_state(model, optimizer, key), jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), like)
    times: dict[str, list[float]] = {"save": [], "restore": []}
    with tempfile.TemporaryDirectory() as folder:
        workdir = Workdir(Path(folder) / "run", {"dataset": "mnist", "settings": {}})
        workdir.create()
        for epoch in range(1, plan.rounds + 2):
            save = seconds(functools.partial(workdir.save, state, epoch))[0]
            restore = seconds(lambda: workdir.restore(state)[0])[0]
            if epoch > 1:  # the first call is not like the others
                times["save"].append(save)
                times["restore"].append(restore)
        workdir.close()
    return {name: spread(values) for name, values in times.items()}


def table(result: dict[str, Any]) -> str:
    """The result for a person, in Markdown."""
    kinds = {
        "cold": "first training step, nothing compiled before",
        "warm": "first training step, with a warm compilation cache",
        "resumed": "first step of a resumed run, warm",
    }
    rows = [[kinds[name], shown(s, 1)] for name, s in result["first_step_seconds"].items()]
    rows += [[f"`{name}`", shown(s)] for name, s in result["import_seconds"].items()]
    loading = result["loading_seconds"]
    if "first" in loading:
        rows.append(["MNIST, first load", f"{loading['first']:.2f}"])
    rows.append(["MNIST, later loads", shown(loading["later"])])
    rows += [
        [f"{name} a checkpoint", shown(s, 3)] for name, s in result["checkpoint_seconds"].items()
    ]
    programs = [
        [f"`{name}`", f"{s['trace']:.1f}", f"{s['compile']:.1f}"]
        for name, s in result["programs"].items()
    ]
    lines = [
        f"From the shell command on; {result['rounds']} rounds, median (min to max).",
        "",
        markdown(["", "seconds"], rows),
        "",
        markdown(["program, no cache", "trace, s", "compile, s"], programs),
    ]
    return "\n".join([*lines, "", *(f"Note: {note}." for note in result["notes"])]).rstrip()
