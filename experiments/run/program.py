"""The training program: several steps of an epoch, for all replicas, in one compiled call."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.run import devices, memory
from experiments.run.setup import (
    Experiment,
    at_precision,
    new_state,
    objective_of,
    shape_of,
    state_like,
    state_shapes,
)
from experiments.settings import Settings
from lvae_jax import compilation, schedules, training
from lvae_jax.models import HierarchicalVAE
from lvae_jax.objective import Objective
from lvae_jax.training import Metrics, Preprocess, TrainState

CALL_FLOP = {"cpu": 1e11, "default": 5e12}
"""Operations per call of the training program, about a second's work. After every call the run
checks for signals and due checkpoints. A longer epoch is split into parts."""


class TrainingProgram(NamedTuple):
    """See `training_program`."""

    batches: Callable[[TrainState], jax.Array]
    """[replicas, steps, batch]: the rows of every batch of the epoch in which a state is."""
    take_steps: Callable[[TrainState, jax.Array, int], tuple[TrainState, Metrics]]
    """A function of a state, which is donated, the batches of its epoch, and the epoch. Returns the
    state after `steps` more steps, or at the end of the epoch, and the epoch's metrics so far."""
    steps: int
    """Steps per call. The last call of an epoch may take fewer."""
    memory: int
    """Bytes that it needs on a device in addition to its arguments."""


def scheduled(settings: Settings, epoch: int) -> tuple[list[float], list[float]]:
    """beta and the learning rate of an epoch, per replica."""
    beta = [
        beta * float(schedules.warm_up(epoch, warmup_epochs))
        for beta, warmup_epochs in zip(
            settings.by_replica("beta"), settings.by_replica("warmup_epochs"), strict=True
        )
    ]
    learning_rate = [
        float(schedules.learning_rate(settings.schedule, initial, epoch, settings.epochs))
        for initial in settings.by_replica("learning_rate")
    ]
    return beta, learning_rate


def unfinished_warm_up(settings: Settings) -> str:
    """What to say if no epoch trains with the full weight of the KL terms; otherwise nothing."""
    warmup_epochs = max(settings.by_replica("warmup_epochs"))
    weight = float(schedules.warm_up(settings.epochs - 1, warmup_epochs))
    if weight == 1:
        return ""
    return (
        f"--epochs={settings.epochs} --warmup_epochs={warmup_epochs}: the weight of the KL terms "
        f"ends at {weight:g} of --beta; for the ELBO give fewer epochs of warm-up"
    )


def most_nonfinite(settings: Settings) -> int:
    """How many updates may be skipped because the loss or a gradient is not finite."""
    return settings.max_nonfinite if settings.on_nonfinite == "skip" else 0


def compile_and_initialise(experiment: Experiment) -> tuple[TrainingProgram, TrainState]:
    """The training program and the initial state, compiled in parallel.

    Raises:
      SettingsError: the program needs more memory than is available.
    """
    state_like(experiment)  # trace once here for both threads
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(training_program, experiment)
        state = jax.block_until_ready(new_state(experiment))
        program = compiling.result()
    memory.check_program(program.memory, devices.available_memory(experiment.mesh))
    return program, state


def training_program(experiment: Experiment) -> TrainingProgram:
    """Compiles the program that takes several steps of an epoch.

    Returns:
      The program. It is compiled ahead of time, so arguments of other shapes are an error.
    """
    settings, mesh = experiment.settings, experiment.mesh
    batches, program, steps = _training_program(
        experiment.model,
        experiment.optimizer,
        experiment.preprocess,
        shape_of(experiment.train_images),
        shape_of(experiment.keys),
        mesh,
        settings.matmul_precision,
        batch_size=settings.batch_size,
        objective=objective_of(settings),
    )

    def take_steps(state: TrainState, batches: jax.Array, epoch: int) -> tuple[TrainState, Metrics]:
        numbers = tuple(np.asarray(values, np.float32) for values in scheduled(settings, epoch))
        beta, learning_rate = devices.put(numbers, mesh, "replica")
        most = np.int32(most_nonfinite(settings))
        return jax.block_until_ready(
            program(
                state,
                experiment.train_images,
                experiment.keys,
                beta,
                learning_rate,
                most,
                batches=batches,
            )
        )

    compiled = isinstance(program, jax.stages.Compiled)  # not under JAX_DISABLE_JIT
    needed = memory.size_of_program(program) if compiled else 0
    return TrainingProgram(
        lambda state: batches(experiment.keys, state.step)[1], take_steps, steps, needed
    )


@functools.lru_cache(maxsize=8)
def _training_program(
    model: HierarchicalVAE,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    images: jax.ShapeDtypeStruct,
    keys: jax.ShapeDtypeStruct,
    mesh: Mesh,
    matmul_precision: str,
    *,
    batch_size: int,
    objective: Objective,
) -> tuple[Any, Any, int]:
    like = state_shapes(model, optimizer, keys)
    weights = sum(leaf.size for leaf in jax.tree.leaves(like.params))
    multiplications = weights * batch_size * objective.num_samples / mesh.size
    per_epoch = images.shape[0] // batch_size
    steps = steps_per_call(per_epoch, multiplications)

    shuffle = jax.vmap(
        functools.partial(training.epoch_batches, images=images.shape[0], batch_size=batch_size)
    )
    train = functools.partial(
        training.train_replicas,
        model,
        optimizer,
        preprocess,
        batch_size=batch_size,
        steps=steps,
        objective=objective,
    )
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return shuffle, train, steps
    # Set the contexts here: they belong to a thread, and this may not be the run's.
    with jax.set_mesh(mesh), at_precision(matmul_precision):
        batches = jax.jit(shuffle, out_shardings=keys.sharding)
        options = compilation.compiler_options("loop")
        jitted = jax.jit(train, donate_argnums=0, compiler_options=options)
        scalar = jax.ShapeDtypeStruct(keys.shape, np.float32, sharding=keys.sharding)
        rows = jax.ShapeDtypeStruct(
            (*keys.shape, per_epoch, batch_size), np.int32, sharding=keys.sharding
        )
        lowered = jitted.lower(like, images, keys, scalar, scalar, np.int32(0), batches=rows)
        return batches, lowered.compile(), steps


def steps_per_call(steps_per_epoch: int, multiplications: float) -> int:
    """Steps per call of the training program.

    Args:
      steps_per_epoch: the steps of an epoch.
      multiplications: of weights by activations, in a step's forward pass on one device.

    Returns:
      The most that `CALL_FLOP` allows, at least 1, or up to half as many if the last call of an
      epoch then has fewer steps to skip.
    """
    # A multiplication and an addition each, once forward and twice backward.
    call_flop = CALL_FLOP.get(jax.default_backend(), CALL_FLOP["default"])
    most = max(1, int(call_flop / (6 * multiplications)))
    most = min(most, steps_per_epoch)
    return min(range(most, most // 2, -1), key=lambda steps: -steps_per_epoch % steps)
