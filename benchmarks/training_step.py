"""A training step within an epoch: lvae_jax, plain JAX, PyTorch, and the bare matrix products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import optional, plain_jax, products
from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import in_turn, markdown, ratio, seconds, shown, spread
from lvae_jax import LadderVAE, compilation, evaluation, training
from lvae_jax.data import binarise


class Plan(NamedTuple):
    """What is measured, and how long."""

    sizes: Sizes = PAPER
    batch_size: int = 256
    steps: int = 39
    """Of a round, an epoch of so many batches: short, so that a machine's moods meet all alike."""
    rounds: int = 15
    sweep_flops: float = 5e10
    """Operations of an epoch in the sweeps: they decide how many steps it has."""
    sweep_rounds: int = 3
    depths: tuple[int, ...] = (1, 2, 3, 4)
    batch_sizes: tuple[int, ...] = (64, 1024, 4096)
    widths: tuple[int, ...] = (2, 4, 8)
    replicas: tuple[int, ...] = (1, 2, 4, 8, 16)
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
    replicas=(1, 2),
    torch_compile=False,
)


class Contender(NamedTuple):
    """One way to train: seconds to start, and a function that trains for an epoch."""

    init_seconds: float
    compile_seconds: float
    epoch: Callable[[], Any]


def random_images(count: int, data_dim: int) -> np.ndarray:
    """Grey images of uniform noise, uint8: the time of a step does not depend on what they show."""
    return np.random.default_rng(0).integers(0, 256, (count, data_dim), np.uint8)


def compile_training(train: Any, *arguments: Any, batch_size: int) -> Any:
    """`training.train_epoch` or `train_replicas` of these arguments, compiled as a run does it."""
    lowered = train.lower(*arguments, batch_size=batch_size)
    return lowered.compile(compiler_options=compilation.compiler_options("loop"))


def make_lvae_jax(sizes: Sizes, images: jax.Array, batch_size: int) -> Contender:
    """This project."""
    model = LadderVAE(*sizes)
    optimizer = training.make_optimizer(learning_rate=1.0)
    key, beta, rate = jax.random.key(0), jnp.float32(1.0), jnp.float32(1e-3)
    init_seconds, state = seconds(lambda: training.init_state(model, optimizer, key))
    compile_seconds, compiled = seconds(
        lambda: compile_training(
            training.train_epoch,
            *(model, optimizer, binarise, state, images, key, beta, rate),
            batch_size=batch_size,
        )
    )

    def epoch() -> Any:
        nonlocal state
        state, metrics = compiled(state, images, key, beta, rate)
        return metrics

    return Contender(init_seconds, compile_seconds, epoch)


def make_plain_jax(sizes: Sizes, images: jax.Array, batch_size: int) -> Contender:
    """The plain-JAX reference."""
    optimizer = optax.adam(1e-3)
    key, beta = jax.random.key(0), jnp.float32(1.0)
    init_seconds, params = seconds(lambda: jax.jit(lambda key: plain_jax.init(key, *sizes))(key))
    opt_state = optimizer.init(params)
    epoch_function: Any = plain_jax.make_epoch(optimizer, batch_size)
    compile_seconds, compiled = seconds(
        lambda: epoch_function.lower(params, opt_state, images, key, beta).compile()
    )

    def epoch() -> Any:
        nonlocal params, opt_state
        params, opt_state, metrics = compiled(params, opt_state, images, key, beta)
        return metrics

    return Contender(init_seconds, compile_seconds, epoch)


def make_pytorch(sizes: Sizes, images: np.ndarray, batch_size: int, compiled: bool) -> Contender:
    """PyTorch, eager or by `torch.compile`, which compiles in the first step."""
    pytorch: Any = optional.pytorch()
    init_seconds, _ = seconds(lambda: pytorch.initialise(sizes))
    epoch: Any = pytorch.make_epoch(sizes, images, batch_size, compiled)
    if not compiled:
        return Contender(init_seconds, 0.0, epoch)
    first_seconds, _ = seconds(epoch)
    later_seconds, _ = seconds(epoch)
    return Contender(init_seconds, first_seconds - later_seconds, epoch)


