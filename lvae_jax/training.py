"""Training: the state, one step, and an epoch as one compiled program over data on the devices.

Keys are derived, never stored: a draw of step s is a function of the root key, a name and s alone,
so that any step can be recomputed and a resumed run equals an uninterrupted one.

Replicas are runs that differ in their key, beta and scale of updates: `train_replicas` vmaps
`train_epoch` over them. Devices are a mesh with the axes of `MESH_AXES`; within `jax.set_mesh` the
examples of a batch are split over its data axis, and the batch's means, batch-norm statistics and
gradients are those of the whole batch.
"""

import functools
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt32

from lvae_jax.averaging import average_parameters, averaged
from lvae_jax.checks import check_rows
from lvae_jax.flat import (
    Flattenable,
    Stacked,
    all_finite,
    flattened,
    join,
    stacked,
    stacked_state,
    to_arrays,
    to_vectors,
    unstacked,
)
from lvae_jax.keys import named_key, typed_key
from lvae_jax.mesh import MESH_AXES, auto_axes, split_examples, vary_alike, whole
from lvae_jax.models import Model
from lvae_jax.objective import ELBO, Metrics, Objective, loss_and_gradients

Preprocess = Callable[[Key[Array, ""], Array], Float[Array, "batch data_dim"]]
"""Images as stored to x: binarisation or dequantisation with the key given, flattening."""


_STEP = ("model", "optimizer", "objective")
_EPOCH = (*_STEP, "preprocess", "batch_size", "steps")


class TrainState(NamedTuple):
    """All that changes from step to step: enough to resume training exactly."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]
    """Steps taken."""

    nonfinite: Int[Array, ""]
    """The number of steps without an update, because the loss or a gradient was not finite."""

    epoch_sums: Metrics
    """Sums over the updates of the current epoch."""

    epoch_updates: Int[Array, ""]
    """Updates made in the current epoch."""

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate: their moving average, if the optimiser keeps one."""
        average = averaged(self.opt_state)
        return self.params if average is None else average


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    max_gradient_norm: float | None = None,
    max_gradient: float | None = None,
    adam_epsilon: float = 1e-8,
    ema_decay: float = 0.0,
) -> Flattenable:
    """Adam, preceded by limits on the gradients if they are given.

    Equal arguments return the same object, so that programs are not compiled again.

    Args:
      learning_rate: Adam's learning rate. If it changes from epoch to epoch, give 1 here, and the
        epoch's rate as `update_scale` of `train_epoch`.
      max_gradient_norm: gradients of a larger total norm are scaled down to it (the authors: 4).
      max_gradient: gradients are then clipped elementwise to plus or minus this (the authors: 0.9).
      adam_epsilon: Adam's epsilon (the authors: 1e-4).
      ema_decay: decay of a moving average of the parameters, see `averaging.average_parameters`; 0
        for none.

    Returns:
      A transformation whose updates are added to the parameters.

    Raises:
      ValueError: a limit is not positive, or `ema_decay` is not in [0, 1).

    Example:
      >>> optimizer = make_optimizer(learning_rate=0.1)
      >>> params = jnp.ones(2)
      >>> updates, _ = optimizer.update(jnp.float32([5.0, -0.2]), optimizer.init(params), params)
      >>> [round(float(u), 3) for u in updates]  # Adam's first step follows the gradient's signs
      [-0.1, 0.1]
    """
    limits = {"max_gradient_norm": max_gradient_norm, "max_gradient": max_gradient}
    for name, limit in limits.items():
        if limit is not None and not limit > 0:
            raise ValueError(f"{name}={limit}; give a positive number, or None for no limit")
    if not callable(learning_rate):
        learning_rate = float(learning_rate)  # an array cannot be hashed
    return _make_optimizer(learning_rate, max_gradient_norm, max_gradient, adam_epsilon, ema_decay)


@functools.cache
def _make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    max_gradient_norm: float | None,
    max_gradient: float | None,
    adam_epsilon: float,
    ema_decay: float,
) -> Flattenable:
    chain = optax.chain(
        optax.identity()
        if max_gradient_norm is None
        else optax.clip_by_global_norm(max_gradient_norm),
        optax.identity() if max_gradient is None else optax.clip(max_gradient),
        optax.scale_by_adam(eps=adam_epsilon),
        optax.scale_by_learning_rate(learning_rate),
        *((average_parameters(ema_decay),) if ema_decay else ()),
    )
    return Flattenable(*chain)


