"""Times a training step within an epoch: lvae_jax, plain JAX, PyTorch, and the products alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import optional, plain_jax, products
from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import Row, first_line, in_turn, ratio, seconds, spread
from lvae_jax import LadderVAE, compilation, evaluation, training
from lvae_jax.data import binarise


class Plan(NamedTuple):
    """What is measured, and how long."""

    sizes: Sizes = PAPER
    batch_size: int = 256
    steps: int = 39
    """Steps per round: few, so that changes of the machine's speed affect all contenders alike."""
    rounds: int = 15
    sweep_flops: float = 5e10
    """Operations per round in the sweeps; they determine the number of steps."""
    sweep_rounds: int = 3
    depths: tuple[int, ...] = (1, 2, 3, 4)
    batch_sizes: tuple[int, ...] = (64, 1024, 4096)
    widths: tuple[int, ...] = (2, 4, 8)
    torch_compile: bool = True


FULL = Plan()
QUICK = Plan(
    sizes=PAPER.lowest(2),
    steps=10,
    rounds=3,
    sweep_flops=1e10,
    sweep_rounds=1,
    depths=(1,),
    batch_sizes=(),
    widths=(),
    torch_compile=False,
)


class Contender(NamedTuple):
    """An implementation: the seconds to compile it, and a function that trains for an epoch."""

    compile_seconds: float
    epoch: Callable[[], Any]


def random_images(count: int, data_dim: int) -> np.ndarray:
    """Grey images of uniform noise, uint8: the time of a step does not depend on the images."""
    return np.random.default_rng(0).integers(0, 256, (count, data_dim), np.uint8)


def make_lvae_jax(sizes: Sizes, images: jax.Array, batch_size: int) -> Contender:
    """This project, compiled as a run compiles it."""
    model = LadderVAE(*sizes)
    optimizer = training.make_optimizer(learning_rate=1.0)
    key, beta, rate = jax.random.key(0), jnp.float32(1.0), jnp.float32(1e-3)
    state = training.init_state(model, optimizer, key)
    compile_seconds, compiled = seconds(
        lambda: training.train_epoch.lower(
            model, optimizer, binarise, state, images, key, beta, rate, batch_size=batch_size
        ).compile(compiler_options=compilation.compiler_options("loop"))
    )

    def epoch() -> Any:
        nonlocal state
        state, metrics = compiled(state, images, key, beta, rate)
        return metrics

    return Contender(compile_seconds, epoch)


def make_plain_jax(sizes: Sizes, images: jax.Array, batch_size: int) -> Contender:
    """The plain-JAX reference."""
    optimizer = optax.adam(1e-3)
    key, beta = jax.random.key(0), jnp.float32(1.0)
    params = jax.jit(lambda key: plain_jax.init(key, *sizes))(key)
    opt_state = optimizer.init(params)
    epoch_function: Any = plain_jax.make_epoch(optimizer, batch_size)
    compile_seconds, compiled = seconds(
        lambda: epoch_function.lower(params, opt_state, images, key, beta).compile()
    )

    def epoch() -> Any:
        nonlocal params, opt_state
        params, opt_state, metrics = compiled(params, opt_state, images, key, beta)
        return metrics

    return Contender(compile_seconds, epoch)


def make_pytorch(sizes: Sizes, images: np.ndarray, batch_size: int, compiled: bool) -> Contender:
    """PyTorch, eager or by `torch.compile`, which compiles in the first step."""
    pytorch: Any = optional.pytorch()
    epoch: Any = pytorch.make_epoch(sizes, images, batch_size, compiled)
    if not compiled:
        return Contender(0.0, epoch)
    first_seconds, _ = seconds(epoch)
    later_seconds, _ = seconds(epoch)
    return Contender(first_seconds - later_seconds, epoch)


