"""An experiment: its settings, its model, its data on the devices, and how it is evaluated."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.errors import SettingsError
from experiments.progress import Progress
from experiments.results import ReplicaResults
from experiments.run import devices, memory
from experiments.settings import Settings
from lvae_jax import VAE, LadderVAE, compilation, evaluation, training
from lvae_jax.data import Dataset, as_stored
from lvae_jax.data.validation import hold_out
from lvae_jax.models import HierarchicalVAE
from lvae_jax.objective import Objective
from lvae_jax.training import MESH_AXES, Metrics, Preprocess, TrainState, named_key

EVAL_BATCH_SIZE = 250
"""Images at a time in evaluation; no result depends on it."""

PRNG = {"threefry": "threefry2x32", "rbg": "rbg"}
"""What JAX calls them."""

MATMUL_PRECISION = {"float32": "float32", "tf32": "tensorfloat32", "bf16": "BF16_BF16_F32"}
"""What JAX calls them; bf16 products are added up in float32."""

CALL_FLOP = {"cpu": 1e11, "gpu": 5e12, "tpu": 5e12}
"""Arithmetic of one call of the training program, about: a second of it, after which it is looked
whether the run shall end or be saved. An epoch that is longer is taken in equal parts."""


class Experiment(NamedTuple):
    """What stays the same over a run: its settings, its model, and its data on the devices."""

    settings: Settings
    dataset: Dataset
    """Without the training images that are held out."""
    model: HierarchicalVAE
    optimizer: optax.GradientTransformation
    mesh: Mesh
    keys: jax.Array
    """A root key for every replica; every draw of training is derived from it."""
    preprocess: Preprocess
    train_images: jax.Array
    test_x: np.ndarray
    validation_x: np.ndarray | None
    """Of training images held out, where some are."""

    def key(self, replica: int, name: str, step: int = 0) -> jax.Array:
        """A key for what is no training of a replica.

        Always of threefry: evaluation draws for every image by itself, and what rbg draws for one
        key depends on the keys beside it.
        """
        return named_key(
            jax.random.key(self.settings.seed + replica, impl=PRNG["threefry"]), name, step
        )


class TrainingProgram(NamedTuple):
    """See `training_program`."""

    call: Callable[[TrainState, Any, Any, int], tuple[TrainState, Metrics]]
    """Of the state, which is donated, beta and the learning rate of every replica, and how many
    updates may be skipped: the state some steps on, and the epoch's metrics so far."""
    steps: int
    """How many steps a call takes."""


def make_experiment(settings: Settings, dataset: Dataset) -> Experiment:
    """The model and the data of a run, the training data on the devices from here on.

    Raises:
      SettingsError: settings that do not fit the data set, the devices or their memory.
      DataError: more images are to be held out than there are.
    """
    validation = None
    if settings.validation:
        dataset, validation = hold_out(dataset, settings.validation)
    if settings.batch_size > len(dataset.train_images):
        raise SettingsError(
            f"--batch_size={settings.batch_size}: {dataset.name} has {len(dataset.train_images)} "
            "training images; give at most that"
        )
    mesh = devices.make_mesh(settings.replicas, settings.batch_size)
    model = make_model(settings, dataset.data_dim, dataset.observation)
    optimizer = training.make_optimizer(
        learning_rate=1.0,  # an epoch's learning rate is the scale of its updates
        max_gradient_norm=settings.max_gradient_norm or None,
        max_gradient=settings.max_gradient or None,
        adam_epsilon=settings.adam_epsilon,
    )
    like = _state_like(model, optimizer, _keys_like(settings, mesh))
    memory.check_arrays(
        like.params,
        like.opt_state,
        dataset.train_images.nbytes + np.float32().nbytes * dataset.test_images.size,
        memory.available(mesh.local_devices[0]),
    )
    keys = [training_key(settings, replica) for replica in range(settings.replicas)]
    return Experiment(
        settings=settings,
        dataset=dataset,
        model=model,
        optimizer=optimizer,
        mesh=mesh,
        keys=devices.put(jnp.stack(keys), mesh, "replica"),
        preprocess=dataset.preprocess,
        train_images=devices.put(dataset.train_images, mesh),
        test_x=dataset.test_x(),
        validation_x=None if validation is None else validation.test_x(),
    )