@functools.partial(jax.jit, static_argnums=(0, 1))
def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: Key[Array, "*replicas"] | UInt32[Array, "*replicas words"],
) -> TrainState:
    """Fresh parameters and optimiser state.

    Args:
      model: a model.
      optimizer: any of optax.
      key: the root key of the run; or [replicas], of several runs.

    Returns:
      The state before the first step. With several keys every leaf has a leading axis of replicas,
      and each replica equals the state of its own key.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model, images = LadderVAE(4, (2,), (3,)), jnp.eye(4)
      >>> state = init_state(model, make_optimizer(), jax.random.key(0))
      >>> int(state.step), sorted(state.params)
      (0, ['generative', 'inference'])
    """
    key = typed_key(key)
    if key.ndim:
        return jax.vmap(functools.partial(init_state, model, optimizer))(key)
    keys = {"params": named_key(key, "params"), "sample": named_key(key, "init")}
    params = model.init(keys, jnp.zeros((1, model.data_dim), jnp.float32))["params"]
    return fresh_state(params, optimizer, model.depth)


def fresh_state(params: Any, optimizer: optax.GradientTransformation, depth: int) -> TrainState:
    """The state before the first step, with given parameters.

    Args:
      params: the model's parameters.
      optimizer: any of optax.
      depth: L, the model's number of layers.

    Returns:
      A state; it holds the given parameters, not copies: copy them if you need them after
      `train_epoch`.
    """
    # Every array is separate, so that all of them can be donated.
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        nonfinite=jnp.zeros((), jnp.int32),
        epoch_sums=Metrics(
            train_elbo=jnp.zeros((), jnp.float32),
            log_px=jnp.zeros((), jnp.float32),
            kl_per_layer=jnp.zeros((depth,), jnp.float32),
        ),
        epoch_updates=jnp.zeros((), jnp.int32),
    )


# Compiled into the step; on its own account it is traced once for both ways of `_take_steps`.
_loss_and_gradients = jax.jit(loss_and_gradients, static_argnames=("model", "objective"))


@functools.partial(jax.jit, static_argnames=_STEP)
def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    x: Shaped[Array, "batch data_dim"],
    key: Key[Array, ""] | UInt32[Array, " words"],
    beta: float | Float[Array, ""] = 1.0,
    update_scale: float | Float[Array, ""] = 1.0,
    objective: Objective = ELBO,
    condition: Float[Array, "batch features"] | None = None,
    may_update: bool | Bool[Array, ""] = True,
) -> tuple[TrainState, Metrics]:
    """One step of gradient ascent on the objective, equation (20) or (6).

    If the loss or a gradient is not finite no update is made: the step counts as `nonfinite`.

    Args:
      model: a model.
      optimizer: any of optax; its updates are added to the parameters.
      state: before the step.
      x: the batch.
      key: for the samples of z.
      beta: weight of the KL terms.
      update_scale: a factor on the updates; it may change from step to step without another
        compilation.
      objective: the objective.
      condition: of each example, for a model that takes one.
      may_update: False makes no update, as if the loss were not finite.

    Returns:
      The state after the step, and the batch's metrics.

    Raises:
      ValueError: x holds no examples.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model, images = LadderVAE(4, (2,), (3,)), jnp.eye(4)
      >>> optimizer = optax.adamw(1e-3)
      >>> state = init_state(model, optimizer, jax.random.key(0))
      >>> state, metrics = train_step(model, optimizer, state, images, jax.random.key(1))
      >>> int(state.step), metrics.kl_per_layer.shape
      (1, (1,))
    """
    state = vary_alike(state, x, key, beta, update_scale, condition)
    value, metrics, gradients = _loss_and_gradients(
        model, unstacked(state.params), x, key, beta, objective, condition
    )
    if isinstance(state.params, Stacked):
        gradients = stacked(gradients)

    # Always float32, so that the state keeps its dtypes; parameters keep theirs as in optax.
    scale = jnp.asarray(update_scale, jnp.float32)

    @jax.jit  # traced once for both ways of `_choose`
    def updated(state: TrainState) -> TrainState:
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            gradients, state.opt_state, state.params, update_scale=scale
        )
        return state._replace(
            params=jax.tree.map(
                lambda p, u: (p + scale * u).astype(p.dtype), state.params, updates
            ),
            opt_state=opt_state,
            epoch_sums=jax.tree.map(
                lambda total, m: total + m.astype(total.dtype), state.epoch_sums, metrics
            ),
            epoch_updates=state.epoch_updates + 1,
        )

    def skipped(state: TrainState) -> TrainState:
        return state._replace(nonfinite=state.nonfinite + 1)

    finite = all_finite((jnp.where(may_update, value, jnp.nan), gradients))
    state = _choose(finite, updated, skipped, state)
    return state._replace(step=state.step + 1), metrics


