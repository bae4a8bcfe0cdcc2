"""Times the importance-sampled log-likelihood: samples x images per second, by chunk size.

Its memory depends on images x chunk and not on K; tests/test_evaluation.py checks that.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import optional, products
from benchmarks.sizes import PAPER, Sizes
from benchmarks.timing import Row, in_turn, ratio, spread
from benchmarks.training_step import random_images
from lvae_jax import LadderVAE, evaluation, training
from lvae_jax.data import binarise


class Plan(NamedTuple):
    """What is measured, and how long."""

    sizes: Sizes = PAPER
    images: int = 250
    num_samples: int = 400
    chunk_sizes: tuple[int, ...] = (1, 10, 40, 100)
    rounds: int = 5


FULL = Plan()
QUICK = Plan(sizes=PAPER.lowest(2), num_samples=40, chunk_sizes=(10,), rounds=3)


def initial_variables(sizes: Sizes) -> tuple[LadderVAE, Any]:
    """A model with initial parameters, and batch-norm statistics of noise."""
    model = LadderVAE(*sizes)
    key = jax.random.key(0)
    state = training.init_state(model, training.make_optimizer(), key)
    images = jnp.asarray(random_images(1024, sizes.data_dim))
    return model, evaluation.reestimate_batch_stats(
        model, state.params, binarise, images, key, batch_size=256
    )


def measure(plan: Plan) -> dict[str, Any]:
    """Times the likelihood of the plan's model at several chunk sizes."""
    model, variables = initial_variables(plan.sizes)
    key = jax.random.key(1)
    x = binarise(key, jnp.asarray(random_images(plan.images, plan.sizes.data_dim)))
    program = evaluation.log_likelihood_program()
    pytorch: Any = optional.pytorch()
    if pytorch is not None:
        torch_model = pytorch.Ladder(plan.sizes).to(pytorch.device()).eval()
        pytorch.load(torch_model, variables)
        torch_x = pytorch.torch.tensor(np.asarray(x), device=pytorch.device())
    rows: list[Row] = []
    for chunk_size in plan.chunk_sizes:
        floor = products.likelihood_chunk(plan.sizes, chunk_size * plan.images)

        def ours(chunk_size: int = chunk_size) -> Any:
            return program(model, variables, x, key, plan.num_samples, chunk_size)

        contenders = {
            "lvae_jax": ours,
            "products alone": products.repeated(floor, plan.num_samples // chunk_size),
        }
        if pytorch is not None:
            eager = pytorch.make_log_likelihood(torch_model, torch_x, plan.num_samples, chunk_size)
            check_estimates(np.asarray(ours().log_likelihood), eager())
            contenders["eager PyTorch"] = eager
        times = in_turn(contenders, plan.rounds)
        thousands = plan.num_samples * plan.images / 1e3
        row: Row = {"chunk": chunk_size}
        for name, values in times.items():
            row[name] = spread([thousands / value for value in values])
        for name, values in times.items():
            if name != "lvae_jax":
                row[f"lvae_jax / {name}"] = ratio(values, times["lvae_jax"])
        rows.append(row)
    caption = (
        f"Log-likelihood of {plan.images} images, K = {plan.num_samples}, in thousands of "
        f"samples x images per second; {plan.rounds} rounds in turn, median (min to max). "
        "The products are those of the top-down pass and the decoder."
    )
    notes = [] if pytorch is not None else [optional.NO_PYTORCH]
    return {"tables": {caption: rows}, "notes": notes}


def check_estimates(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Checks that two independent estimates of the same images' log-likelihood are close.

    Raises:
      ValueError: their means differ by more than 1%.
    """
    if not abs(ours.mean() - theirs.mean()) <= 0.01 * abs(ours.mean()):
        raise ValueError(
            f"PyTorch's mean log-likelihood is {theirs.mean():.2f} and lvae_jax's "
            f"{ours.mean():.2f} nats; expected them within 1%"
        )
