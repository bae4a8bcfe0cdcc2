"""`python -m benchmarks.on_device`: all measurements on an accelerator, in parts.

Each part takes at most about ten minutes and writes a JSON file into the results folder. A part
with such a file is not repeated. Run the same command until it reports that all parts are done. It
needs neither a network nor tensorflow-datasets: MNIST comes from a folder with the prepared data
set.
"""

import argparse
import dataclasses
import functools
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import likelihood
from benchmarks.run import machine
from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import in_turn, seconds, spread
from benchmarks.training_step import random_images
from experiments.paper import plan as paper_plan
from lvae_jax import LadderVAE, evaluation, training
from lvae_jax.data import binarise

TESTS = ("test_distributions.py", "test_normalization.py", "test_bounds.py")

OPTIONS: dict[str, dict[str, str | bool]] = {
    "default": {},
    "command-buffers": {
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL"
    },
    "command-buffers-while": {
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,WHILE"
    },
    "no-command-buffers": {"xla_gpu_enable_command_buffer": ""},
    "unrolled-loop": {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER"},
    "no-triton-gemm": {"xla_gpu_enable_triton_gemm": False},
}
"""XLA's options for timing a step. If this XLA does not know one, the part's result says so."""


class Plan(NamedTuple):
    """The size of the measurements, and their folders."""

    results: Path
    tfds_dir: Path
    """Holds the prepared MNIST."""
    minutes: float = 10.0
    """A run that takes longer is stopped and saved; the next start resumes it."""
    sizes: Sizes = PAPER
    steps: int = 234
    rounds: int = 9
    replicas: tuple[int, ...] = (2, 4, 8, 16)
    num_samples: int = 5000
    seeds: int = 8
    scale: float = 1.0
    """Fraction of the paper's epochs that runs train for."""
    flags: tuple[str, ...] = ()
    """Further flags of every run of Figure 3, such as smaller sizes for a rehearsal."""


Part = Callable[[], dict[str, Any] | None]
"""Takes a measurement; returns None if it had to stop and must be started again."""


def parts(plan: Plan) -> dict[str, Part]:
    """All measurements by name, the most valuable first."""
    found: dict[str, Part] = {"tests": functools.partial(_tests, plan)}
    for name, options in OPTIONS.items():
        found[f"step-{name}"] = functools.partial(step, plan, 1, options)
    for count in plan.replicas:
        found[f"replicas-{count}"] = functools.partial(step, plan, count, {})
    found["likelihood"] = functools.partial(_likelihood, plan)
    # Table 1: a run with the paper's 2,000 epochs and L_5000, then two runs that fine-tune it.
    table_1 = ["experiments.paper", "--only=table1", f"--scale={plan.scale}"]
    found["table1"] = functools.partial(
        _run, plan, [*table_1, f"--eval_samples={plan.num_samples}"], "table1"
    )
    # Figure 3: the paper's runs, each with several seeds in one program.
    paper = paper_plan.PaperSettings(scale=plan.scale, eval_samples=plan.num_samples)
    for planned in paper_plan.plan(paper, "figure3"):
        name = f"figure3-{planned.name}"
        settings = dataclasses.replace(planned.settings, replicas=plan.seeds)
        # Without "python -m", and without the folder, which `_run` gives.
        _, _, *arguments, _ = shlex.split(planned.command.line(settings, Path(name)))
        found[name] = functools.partial(_run, plan, [*arguments, *plan.flags], name)
    return found


def _tests(plan: Plan) -> dict[str, Any]:
    """Runs the numeric tests on the device."""
    folder = Path(__file__).parent.parent / "tests"
    files = [str(folder / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses=0", *files]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60 * plan.minutes,
    )  # fmt: skip
    return {"status": done.returncode, "said": done.stdout.splitlines()[-30:]}


def step(plan: Plan, replicas: int, options: Mapping[str, str | bool]) -> dict[str, Any]:
    """Seconds of a training step within its epoch, compiled with these options of XLA's."""
    model, optimizer = LadderVAE(*plan.sizes), training.make_optimizer()
    batch_size = 256
    images = jnp.asarray(random_images(plan.steps * batch_size, plan.sizes.data_dim))
    keys = jax.vmap(jax.random.key)(jnp.arange(replicas))
    state = training.init_state(model, optimizer, keys)
    ones = jnp.ones(replicas, jnp.float32)
    lowered = training.train_replicas.lower(
        model, optimizer, binarise, state, images, keys, ones, ones, batch_size=batch_size
    )
    try:
        compile_seconds, compiled = seconds(lambda: lowered.compile(dict(options)))
    except jax.errors.JaxRuntimeError as error:
        return {"options": dict(options), "refused": str(error).splitlines()[0]}

    def epoch() -> Any:
        nonlocal state
        state, metrics = compiled(state, images, keys, ones, ones)
        return metrics

    (times,) = in_turn({"epoch": epoch}, plan.rounds).values()
    return {
        "options": dict(options),
        "replicas": replicas,
        "compile_seconds": compile_seconds,
        "step_seconds": spread([value / plan.steps for value in times]),
    }


def _likelihood(plan: Plan) -> dict[str, Any]:
    """Seconds of L_K of 250 images with the default chunk size."""
    model, variables = likelihood.initial_variables(plan.sizes)
    key = jax.random.key(1)
    x = binarise(key, jnp.asarray(random_images(250, plan.sizes.data_dim)))
    program = evaluation.log_likelihood_program()
    run = {"likelihood": lambda: program(model, variables, x, key, plan.num_samples)}
    (times,) = in_turn(run, plan.rounds).values()
    return {"images": 250, "num_samples": plan.num_samples, "seconds": spread(times)}


def _run(plan: Plan, arguments: list[str], name: str) -> dict[str, Any] | None:
    """Makes or resumes runs in a subprocess, and stops them when the part's time is over."""
    workdir = plan.results / "runs" / name
    command = [*arguments, f"--workdir={workdir}", f"--tfds_dir={plan.tfds_dir}"]
    start = time.perf_counter()
    plan.results.mkdir(parents=True, exist_ok=True)
    with (plan.results / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            status = process.wait(timeout=60 * plan.minutes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # the run saves and ends
            status = process.wait()
    if status in (128 + signal.SIGTERM, -signal.SIGTERM):
        return None
    found = {
        str(path.parent.relative_to(workdir)): json.loads(path.read_text())
        for path in sorted(workdir.rglob("results.json"))
    }
    last_start = time.perf_counter() - start
    return {"status": status, "seconds_of_last_start": last_start, "results": found}


def measure(plan: Plan, chosen: Mapping[str, Part]) -> list[str]:
    """Starts each part that has no result yet, once.

    Returns:
      The names of the parts that still have none.
    """
    plan.results.mkdir(parents=True, exist_ok=True)
    left = []
    for name, part in chosen.items():
        path = plan.results / f"{name}.json"
        if path.exists():
            continue
        print(f"{name} ...", flush=True)
        result = part()
        if result is None:
            left.append(name)
            continue
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
        partial.replace(path)  # so the file is complete if it exists
    return left


def main() -> None:
    """Starts the parts that are not done yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_device", description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--tfds_dir", type=Path, required=True, help="folder with the prepared MNIST"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit of a part")
    parser.add_argument("--only", default="", help="run only parts whose names begin with this")
    given = parser.parse_args()
    plan = Plan(given.results, given.tfds_dir, given.minutes)
    chosen = {name: part for name, part in parts(plan).items() if name.startswith(given.only)}
    left = measure(plan, chosen)
    print(f"to be resumed: {', '.join(left)}" if left else "all parts are done")


if __name__ == "__main__":
    main()