def _choose(
    condition: Bool[Array, ""],
    if_true: Callable[[TrainState], TrainState],
    if_false: Callable[[TrainState], TrainState],
    state: TrainState,
) -> TrainState:
    """On a CPU `jax.lax.cond`, with which the state is updated in place, without copies.

    On other devices both branches are computed and one is selected, because a GPU would have to
    wait for its host to branch.
    """

    def branch(condition: Bool[Array, ""], state: TrainState) -> TrainState:
        return jax.lax.cond(condition, if_true, if_false, state)

    def select(condition: Bool[Array, ""], state: TrainState) -> TrainState:
        new, old = if_true(state), if_false(state)
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)

    # Chosen when the program is lowered, by its target device.
    chosen = jax.lax.platform_dependent(condition, state, cpu=branch, default=select)
    return cast(TrainState, chosen)


def _take_steps(
    step: Callable[..., tuple[TrainState, None]],
    optimizer: optax.GradientTransformation,
    state: TrainState,
    rows: Int[Array, "steps batch"],
) -> TrainState:
    """`jax.lax.scan` of steps.

    A GPU carries all but the parameters in a few vectors, a TPU all in a few matrices.
    """

    def by_arrays(state: TrainState) -> TrainState:
        return jax.lax.scan(functools.partial(step, optimizer), state, rows)[0]

    if not isinstance(optimizer, Flattenable):
        return by_arrays(state)
    of_vectors = flattened(optimizer)

    def by_vectors(state: TrainState) -> TrainState:
        vectors = to_vectors(of_vectors, state.params, state.opt_state)
        joined, state_of = join(state._replace(params=None, opt_state=vectors))

        def joined_step(carry: Any, rows: Array) -> tuple[Any, None]:
            params, joined = carry
            state, _ = step(of_vectors, state_of(joined)._replace(params=params), rows)
            return (state.params, join(state._replace(params=None))[0]), None

        (params, joined), _ = jax.lax.scan(joined_step, (state.params, joined), rows)
        opt_state = to_arrays(params, state_of(joined).opt_state)
        return state_of(joined)._replace(params=params, opt_state=opt_state)

    def by_matrices(state: TrainState) -> TrainState:
        params, opt_state = stacked_state(optimizer, state.params, state.opt_state)
        joined, state_of = join(state._replace(params=params, opt_state=opt_state))

        def joined_step(joined: Any, rows: Array) -> tuple[Any, None]:
            return join(step(optimizer, state_of(joined), rows)[0])[0], None

        joined, _ = jax.lax.scan(joined_step, joined, rows)
        return cast(TrainState, unstacked(state_of(joined)))

    chosen = jax.lax.platform_dependent(state, cpu=by_arrays, tpu=by_matrices, default=by_vectors)
    return cast(TrainState, chosen)


def epoch_batches(
    key: Key[Array, ""], step: int | Int[Array, ""], images: int, batch_size: int
) -> tuple[Int[Array, ""], Int[Array, "steps batch"]]:
    """The order of the images in the epoch of a step, without a last partial batch.

    Args:
      key: the root key of the run.
      step: any step of the epoch.
      images: the number of images.
      batch_size: examples per step.

    Returns:
      The step's position in its epoch, and the rows of every batch of the epoch.

    Raises:
      ValueError: there are fewer images than a batch holds.
    """
    steps = _steps_per_epoch(images, batch_size)
    position = jnp.asarray(step) % steps
    shuffle_key = named_key(key, "shuffle", step - position)
    order = jax.random.permutation(shuffle_key, jnp.arange(images, dtype=jnp.int32))
    return position, order[: steps * batch_size].reshape(steps, batch_size)


def _steps_per_epoch(images: int, batch_size: int) -> int:
    """The number of full batches."""
    if not isinstance(batch_size, Integral) or not 1 <= batch_size <= images:
        raise ValueError(
            f"batch_size={batch_size}, {images} images; give a whole number from 1 to {images}"
        )
    return images // batch_size


