"""`python -m benchmarks.on_device`: all measurements on an accelerator, in parts.

Each part takes at most about ten minutes and writes a JSON file into the results folder. Only a
part whose command failed is repeated. Run the same command until it reports that all parts are
done. It needs neither a network nor tensorflow-datasets: MNIST comes from a folder with the
prepared data set. Flags that it does not know are given to the runs of Figure 3.
"""

import argparse
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import likelihood
from benchmarks.run import machine
from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import first_line, in_turn, seconds, spread
from benchmarks.training_step import random_images
from experiments.paper import plan as paper_plan
from experiments.run.setup import at_precision
from lvae_jax import LadderVAE, evaluation, training
from lvae_jax.data import binarise

TESTS = ("test_distributions.py", "test_normalization.py", "test_bounds.py")

SHARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""For processes that share a device: none takes most of its memory when it starts."""


class Step(NamedTuple):
    """A training step to time."""

    replicas: int = 1
    precision: str = "tf32"
    """Of matrix products, as `--matmul_precision`; JAX's own default on a GPU is tf32."""
    options: tuple[tuple[str, str | bool], ...] = ()
    """XLA's options. One that this XLA does not know is reported as refused."""


GRAPHS = "xla_gpu_enable_command_buffer"
GRAPHED = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL"
UNROLLED = ("xla_gpu_enable_while_loop_unrolling", "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER")
NO_TRITON = ("xla_gpu_enable_triton_gemm", False)
# Autotuning times kernels on the device, one program after the other.
UNTUNED = (("xla_gpu_autotune_level", "0"), NO_TRITON)
STEPS = {
    "default": Step(),
    "no-triton-gemm": Step(options=(NO_TRITON,)),
    "untuned": Step(options=UNTUNED),
    "float32": Step(precision="float32", options=UNTUNED),
    "bf16": Step(precision="bf16", options=UNTUNED),
    "command-buffers-while": Step(options=(*UNTUNED, (GRAPHS, f"{GRAPHED},WHILE"))),
    "no-command-buffers": Step(options=(*UNTUNED, (GRAPHS, ""))),
    "unrolled-loop": Step(options=(*UNTUNED, UNROLLED)),
    "replicas-2": Step(2, options=UNTUNED),
    "replicas-4": Step(4, options=UNTUNED),
    "replicas-8": Step(8, options=UNTUNED),
    "replicas-16": Step(16, options=UNTUNED),
    "replicas-8-float32": Step(8, "float32", UNTUNED),
}
"""The steps to time, by name."""


class Plan(NamedTuple):
    """The size of the measurements, and their folders."""

    results: Path
    tfds_dir: Path
    """Holds the prepared MNIST."""
    minutes: float = 10.0
    """A run that takes longer is stopped and saved; the next start resumes it."""
    sizes: Sizes = PAPER
    steps: int = 234
    rounds: int = 5
    timed: Mapping[str, Step] = STEPS
    num_samples: int = 5000
    seeds: int = 8
    scale: float = 1.0
    """Fraction of the paper's epochs that runs train for."""
    flags: tuple[str, ...] = ()
    """Further flags of every run of Figure 3, such as `--matmul_precision=tf32`."""
    at_once: int = 1
    """How many parts share the device. Steps are then not timed alone."""


Part = Callable[[], dict[str, Any] | None]
"""Takes a measurement; returns None if it had to stop and must be started again."""


def parts(plan: Plan) -> dict[str, Part]:
    """All measurements by name, the most valuable first."""
    found: dict[str, Part] = {
        "tests": functools.partial(_tests, plan),
        "steps": functools.partial(steps, plan),
        "likelihood": functools.partial(_likelihood, plan),
    }
    # Table 1: a run with the paper's 2,000 epochs and L_5000, then two runs that fine-tune it.
    table_1 = ["experiments.paper", "--only=table1", f"--scale={plan.scale}"]
    found["table1"] = functools.partial(
        _run, plan, [*table_1, f"--eval_samples={plan.num_samples}"], "table1"
    )
    # Figure 3: the paper's runs, each with several seeds in one program.
    paper = paper_plan.PaperSettings(
        scale=plan.scale, eval_samples=plan.num_samples, replicas=plan.seeds
    )
    for planned in paper_plan.plan(paper, "figure3"):
        name = f"figure3-{planned.name}"
        # Without "python -m", and without the folder, which `_run` gives.
        _, _, *arguments, _ = shlex.split(planned.command.line(planned.settings, Path(name)))
        # Where `python -m experiments.paper --workdir=RESULTS/runs/figure3` looks for it.
        folder = f"figure3/runs/{planned.name}"
        found[name] = functools.partial(_run, plan, [*arguments, *plan.flags], name, folder)
    return found