def measure(plan: Plan) -> dict[str, Any]:
    """Times the plan's model, then models and batch sizes that differ from it in one respect."""
    notes = []
    if optional.pytorch() is None:
        notes.append(optional.NO_PYTORCH)
    else:
        found = verified_differences(plan.sizes, plan.batch_size)
        notes.append(f"PyTorch's model against lvae_jax's, relative differences: {found}")
    sizes, batch_size = plan.sizes, plan.batch_size
    contenders = make_contenders(sizes, batch_size, plan.steps)
    if optional.pytorch() is not None and plan.torch_compile:
        images = random_images(plan.steps * batch_size, sizes.data_dim)
        try:
            contenders["torch.compile"] = make_pytorch(sizes, images, batch_size, compiled=True)
        except Exception as error:  # of any kind, for example without a C++ compiler
            notes.append(f"torch.compile cannot run here: {first_line(error)}")
    times = step_times(contenders, sizes, batch_size, plan.steps, plan.rounds)
    rows: list[Row] = []
    for name, values in times.items():
        row: Row = {
            "": name,
            "step, ms": spread(values, 1e3),
            "lvae_jax / this": ratio(times["lvae_jax"], values),
        }
        if name in contenders:
            row["compile, s"] = contenders[name].compile_seconds
        rows.append(row)
    caption = (
        f"Training step within an epoch of {plan.steps} batches of {batch_size} images, "
        f"{plan.rounds} epochs of each in turn; median (min to max)."
    )
    return {"tables": {caption: rows, "One thing changed.": _sweeps(plan)}, "notes": notes}


def _sweeps(plan: Plan) -> list[Row]:
    """Times and ratios at other depths, batch sizes and widths."""
    variants = [
        *((f"depth {d}", plan.sizes.lowest(d), plan.batch_size) for d in plan.depths),
        *((f"batch {b}", plan.sizes, b) for b in plan.batch_sizes),
        *((f"width x{w}", plan.sizes.widened(w), plan.batch_size) for w in plan.widths),
    ]
    rows = []
    for name, sizes, batch_size in variants:
        steps = steps_for(plan.sweep_flops, sizes.step_flops(batch_size))
        contenders = make_contenders(sizes, batch_size, steps)
        times = step_times(contenders, sizes, batch_size, steps, plan.sweep_rounds)
        ours = times["lvae_jax"]
        row: Row = {"": name, "lvae_jax, ms": spread(ours, 1e3)}
        for other, values in times.items():
            if other != "lvae_jax":
                row[f"lvae_jax / {other}"] = ratio(ours, values)
        rows.append(row)
    return rows


def steps_for(flops: float, flops_per_step: float) -> int:
    """The number of steps with about so many operations: at least 2, at most 100."""
    return int(min(100, max(2, flops // flops_per_step)))


def make_contenders(sizes: Sizes, batch_size: int, steps: int) -> dict[str, Contender]:
    """lvae_jax, plain JAX and, if it is installed, eager PyTorch; epochs of `steps` steps."""
    images = random_images(steps * batch_size, sizes.data_dim)
    stored = jnp.asarray(images)
    contenders = {
        "lvae_jax": make_lvae_jax(sizes, stored, batch_size),
        "plain JAX": make_plain_jax(sizes, stored, batch_size),
    }
    if optional.pytorch() is not None:
        contenders["eager PyTorch"] = make_pytorch(sizes, images, batch_size, compiled=False)
    return contenders


def step_times(
    contenders: dict[str, Contender], sizes: Sizes, batch_size: int, steps: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds per step in each round, of the contenders and of the products alone."""
    epochs = {name: contender.epoch for name, contender in contenders.items()}
    floor = products.repeated(products.training_step(sizes, batch_size), steps)
    times = in_turn({**epochs, "products alone": floor}, rounds)
    return {name: [value / steps for value in values] for name, values in times.items()}


def verified_differences(sizes: Sizes, batch_size: int) -> dict[str, float]:
    """Checks that PyTorch's model computes the same as lvae_jax's, before either is timed.

    Raises:
      ValueError: the models differ.
    """
    pytorch: Any = optional.pytorch()
    model = LadderVAE(*sizes)
    key = jax.random.key(0)
    state = training.init_state(model, training.make_optimizer(learning_rate=1.0), key)
    images = jnp.asarray(random_images(4 * batch_size, sizes.data_dim))
    variables = evaluation.reestimate_batch_stats(
        model, state.params, binarise, images, key, batch_size=batch_size
    )
    x = np.asarray(binarise(key, images[:batch_size]))
    found: dict[str, float] = pytorch.differences(sizes, model, variables, x, key)
    pytorch.check(found)
    jax.clear_caches()  # so that the timed programs are compiled from scratch
    return found