def step_inputs(
    preprocess: Preprocess, batch: Array, key: Key[Array, ""], step: int | Int[Array, ""]
) -> tuple[Float[Array, "batch data_dim"], Key[Array, ""]]:
    """x of a step and the key of its samples, both derived from the root key and the step."""
    return preprocess(named_key(key, "preprocess", step), batch), named_key(key, "sample", step)


@functools.partial(jax.jit, static_argnames=_EPOCH, donate_argnames=("state",))
def train_epoch(
    model: Model,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    state: TrainState,
    images: Array,
    key: Key[Array, ""] | UInt32[Array, " words"],
    beta: float | Float[Array, ""] = 1.0,
    update_scale: float | Float[Array, ""] = 1.0,
    max_nonfinite: int | Int[Array, ""] = 0,
    *,
    batch_size: int,
    steps: int | None = None,
    objective: Objective = ELBO,
    condition: Float[Array, "images features"] | None = None,
    batches: Int[Array, "epoch_steps batch"] | None = None,
) -> tuple[TrainState, Metrics]:
    """One pass over the training images in a new order, without a last partial batch: one program.

    It begins at the state's position in its epoch, and ends with the epoch, or after `steps`: an
    epoch in parts equals a whole one.

    Args:
      model: a model.
      optimizer: any of optax; its updates are added to the parameters.
      preprocess: makes x of a batch of images, with a new key at every step.
      state: before the epoch, or within it. Its buffers are donated: use the returned one.
      images: [n, ...], as stored; they stay on the device.
      key: the root key of the run.
      beta: weight of the KL terms in this epoch.
      update_scale: a factor on the optimiser's updates in this epoch.
      max_nonfinite: the total number of steps that may skip their update because the loss or a
        gradient was not finite. The state stops before the first step that exceeds it, and
        `nonfinite` is then one more.
      batch_size: examples per step, at most n.
      steps: the largest number of steps; None: those of an epoch. A program computes as many,
        whatever the state's position, but none after the end of the epoch changes the state.
      objective: the objective.
      condition: of each image, for a model that takes one.
      batches: those of the epoch by `epoch_batches`, which are computed if they are None. Given for
        all parts of an epoch, they are computed only once: a CPU sorts a million images in half a
        second.

    Returns:
      The state after the steps, and the means over the updates of the epoch so far (NaN if there
      are none).

    Raises:
      ValueError: batch_size is not between 1 and n, `steps` is not between 1 and the steps of an
        epoch, the condition has not one row per image, or the batches are not those of an epoch.
      TypeError: the key is none of JAX's.

    Example:
      >>> from lvae_jax import LadderVAE
      >>> model, images = LadderVAE(4, (2,), (3,)), jnp.eye(4)
      >>> def preprocess(key, images):
      ...     return images
      >>> optimizer = make_optimizer()
      >>> state = init_state(model, optimizer, jax.random.key(0))
      >>> state, metrics = train_epoch(
      ...     model, optimizer, preprocess, state, images, jax.random.key(0), batch_size=2
      ... )
      >>> int(state.step)
      2
    """
    key, max_nonfinite = typed_key(key), jnp.asarray(max_nonfinite, jnp.int32)
    check_rows(condition, images)
    images, condition = jax.tree.map(whole, (images, condition))
    state = vary_alike(state, images, key, beta, update_scale, max_nonfinite, condition)
    per_epoch = _steps_per_epoch(len(images), batch_size)
    if batches is None:
        batches = epoch_batches(key, state.step, len(images), batch_size)[1]
    if batches.shape != (per_epoch, batch_size):
        raise ValueError(
            f"batches of shape {batches.shape}; give epoch_batches', {per_epoch, batch_size}"
        )
    steps = per_epoch if steps is None else steps
    if not isinstance(steps, Integral) or not 1 <= steps <= per_epoch:
        raise ValueError(
            f"steps={steps}; an epoch has {per_epoch}, give a whole number from 1 to that"
        )
    position = state.step % per_epoch
    end = state.step - position + per_epoch
    rows = batches.at[position + jnp.arange(steps)].get(mode="clip", wrap_negative_indices=False)

    def step(
        optimizer: optax.GradientTransformation, state: TrainState, rows: Int[Array, " batch"]
    ) -> tuple[TrainState, None]:
        rows = split_examples(rows)

        def of_batch(array: Array) -> Array:
            return array.at[rows].get(mode="promise_in_bounds", wrap_negative_indices=False)

        x, sample_key = step_inputs(preprocess, of_batch(images), key, state.step)
        may_update = (state.nonfinite <= max_nonfinite) & (state.step < end)
        stepped, _ = train_step(
            model,
            optimizer,
            state,
            x,
            sample_key,
            beta,
            update_scale,
            objective,
            None if condition is None else of_batch(condition),
            may_update,
        )
        counts = may_update & (stepped.nonfinite <= max_nonfinite)
        return stepped._replace(
            step=jnp.where(counts, stepped.step, state.step),
            nonfinite=jnp.where(may_update, stepped.nonfinite, state.nonfinite),
        ), None

    def at_the_start(values: Any) -> Any:
        return jax.tree.map(lambda v: jnp.where(position == 0, jnp.zeros_like(v), v), values)

    state = state._replace(
        epoch_sums=at_the_start(state.epoch_sums), epoch_updates=at_the_start(state.epoch_updates)
    )
    state = _take_steps(step, optimizer, state, rows)
    updates = state.epoch_updates.astype(jnp.float32)
    return state, jax.tree.map(lambda total: total / updates, state.epoch_sums)


