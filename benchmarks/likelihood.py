"""The importance-sampled log-likelihood: samples x images a second, and memory against K."""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import optional, products
from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import in_turn, markdown, ratio, seconds, shown, spread
from benchmarks.training_step import random_images, verified_differences
from lvae_jax import LadderVAE, evaluation, training
from lvae_jax.data import binarise


class Plan(NamedTuple):
    """What is measured, and how long."""

    sizes: Sizes = PAPER
    images: int = 250
    num_samples: int = 400
    chunk_sizes: tuple[int, ...] = (1, 10, 40, 100)
    compared_chunk_size: int = 10
    """The chunk that `torch.compile` is timed at too."""
    rounds: int = 5
    memory_samples: tuple[int, ...] = (100, 5000, 50000)
    memory_images: int = 50
    memory_chunk_size: int = 50
    torch_compile: bool = True


FULL = Plan()
QUICK = Plan(
    sizes=PAPER.lowest(2),
    num_samples=40,
    chunk_sizes=(10,),
    rounds=3,
    memory_samples=(100, 1000),
    torch_compile=False,
)


def initial_variables(sizes: Sizes) -> tuple[LadderVAE, Any]:
    """A model with fresh parameters, and batch-norm statistics of noise."""
    model = LadderVAE(*sizes)
    key = jax.random.key(0)
    state = training.init_state(model, training.make_optimizer(), key)
    images = jnp.asarray(random_images(1024, sizes.data_dim))
    return model, evaluation.reestimate_batch_stats(
        model, state.params, binarise, images, key, batch_size=256
    )


def drawn_variables(model: LadderVAE) -> Any:
    """Variables drawn by NumPy: nothing is compiled, which takes more memory than a likelihood."""
    key, x = jax.random.key(0), jnp.zeros((1, model.data_dim), jnp.float32)
    like = jax.eval_shape(model.init, {"params": key, "sample": key}, x)
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.uniform(0.0, 0.1, leaf.shape), jnp.float32), like
    )


def measure(plan: Plan) -> dict[str, Any]:
    """Times the likelihood of the plan's model at several chunk sizes, then at several K."""
    model, variables = initial_variables(plan.sizes)
    key = jax.random.key(1)
    x = binarise(key, jnp.asarray(random_images(plan.images, plan.sizes.data_dim)))
    program = evaluation.log_likelihood_program()
    notes = []
    pytorch: Any = optional.pytorch()
    if pytorch is None:
        notes.append(optional.NO_PYTORCH)
    else:
        differences = verified_differences(plan.sizes, 256)
        torch_model = pytorch.Ladder(plan.sizes).to(pytorch.device()).eval()
        pytorch.load(torch_model, variables)
        torch_x = pytorch.torch.tensor(np.asarray(x), device=pytorch.device())
    rows = []
    for chunk_size in plan.chunk_sizes:
        chunks = plan.num_samples // chunk_size
        floor = products.likelihood_chunk(plan.sizes, chunk_size * plan.images)

        def ours(chunk_size: int = chunk_size) -> Any:
            return program(model, variables, x, key, plan.num_samples, chunk_size)

        contenders = {"lvae_jax": ours, "products": products.repeated(floor, chunks)}
        if pytorch is not None:
            kinds = {"pytorch": False}
            if plan.torch_compile and chunk_size == plan.compared_chunk_size:
                kinds["torch_compile"] = True
            for name, compiled in kinds.items():
                function = pytorch.make_log_likelihood(
                    torch_model, torch_x, plan.num_samples, chunk_size, compiled
                )
                try:
                    estimate = function()
                except Exception as error:  # the compiler's own, of any kind
                    if not compiled:
                        raise
                    notes.append(f"torch.compile cannot run here: {str(error).splitlines()[0]}")
                    continue
                check_estimates(np.asarray(ours().log_likelihood), estimate)
                contenders[name] = function
        times = in_turn(contenders, plan.rounds)
        count = plan.num_samples * plan.images
        rates = {name: [count / v for v in values] for name, values in times.items()}
        rows.append(
            {
                "chunk_size": chunk_size,
                "per_second": {name: spread(values) for name, values in rates.items()},
                "fraction_of_floor": ratio(rates["lvae_jax"], rates["products"]),
                "over_pytorch": {
                    name: ratio(rates["lvae_jax"], rates[name])
                    for name in ("pytorch", "torch_compile")
                    if name in rates
                },
                "floor_gflop_per_second": spread(
                    [plan.sizes.sample_flops() * v / 1e9 for v in rates["products"]]
                ),
            }
        )
    return {
        "images": plan.images,
        "num_samples": plan.num_samples,
        "rounds": plan.rounds,
        "chunks": rows,
        "memory_images": plan.memory_images,
        "memory_chunk_size": plan.memory_chunk_size,
        "memory": [_in_a_process(plan, k) for k in plan.memory_samples],
        "notes": notes,
        **({"differences": differences} if pytorch is not None else {}),
    }