def measure(plan: Plan) -> dict[str, Any]:
    """Times the model of the plan, then models, batches and replicas that differ from it."""
    result: dict[str, Any] = {"batch_size": plan.batch_size, "notes": []}
    if optional.pytorch() is None:
        result["notes"].append(optional.NO_PYTORCH)
    else:
        result["differences"] = verified_differences(plan.sizes, plan.batch_size)
    result["paper"] = _compare(
        plan.sizes, plan.batch_size, plan.steps, plan.rounds, plan.torch_compile, result["notes"]
    )
    variants = [
        *(("depth", d, plan.sizes.lowest(d), plan.batch_size) for d in plan.depths),
        *(("batch", b, plan.sizes, b) for b in plan.batch_sizes),
        *(("width", w, plan.sizes.widened(w), plan.batch_size) for w in plan.widths),
    ]
    result["sweeps"] = []
    for name, value, sizes, batch_size in variants:
        steps = steps_for(plan.sweep_flops, sizes.step_flops(batch_size))
        timed = _compare(sizes, batch_size, steps, plan.sweep_rounds, False, [])
        result["sweeps"].append({"what": name, "value": value, **timed})
    result["replicas"] = _replicas(plan)
    return result


def steps_for(flops: float, flops_of_one: float) -> int:
    """How many steps of a size make up about so many operations: at least 2, at most 100."""
    return int(min(100, max(2, flops // flops_of_one)))


def verified_differences(sizes: Sizes, batch_size: int) -> dict[str, float]:
    """Shows that PyTorch's model computes what lvae_jax's does, before either is timed.

    Raises:
      ValueError: it does not.
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
    jax.clear_caches()  # what is timed after this is to start as if nothing had been compiled
    return found


def _compare(
    sizes: Sizes, batch_size: int, steps: int, rounds: int, torch_compile: bool, notes: list[str]
) -> dict[str, Any]:
    """Seconds of a step, and ratios round by round."""
    images = random_images(steps * batch_size, sizes.data_dim)
    stored = jnp.asarray(images)
    contenders = {
        "lvae_jax": make_lvae_jax(sizes, stored, batch_size),
        "plain_jax": make_plain_jax(sizes, stored, batch_size),
    }
    if optional.pytorch() is not None:
        contenders["pytorch"] = make_pytorch(sizes, images, batch_size, compiled=False)
        if torch_compile:
            try:
                compiled = make_pytorch(sizes, images, batch_size, compiled=True)
                contenders["torch_compile"] = compiled
            except Exception as error:  # the compiler's own, of any kind: none at hand, say
                notes.append(f"torch.compile cannot run here: {str(error).splitlines()[0]}")
    epochs = {name: contender.epoch for name, contender in contenders.items()}
    floor = products.repeated(products.training_step(sizes, batch_size), steps)
    times = {
        name: [value / steps for value in values]
        for name, values in in_turn({**epochs, "products": floor}, rounds).items()
    }
    ours = times["lvae_jax"]
    ratios = {"products_over_lvae_jax": ratio(times["products"], ours)}
    for name in list(times)[1:-1]:
        ratios[f"lvae_jax_over_{name}"] = ratio(ours, times[name])
    return {
        "steps": steps,
        "rounds": rounds,
        "init_seconds": {name: c.init_seconds for name, c in contenders.items()},
        "compile_seconds": {name: c.compile_seconds for name, c in contenders.items()},
        "step_seconds": {name: spread(values) for name, values in times.items()},
        "floor_gflop_per_second": spread(
            [sizes.step_flops(batch_size) / value / 1e9 for value in times["products"]]
        ),
        "ratios": ratios,
    }


def make_replicas(
    sizes: Sizes, images: jax.Array, batch_size: int, count: int
) -> Callable[[], Any]:
    """A function that trains `count` replicas for an epoch, in one program."""
    model, optimizer = LadderVAE(*sizes), training.make_optimizer(learning_rate=1.0)
    keys = jax.vmap(jax.random.key)(jnp.arange(count))
    state = training.init_state(model, optimizer, keys)
    beta, rate = jnp.ones(count, jnp.float32), jnp.full(count, 1e-3, jnp.float32)
    compiled = compile_training(
        training.train_replicas,
        *(model, optimizer, binarise, state, images, keys, beta, rate),
        batch_size=batch_size,
    )

    def epoch() -> Any:
        nonlocal state
        state, metrics = compiled(state, images, keys, beta, rate)
        return metrics

    return epoch


def _replicas(plan: Plan) -> list[dict[str, Any]]:
    """Seconds of a step of S replicas in one program, against S times that of one alone."""
    floor = products.training_step(plan.sizes, plan.batch_size)
    rows = []
    for count in plan.replicas:
        flops = count * plan.sizes.step_flops(plan.batch_size)
        steps = steps_for(plan.sweep_flops, flops)
        images = jnp.asarray(random_images(steps * plan.batch_size, plan.sizes.data_dim))
        epoch = make_replicas(plan.sizes, images, plan.batch_size, count)
        single = make_lvae_jax(plan.sizes, images, plan.batch_size)
        times = in_turn(
            {
                "replicas": epoch,
                "single": single.epoch,
                "products": products.repeated(floor, steps),
            },
            plan.sweep_rounds,
        )
        many, one, bare = (
            [v / steps for v in times[name]] for name in ("replicas", "single", "products")
        )
        rows.append(
            {
                "replicas": count,
                "steps": steps,
                "rounds": plan.sweep_rounds,
                "step_seconds": spread(many),
                "over_one": ratio(many, one),
                "over_one_a_replica": ratio(many, [count * v for v in one]),
                "products_over_replicas": ratio([count * v for v in bare], many),
            }
        )
    return rows


MNIST_STEPS = 234

NAMES = {
    "lvae_jax": "lvae_jax",
    "plain_jax": "plain JAX",
    "pytorch": "PyTorch, eager",
    "torch_compile": "PyTorch, torch.compile",
    "products": "matrix products alone",
}


def table(result: dict[str, Any]) -> str:
    """The result for a person, in Markdown."""
    paper = result["paper"]
    lines = [
        f"Training step within an epoch of {paper['steps']} batches of {result['batch_size']} "
        f"images, {paper['rounds']} epochs of each in turn; median (min to max). The epoch is "
        f"{MNIST_STEPS} such steps, MNIST's at batch 256.",
        "",
    ]
    rows = []
    for name, step in paper["step_seconds"].items():
        ours = "1" if name == "lvae_jax" else ""
        over = paper["ratios"].get(f"lvae_jax_over_{name}")
        if name == "products":
            ours = f"the floor: {shown(paper['ratios']['products_over_lvae_jax'])} of lvae_jax's"
        rows.append(
            [
                NAMES[name],
                shown(step, 1, 1e3),
                f"{step['median'] * MNIST_STEPS:.2f}",
                shown(over) if over else ours,
                *(
                    f"{paper[kind][name]:.1f}" if name in paper[kind] else ""
                    for kind in ("init_seconds", "compile_seconds")
                ),
            ]
        )
    header = ["", "step, ms", "epoch, s", "lvae_jax / this", "init, s", "compile, s"]
    lines += [markdown(header, rows)]
    if result["sweeps"]:
        header = [
            "",
            "lvae_jax, ms",
            "products, ms",
            "products / lvae_jax",
            "lvae_jax / plain JAX",
            "lvae_jax / PyTorch eager",
            "compile, s",
        ]
        rows = []
        for sweep in result["sweeps"]:
            step, ratios = sweep["step_seconds"], sweep["ratios"]
            eager = ratios.get("lvae_jax_over_pytorch")
            rows.append(
                [
                    f"{sweep['what']} {'x' if sweep['what'] == 'width' else ''}{sweep['value']}",
                    shown(step["lvae_jax"], 1, 1e3),
                    shown(step["products"], 1, 1e3),
                    shown(ratios["products_over_lvae_jax"]),
                    shown(ratios["lvae_jax_over_plain_jax"]),
                    shown(eager) if eager else "",
                    f"{sweep['compile_seconds']['lvae_jax']:.1f}",
                ]
            )
        lines += ["", markdown(header, rows)]
    if result["replicas"]:
        header = [
            "replicas",
            "step of all, ms",
            "/ one alone",
            "/ (S x one alone)",
            "S x products / step",
        ]
        rows = [
            [
                str(row["replicas"]),
                shown(row["step_seconds"], 1, 1e3),
                shown(row["over_one"]),
                shown(row["over_one_a_replica"]),
                shown(row["products_over_replicas"]),
            ]
            for row in result["replicas"]
        ]
        lines += ["", markdown(header, rows)]
    if "differences" in result:
        found = ", ".join(f"{k} {v:.1e}" for k, v in result["differences"].items())
        lines += ["", f"PyTorch's model against lvae_jax's, relative differences: {found}."]
    return "\n".join([*lines, "", *(f"Note: {note}." for note in result["notes"])]).rstrip()