@functools.partial(jax.jit, static_argnames=_EPOCH, donate_argnames=("state",))
def train_replicas(
    model: Model,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    state: TrainState,
    images: Array,
    key: Key[Array, " replicas"] | UInt32[Array, "replicas words"],
    beta: Float[Array, " replicas"],
    update_scale: Float[Array, " replicas"],
    max_nonfinite: int | Int[Array, ""] = 0,
    *,
    batch_size: int,
    steps: int | None = None,
    objective: Objective = ELBO,
    condition: Float[Array, "images features"] | None = None,
    batches: Int[Array, "replicas epoch_steps batch"] | None = None,
) -> tuple[TrainState, Metrics]:
    """`train_epoch` of several replicas at once; each equals the single run of its key.

    Args:
      model: a model.
      optimizer: any of optax; its updates are added to the parameters.
      preprocess: makes x of a batch of images.
      state: every leaf with a leading axis of replicas; its buffers are donated.
      images: [n, ...], which all replicas share.
      key: a root key for every replica.
      beta: of every replica.
      update_scale: of every replica.
      max_nonfinite: see `train_epoch`.
      batch_size: see `train_epoch`.
      steps: see `train_epoch`.
      objective: see `train_epoch`.
      condition: see `train_epoch`; shared as the images are.
      batches: see `train_epoch`; of every replica.

    Returns:
      As `train_epoch`, with a leading axis of replicas; the metrics are on every device.

    Raises:
      ValueError: state, key, beta, update_scale and batches have not equally many replicas; or as
        `train_epoch`.
      TypeError: the keys are none of JAX's.
    """

    def replica(
        state: TrainState, key: Array, beta: Array, update_scale: Array, batches: Array | None
    ) -> tuple[TrainState, Metrics]:
        return train_epoch(
            model,
            optimizer,
            preprocess,
            state,
            images,
            key,
            beta,
            update_scale,
            max_nonfinite,
            batch_size=batch_size,
            steps=steps,
            objective=objective,
            condition=condition,
            batches=batches,
        )

    given = (state, typed_key(key), beta, update_scale, batches)
    counted = {"state": state.step, "key": given[1], "beta": beta, "update_scale": update_scale}
    counted |= {} if batches is None else {"batches": batches}
    counts = {name: jnp.shape(array)[:1] for name, array in counted.items()}
    if len(set(counts.values())) > 1 or () in counts.values():
        named = ", ".join(f"{name} {n[0] if n else 'none'}" for name, n in counts.items())
        raise ValueError(f"numbers of replicas: {named}; give equally many of each")
    split = auto_axes(*MESH_AXES)
    if len(key) == 1:  # XLA's products of batches of one matrix are slower than of the matrix
        results = replica(*jax.tree.map(lambda a: a[0], given))
        state, metrics = jax.tree.map(lambda a: a[None], results)
    else:
        axis = "replica" if "replica" in split else None
        state, metrics = jax.vmap(replica, spmd_axis_name=axis)(*given)
    if split:
        metrics = jax.lax.with_sharding_constraint(metrics, PartitionSpec())
    return state, metrics