def _tests(plan: Plan) -> dict[str, Any] | None:
    """Runs the numeric tests on the device, with products in float32."""
    folder = Path(__file__).parent.parent / "tests"
    files = [str(folder / name) for name in TESTS]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *files],
            env={**os.environ, **SHARING, "JAX_DEFAULT_MATMUL_PRECISION": "float32"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60 * plan.minutes,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    return {"passed": done.returncode == 0, "said": done.stdout.splitlines()[-30:]}


def steps(plan: Plan) -> dict[str, Any]:
    """Seconds of training steps within their epochs, all compiled side by side, timed in turn."""
    model, optimizer = LadderVAE(*plan.sizes), training.make_optimizer()
    batch_size = 256
    images = jnp.asarray(random_images(plan.steps * batch_size, plan.sizes.data_dim))

    most = max(step.replicas for step in plan.timed.values())
    keys = jax.vmap(jax.random.key)(jnp.arange(most))
    ones = jnp.ones(most, jnp.float32)
    # On the host: the states of fewer replicas are then made without compiling anything.
    states = jax.tree.map(np.asarray, training.init_state(model, optimizer, keys))

    def initial(replicas: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[:replicas], states)

    @functools.cache
    def arguments(replicas: int) -> tuple[Any, ...]:
        return images, keys[:replicas], *2 * (ones[:replicas],)

    @functools.cache
    def lowered(replicas: int, precision: str) -> jax.stages.Lowered:
        with at_precision(precision):
            return training.train_replicas.lower(
                model, optimizer, binarise, initial(replicas), *arguments(replicas),
                batch_size=batch_size,
            )  # fmt: skip

    def compiled(step: Step, program: jax.stages.Lowered) -> tuple[dict[str, Any], Any]:
        described = {**step._asdict(), "options": dict(step.options)}
        try:
            taken, ready = seconds(lambda: program.compile(described["options"]))
        except jax.errors.JaxRuntimeError as error:
            return {**described, "refused": first_line(error)}, None
        return {**described, "compile_seconds": taken}, ready

    with ThreadPoolExecutor() as beside:  # compiles some while others are still traced
        compiling = {
            name: beside.submit(compiled, step, lowered(step.replicas, step.precision))
            for name, step in plan.timed.items()
        }
        programs = {name: found.result() for name, found in compiling.items()}

    def epoch(replicas: int, program: Any) -> Callable[[], Any]:
        state = initial(replicas)

        def run() -> Any:
            nonlocal state
            state, metrics = program(state, *arguments(replicas))
            return metrics

        return run

    times = in_turn(
        {
            name: epoch(described["replicas"], program)
            for name, (described, program) in programs.items()
            if program is not None
        },
        plan.rounds,
    )
    results = {name: described for name, (described, _) in programs.items()}
    for name, values in times.items():
        results[name]["step_seconds"] = spread(values, 1 / plan.steps)
    return results


def _likelihood(plan: Plan) -> dict[str, Any]:
    """Seconds of L_K of 250 images with the default chunk size, by precision of products."""
    model, variables = likelihood.initial_variables(plan.sizes)
    key = jax.random.key(1)
    x = binarise(key, jnp.asarray(random_images(250, plan.sizes.data_dim)))
    program = evaluation.log_likelihood_program()

    def at(precision: str) -> Any:
        with at_precision(precision):
            return program(model, variables, x, key, plan.num_samples)

    run = {precision: functools.partial(at, precision) for precision in ("float32", "tf32")}
    times = {name: spread(values) for name, values in in_turn(run, plan.rounds).items()}
    return {"images": 250, "num_samples": plan.num_samples, "seconds": times}


def _run(
    plan: Plan, arguments: list[str], name: str, folder: str | None = None
) -> dict[str, Any] | None:
    """Makes or resumes runs in a subprocess, and stops them when the part's time is over."""
    workdir = plan.results / "runs" / (folder or name)
    command = [*arguments, f"--workdir={workdir}", f"--tfds_dir={plan.tfds_dir}"]
    start = time.perf_counter()
    plan.results.mkdir(parents=True, exist_ok=True)
    with (plan.results / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **SHARING} if plan.at_once > 1 else None,
            stdout=log,
            stderr=subprocess.STDOUT,
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
    """Starts each part that has no result yet, or has failed, once.

    Tests that fail on a device would fail again: they are not repeated, but said every time.

    Returns:
      The names of the parts that were stopped or failed.
    """
    plan.results.mkdir(parents=True, exist_ok=True)

    def is_done(name: str) -> bool:
        path = plan.results / f"{name}.json"
        result = json.loads(path.read_text()) if path.exists() else None
        if result is None or result.get("status"):
            print(f"{name} ...", flush=True)
            result = chosen[name]()
            if result is None:
                return False
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
            partial.replace(path)  # so the file is complete if it exists
        if not result.get("passed", True):
            print(f"{name} failed on this device: see {path}", flush=True)
        return not result.get("status")

    with ThreadPoolExecutor(plan.at_once) as beside:
        done = list(beside.map(is_done, chosen))
    return [name for name, ended in zip(chosen, done, strict=True) if not ended]


def main() -> None:
    """Starts the parts that are not done yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_device", description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--tfds_dir", type=Path, required=True, help="folder with the prepared MNIST"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit of a part")
    parser.add_argument("--only", default="", help="run only parts whose names begin with this")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of the paper's epochs to train for"
    )
    parser.add_argument(
        "--at_once", type=int, default=1, help="how many parts share the device; times suffer"
    )
    given, flags = parser.parse_known_args()  # further flags are those of Figure 3's runs
    plan = Plan(
        given.results,
        given.tfds_dir,
        given.minutes,
        scale=given.scale,
        flags=tuple(flags),
        at_once=given.at_once,
    )
    found = parts(plan)
    chosen = {name: part for name, part in found.items() if name.startswith(given.only)}
    if not chosen:
        parser.error(f"--only={given.only}: give the beginning of one of {', '.join(found)}")
    if given.at_once < 1:
        parser.error(f"--at_once={given.at_once}: give at least 1")
    if left := measure(plan, chosen):
        print(f"stopped or failed: {', '.join(left)}")
        raise SystemExit(1)
    print("all parts are done")


if __name__ == "__main__":
    main()