def check_estimates(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Two estimates of the same images' log-likelihood, from noise of their own, must be close.

    Raises:
      ValueError: their means are further apart than a hundredth of their size.
    """
    if not abs(ours.mean() - theirs.mean()) <= 0.01 * abs(ours.mean()):
        raise ValueError(
            f"PyTorch's mean log-likelihood is {theirs.mean():.2f} and lvae_jax's "
            f"{ours.mean():.2f} nats; they are to be within 1%"
        )


def _in_a_process(plan: Plan, num_samples: int) -> dict[str, Any]:
    """Peak memory and speed for one K, in a process of its own: a peak never falls again."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.likelihood",
        f"--depth={len(plan.sizes.latent)}",
        f"--num_samples={num_samples}",
        f"--images={plan.memory_images}",
        f"--chunk_size={plan.memory_chunk_size}",
    ]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def peak_mib() -> float:
    """The most memory that this process has held so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # What `getrusage` says on Linux includes the process that started this one.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def table(result: dict[str, Any]) -> str:
    """The result for a person, in Markdown."""
    lines = [
        f"Log-likelihood of {result['images']} images at a time, K = {result['num_samples']}, in "
        f"thousands of samples x images a second; {result['rounds']} rounds in turn, "
        "median (min to max). The floor is the products of top-down pass and decoder alone.",
        "",
    ]
    header = [
        "chunk",
        "lvae_jax",
        "floor",
        "lvae_jax / floor",
        "PyTorch, eager",
        "torch.compile",
        "lvae_jax / eager",
        "lvae_jax / torch.compile",
    ]
    rows = [
        [
            str(row["chunk_size"]),
            *(shown(row["per_second"][name], 1, 1e-3) for name in ("lvae_jax", "products")),
            shown(row["fraction_of_floor"]),
            *(
                shown(row["per_second"][name], 1, 1e-3) if name in row["per_second"] else ""
                for name in ("pytorch", "torch_compile")
            ),
            *(
                shown(row["over_pytorch"][name]) if name in row["over_pytorch"] else ""
                for name in ("pytorch", "torch_compile")
            ),
        ]
        for row in result["chunks"]
    ]
    lines += [markdown(header, rows), ""]
    lines += [
        f"A process for each K: {result['memory_images']} images, chunks of "
        f"{result['memory_chunk_size']}.",
        "",
        markdown(
            ["K", "peak memory, MiB", "of it before, MiB", "thousands a second", "compile, s"],
            [
                [
                    f"{row['num_samples']:,}",
                    f"{row['peak_mib']:,.0f}",
                    f"{row['peak_mib_before']:,.0f}",
                    f"{row['per_second'] / 1e3:.1f}",
                    f"{row['compile_seconds']:.1f}",
                ]
                for row in result["memory"]
            ],
        ),
    ]
    return "\n".join([*lines, "", *(f"Note: {note}." for note in result["notes"])]).rstrip()


def main() -> None:
    """Prints the peak memory and the speed for one K as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--num_samples", type=int, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--chunk_size", type=int, required=True)
    arguments = parser.parse_args()
    sizes = PAPER.lowest(arguments.depth)
    model, key = LadderVAE(*sizes), jax.random.key(1)
    variables = drawn_variables(model)
    images = np.random.default_rng(0).integers(0, 2, (arguments.images, sizes.data_dim))
    x = jnp.asarray(images, jnp.float32)
    program: Any = evaluation.log_likelihood_program()
    before = peak_mib()
    compile_seconds, compiled = seconds(
        lambda: program.lower(
            model, variables, x, key, arguments.num_samples, arguments.chunk_size
        ).compile()
    )
    elapsed, _ = seconds(lambda: compiled(variables, x, key))
    figures = {
        "num_samples": arguments.num_samples,
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
        "compile_seconds": compile_seconds,
        "per_second": arguments.num_samples * arguments.images / elapsed,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