def _keys_like(settings: Settings, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """What the root keys of all replicas are, without making them."""
    key = jax.eval_shape(lambda: training_key(settings, 0))
    sharding = NamedSharding(mesh, PartitionSpec("replica"))
    return jax.ShapeDtypeStruct((settings.replicas,), key.dtype, sharding=sharding)


def training_key(settings: Settings, replica: int) -> jax.Array:
    """The root key of a replica, from which every draw of its training is derived."""
    return jax.random.key(settings.seed + replica, impl=PRNG[settings.prng])


def steps_per_epoch(experiment: Experiment) -> int:
    """Full batches in the training set."""
    return len(experiment.train_images) // experiment.settings.batch_size


def new_state(experiment: Experiment) -> TrainState:
    """The state before the first step, of every replica, on the devices."""
    init = functools.partial(training.init_state, experiment.model, experiment.optimizer)
    compiled = jax.jit(
        init,
        out_shardings=experiment.keys.sharding,
        compiler_options=compilation.compiler_options("once"),
    )
    return compiled(experiment.keys)


def state_like(experiment: Experiment) -> TrainState:
    """Shapes, dtypes and shardings of a state."""
    return _state_like(experiment.model, experiment.optimizer, _like(experiment.keys))


@functools.cache
def _state_like(
    model: HierarchicalVAE, optimizer: optax.GradientTransformation, keys: jax.ShapeDtypeStruct
) -> TrainState:
    init = functools.partial(training.init_state, model, optimizer)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=keys.sharding),
        jax.eval_shape(init, keys),
    )


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def objective_of(settings: Settings) -> Objective:
    """What a training step climbs."""
    return Objective(
        mc_samples=settings.mc_samples,
        importance_samples=settings.iw_samples,
        gradient=settings.gradient,
        free_bits=settings.free_bits,
    )


