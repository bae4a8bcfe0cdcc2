"""What a user waits for before the first step: imports, data, compilation, checkpoints, resuming.

Commands are timed as a user would start them, each in a process of its own.
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
import threading
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
from experiments.store.workdir import Workdir
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
    data_dir: Path | None = None
    """Holds MNIST's original files in mnist/; None for random images of its size."""


FULL = Plan()
QUICK = Plan(sizes=PAPER.lowest(2), rounds=1, train_images=5120, test_images=1000)

IMPORTS = {
    "python -c 'import jax'": ("-c", "import jax"),
    "python -c 'import lvae_jax'": ("-c", "import lvae_jax"),
    "python -m experiments.mnist --help": ("-m", "experiments.mnist", "--help"),
}

TIMEOUT_SECONDS = 600.0


def measure(plan: Plan) -> dict[str, Any]:
    """Times everything before the first step.

    Args:
      plan: what, and how often.

    Returns:
      Seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        tfds_dir = Path(folder) / "data"
        loading = _loading(plan, tfds_dir)
        first_steps: dict[str, list[float]] = {"cold": [], "warm": [], "resumed": []}
        for i in range(plan.rounds):
            cache, workdir = Path(folder) / f"cache{i}", Path(folder) / f"run{i}"
            # The second run finds the programs of the first; the third goes on with the second.
            cold, warm = (
                first_step(training_command(plan.sizes, tfds_dir, run, cache), run)
                for run in (Path(folder) / f"cold{i}", workdir)
            )
            if not (cache.is_dir() and any(cache.iterdir())):
                raise RuntimeError(f"no run kept a compiled program in --compilation_cache={cache}")
            command = training_command(plan.sizes, tfds_dir, workdir, cache)
            resumed = first_step(command, workdir, warm.stopped_after)
            for kind, measured in zip(first_steps, (cold, warm, resumed), strict=True):
                first_steps[kind].append(measured.seconds)
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
        "notes": []
        if plan.data_dir
        else ["random images stand in for MNIST (--data_dir is not given)"],
    }


def training_command(sizes: Sizes, tfds_dir: Path, workdir: Path, cache: Path) -> list[str]:
    """The command of a run."""
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


FIRST_STEPS = re.compile(r"the first (\d+) steps? took until")
STOPPED = re.compile(r"stopped after step (\d+)")


class FirstStep(NamedTuple):
    """Of a run that was started from the shell, and stopped."""

    seconds: float
    """From the command to the end of the first training step."""

    stopped_after: int
    """The step after which it was stopped and saved."""


def first_step(command: Sequence[str], workdir: Path, steps_before: int = 0) -> FirstStep:
    """Starts a run, times its first step from outside, and stops it after an epoch.

    A run takes its steps some at a time and says when the first of them are done. All of these but
    one are taken off, by the time a step takes in the rest of the epoch.

    Args:
      command: of a run, new or to be resumed.
      workdir: its folder.
      steps_before: taken by earlier starts.

    Raises:
      RuntimeError: the run ended before, or took longer than `TIMEOUT_SECONDS`.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    limit = threading.Timer(TIMEOUT_SECONDS, process.kill)
    limit.start()
    said = [""]
    try:
        for text in process.stderr:
            said.append(text)
            found = FIRST_STEPS.search(text)
            if found:
                first, steps = time.perf_counter() - start, int(found.group(1))
                break
        # A line of metrics.jsonl ends an epoch.
        while process.poll() is None:
            later = [line["step"] for line in metrics(workdir) if line["step"] > steps_before]
            if later:
                elapsed = time.perf_counter() - start
                process.terminate()
                said.append(process.stderr.read())
                stopped = STOPPED.search(said[-1])
                if stopped:
                    of_one = (elapsed - first) / max(1, later[0] - steps_before - steps)
                    return FirstStep(first - (steps - 1) * of_one, int(stopped.group(1)))
            time.sleep(0.01)
        last = "".join(said).strip().splitlines()[-1:]
        raise RuntimeError(
            f"{' '.join(command)} ended after {time.perf_counter() - start:.0f} s, before it was "
            f"stopped: {''.join(last)}"
        )
    finally:
        limit.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


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
        check=arguments[-1] != "--help",  # absl ends with status 1 after --help
    )
    return time.perf_counter() - start


def _loading(plan: Plan, tfds_dir: Path) -> dict[str, Any]:
    """Seconds of the first load of MNIST, where its files are given, and of later ones."""
    loading: dict[str, Any] = {}
    if plan.data_dir is None:
        write_random_images(tfds_dir, plan.train_images, plan.test_images)
    else:
        original = plan.data_dir / "mnist"
        loading["first"] = seconds(lambda: mnist.load(original, tfds_dir))[0]
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
    model, optimizer, key = (
        LadderVAE(*plan.sizes),
        training.make_optimizer(learning_rate=1.0),
        jax.random.key(0),
    )
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
    likelihood: Any = evaluation.log_likelihood_program()
    lowered: dict[str, Callable[[], Any]] = {
        "train_epoch": lambda: training.train_epoch.lower(
            model, optimizer, binarise, state, images, key, number, number, batch_size=256
        ),
        "reestimate_batch_stats": lambda: reestimate(state.params),
        "elbo": lambda: evaluation.elbo.lower(model, variables, as_stored, x, key),
        "log_likelihood": lambda: likelihood.lower(model, variables, x, key, 5000, 10),
    }
    cached = bool(getattr(jax.config, "jax_enable_compilation_cache"))  # noqa: B009 (mypy)
    jax.config.update("jax_enable_compilation_cache", False)
    times: dict[str, dict[str, float]] = {}
    try:
        jax.clear_caches()
        times["init_state"] = {
            "all": seconds(lambda: training.init_state(model, optimizer, key))[0]
        }
        for name, lower in lowered.items():
            jax.clear_caches()
            trace, program = seconds(lower)
            times[name] = {"trace": trace, "compile": seconds(program.compile)[0]}
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    return times


def checkpoints(plan: Plan) -> dict[str, Any]:
    """Seconds to save and to restore a state, each on and from the disk."""
    model, optimizer = LadderVAE(*plan.sizes), training.make_optimizer(learning_rate=1.0)
    like = jax.eval_shape(lambda key: training.init_state(model, optimizer, key), jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), like)
    times: dict[str, list[float]] = {"save": [], "restore": []}
    with tempfile.TemporaryDirectory() as folder:
        workdir = Workdir(Path(folder) / "run", {"dataset": "mnist", "settings": {}})
        workdir.create()
        for epoch in range(1, plan.rounds + 2):
            save = seconds(functools.partial(workdir.save, state, epoch))[0]
            restore = seconds(functools.partial(workdir.restore, state))[0]
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
    programs = []
    for name, s in result["programs"].items():
        parts = [f"{s[part]:.1f}" if part in s else "" for part in ("trace", "compile")]
        programs.append([f"`{name}`", *parts, f"{sum(s.values()):.1f}"])
    lines = [
        f"From the shell command on; {result['rounds']} rounds, median (min to max).",
        "",
        markdown(["", "seconds"], rows),
        "",
        markdown(["program, no cache", "trace, s", "compile, s", "together, s"], programs),
    ]
    return "\n".join([*lines, "", *(f"Note: {note}." for note in result["notes"])]).rstrip()