def training_program(experiment: Experiment) -> TrainingProgram:
    """The compiled program that takes some steps of an epoch.

    Returns:
      A function of what changes from call to call. It is compiled for good: what would need another
      program is an error.

    Raises:
      SettingsError: it needs more memory than there is.
    """
    settings = experiment.settings
    program, steps = _training_program(
        experiment.model,
        experiment.optimizer,
        experiment.preprocess,
        _like(experiment.train_images),
        _like(experiment.keys),
        experiment.mesh,
        settings.matmul_precision,
        batch_size=settings.batch_size,
        objective=objective_of(settings),
    )

    memory.check_program(program, memory.available(experiment.mesh.local_devices[0]))

    def call(
        state: TrainState, beta: Any, learning_rate: Any, max_nonfinite: int
    ) -> tuple[TrainState, Metrics]:
        return program(
            state,
            experiment.train_images,
            experiment.keys,
            *devices.put((np.float32(beta), np.float32(learning_rate)), experiment.mesh, "replica"),
            np.int32(max_nonfinite),
        )

    return TrainingProgram(call, steps)


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
) -> tuple[Any, int]:
    like = _state_like(model, optimizer, keys)
    weights = sum(leaf.size for leaf in jax.tree.leaves(like.params))
    multiplications = weights * batch_size * objective.num_samples / mesh.size
    steps = steps_per_call(images.shape[0] // batch_size, multiplications)

    def train(
        state: TrainState, images: Any, keys: Any, beta: Any, rate: Any, max_nonfinite: Any
    ) -> tuple[TrainState, Metrics]:
        return training.train_replicas(
            model,
            optimizer,
            preprocess,
            state,
            images,
            keys,
            beta,
            rate,
            max_nonfinite,
            batch_size=batch_size,
            steps=steps,
            objective=objective,
        )

    # Contexts are a thread's own, and this may be another one than the run's.
    with jax.set_mesh(mesh), jax.default_matmul_precision(MATMUL_PRECISION[matmul_precision]):
        compiled = jax.jit(
            train,
            donate_argnames="state",
            compiler_options=compilation.compiler_options("loop"),
        )
        scalar = jax.ShapeDtypeStruct(keys.shape, np.float32, sharding=keys.sharding)
        lowered = compiled.lower(like, images, keys, scalar, scalar, np.int32(0))
        return lowered.compile(), steps


def steps_per_call(steps_per_epoch: int, multiplications: float) -> int:
    """Steps that one call of the training program takes: as many as divide an epoch evenly.

    Args:
      steps_per_epoch: of the run.
      multiplications: of weights with activations, in a step's forward pass on one device.

    Returns:
      Of the divisors of an epoch's steps the largest whose arithmetic is within `CALL_FLOP`, or 1.
    """
    # A product and a sum for each, forward and twice backward.
    most = CALL_FLOP[jax.default_backend()] / (6 * multiplications)
    divisors = (n for n in range(1, steps_per_epoch + 1) if steps_per_epoch % n == 0)
    return max((n for n in divisors if n <= most), default=1)


def make_model(settings: Settings, data_dim: int, observation: str) -> HierarchicalVAE:
    """The model of the settings, for a data set's dimension and observation."""
    latent_sizes, hidden_sizes = settings.layers()
    ladder = functools.partial(
        LadderVAE, own_top_down=settings.own_top_down, mean_upward=settings.mean_upward
    )
    model_class: Any = {"lvae": ladder, "vae": VAE}[settings.model]
    return model_class(
        data_dim=data_dim,
        latent_sizes=latent_sizes,
        hidden_sizes=hidden_sizes,
        observation=observation,
        activation=settings.activation,
        batch_norm=settings.batch_norm,
        variance_floor=settings.variance_floor,
    )


def evaluation_variables(
    experiment: Experiment, params: Any, epoch: int, replica: int = 0
) -> dict[str, Any]:
    """The parameters after `epoch` epochs with batch-norm statistics of the training set.

    Args:
      experiment: of the run.
      params: of one replica, on the devices.
      epoch: number of epochs that led to them.
      replica: which.
    """
    with jax.set_mesh(experiment.mesh):
        return evaluation.reestimate_batch_stats(
            experiment.model,
            params,
            experiment.preprocess,
            experiment.train_images,
            devices.put(experiment.key(replica, "batch_stats", epoch), experiment.mesh),
            batch_size=experiment.settings.batch_size,
        )


def _elbo(
    experiment: Experiment,
    variables: dict[str, Any],
    preprocess: Preprocess,
    images: Any,
    key: jax.Array,
) -> evaluation.ElboResult:
    """L_1 of images on the devices."""
    mesh = experiment.mesh
    with jax.set_mesh(mesh):
        result = evaluation.elbo(
            experiment.model,
            variables,
            preprocess,
            images if isinstance(images, jax.Array) else devices.put(images, mesh),
            devices.put(key, mesh),
            batch_size=eval_batch_size(mesh),
        )
        return devices.fetch(result, mesh)


def eval_batch_size(mesh: Mesh) -> int:
    """`EVAL_BATCH_SIZE`, or what more the devices need to have equal parts."""
    return -(-EVAL_BATCH_SIZE // mesh.size) * mesh.size


def evaluate(
    experiment: Experiment, variables: dict[str, Any], epoch: int, replica: int = 0
) -> dict[str, Any]:
    """What is evaluated every few epochs: L_1 of the test set, KL and activity of every unit."""
    results: dict[str, Any] = {}
    if experiment.validation_x is not None:
        key = experiment.key(replica, "validation_elbo", epoch)
        validation = _elbo(experiment, variables, as_stored, experiment.validation_x, key)
        results["validation_elbo"] = float(validation.elbo)
    key = experiment.key(replica, "test_elbo", epoch)
    test = _elbo(experiment, variables, as_stored, experiment.test_x, key)
    return results | {
        "test_elbo": float(test.elbo),
        "active_units": tuple(int(np.sum(active)) for active in test.active),
        "kl_per_unit": tuple(tuple(kl.tolist()) for kl in test.kl_per_unit),
    }


def evaluate_fully(
    experiment: Experiment,
    variables: dict[str, Any],
    epoch: int,
    replica: int = 0,
    between_batches: Callable[[], None] = lambda: None,
) -> ReplicaResults:
    """What is evaluated at the end, the test log-likelihood and the training set's L_1 included.

    The validation ELBO is left out: what has been chosen by is no result.

    Args:
      experiment: of the run.
      variables: of one replica.
      epoch: number of epochs that led to them.
      replica: which.
      between_batches: called now and then; may raise.
    """
    experiment = experiment._replace(validation_x=None)
    test = evaluate(experiment, variables, epoch, replica)
    key = experiment.key(replica, "train_elbo", epoch)
    train = _elbo(experiment, variables, experiment.preprocess, experiment.train_images, key)
    log_likelihood, effective_sample_size = test_log_likelihood(
        experiment, variables, replica, between_batches
    )
    images = len(log_likelihood)
    # Of one image there is no standard error; null in JSON.
    error = (
        float(np.std(np.float64(log_likelihood), ddof=1) / math.sqrt(images))
        if images > 1
        else None
    )
    return ReplicaResults(
        chosen_epoch=epoch,
        test_log_likelihood=float(np.mean(log_likelihood)),
        test_log_likelihood_standard_error=error,
        effective_sample_size=float(np.mean(effective_sample_size)),
        train_elbo=float(train.elbo),
        kl_per_layer=tuple(sum(layer) for layer in test["kl_per_unit"]),
        seed=experiment.settings.seed + replica,
        **test,
    )


def test_log_likelihood(
    experiment: Experiment,
    variables: dict[str, Any],
    replica: int,
    between_batches: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """L_K and the effective sample size of the test images, with progress."""
    settings, mesh = experiment.settings, experiment.mesh
    test_x = experiment.test_x[: settings.eval_subset or None]
    num_samples, n = settings.eval_samples, len(test_x)
    key = experiment.key(replica, "log_likelihood")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(n))
    batch_size = eval_batch_size(mesh)
    # The least that any process has the memory for: all of them run one program.
    chunk_size = -int(
        devices.agree(-evaluation.default_chunk_size(experiment.model, batch_size // mesh.size))[0]
    )
    program = evaluation.log_likelihood_program()
    estimates, sizes = [], []
    which = f" of seed {settings.seed + replica}" if settings.replicas > 1 else ""
    description = f"test log-likelihood{which}, K = {num_samples}, image"
    with jax.set_mesh(mesh), Progress(description, n, shown=devices.writes()) as progress:
        for start in range(0, n, batch_size):
            # A smaller last batch is filled up with the first images: one program serves all.
            rows = np.arange(start, start + batch_size) % n
            result = program(
                experiment.model,
                variables,
                devices.put(test_x[rows], mesh, MESH_AXES),
                devices.put(keys[rows], mesh, MESH_AXES),
                num_samples,
                chunk_size,
            )
            result = devices.fetch(result, mesh)
            estimates.append(result.log_likelihood)
            sizes.append(result.effective_sample_size)
            done = min(start + batch_size, n)
            progress.update(done, f"{np.mean(np.concatenate(estimates)[:done]):.2f} nats")
            between_batches()
    return np.concatenate(estimates)[:n], np.concatenate(sizes)[:n]
