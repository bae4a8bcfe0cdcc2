"""Sets up a run: its model, its data on the devices, its initial state."""

import functools
import math
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

import lvae_jax
from experiments.errors import SettingsError
from experiments.run import devices, memory
from experiments.settings import Command, Settings, with_defaults
from experiments.store.workdir import read_config, read_state, read_step, read_trained
from lvae_jax import VAE, LadderVAE, compilation, training
from lvae_jax.data import Dataset
from lvae_jax.data.validation import hold_out
from lvae_jax.models import HierarchicalVAE
from lvae_jax.objective import Objective
from lvae_jax.training import Preprocess, TrainState, named_key

PRNG = {"threefry": "threefry2x32", "rbg": "rbg"}
"""JAX's names of the generators."""

MATMUL_PRECISION = {"float32": "float32", "tf32": "tensorfloat32", "bf16": "BF16_BF16_F32"}
"""JAX's names of the precisions; bf16 products are summed in float32."""


def at_precision(name: str) -> AbstractContextManager[None]:
    """Within it, matrix products have the precision that a run's settings name."""
    return jax.default_matmul_precision(MATMUL_PRECISION[name])


class Experiment(NamedTuple):
    """The constant parts of a run: its settings, its model, and its data on the devices."""

    settings: Settings
    dataset: Dataset
    """Without the training images that are held out."""
    model: HierarchicalVAE
    optimizer: optax.GradientTransformation
    mesh: Mesh
    keys: jax.Array
    """[replicas]: the root key of each replica, from which all draws of its training derive."""
    preprocess: Preprocess
    train_images: jax.Array
    test_x: np.ndarray
    validation_x: np.ndarray | None
    """The held-out training images; None without --validation."""

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training set."""
        return len(self.train_images) // self.settings.batch_size

    def describe(self) -> str:
        """One line that describes the run."""
        settings = self.settings
        parameters = sum(math.prod(p.shape[1:]) for p in jax.tree.leaves(state_like(self).params))
        replicas = f"{settings.replicas} replicas of " if settings.replicas > 1 else ""
        unused = self.mesh.size < jax.device_count()
        return (
            f"{self.dataset.name}-{settings.model}{settings.depth}: {len(self.train_images)} "
            f"training images, {len(self.test_x)} test images, {replicas}{parameters:,} "
            f"parameters, {settings.epochs} epoch{'s' * (settings.epochs != 1)} of "
            f"{self.steps_per_epoch} step{'s' * (self.steps_per_epoch != 1)}, on "
            f"{devices.describe()}" + (f" ({self.mesh.size} of them used)" if unused else "")
        )

    def of_seed(self, replica: int) -> str:
        """Names a replica's seed in a message; nothing where there is only one replica."""
        settings = self.settings
        return f" of seed {settings.seed + replica}" if settings.replicas > 1 else ""

    def key(self, replica: int, name: str, step: int = 0) -> jax.Array:
        """A replica's key for everything but training.

        Always threefry: evaluation draws for every image separately, and with rbg the draws of a
        key depend on the other keys in the call.
        """
        return named_key(
            jax.random.key(self.settings.seed + replica, impl=PRNG["threefry"]), name, step
        )


def make_experiment(settings: Settings, dataset: Dataset) -> Experiment:
    """The model and the data of a run; moves the training data to the devices.

    Raises:
      SettingsError: settings that do not fit the data set, the devices or their memory.
    """
    validation, images = None, len(dataset.train_images)
    if settings.batch_size + settings.validation > images:
        given = f"--batch_size={settings.batch_size}"
        if settings.validation:
            given += f" --validation={settings.validation}"
        raise SettingsError(
            f"{given}: {dataset.name} has {images} training image{'s' * (images != 1)}; give at "
            f"most that{' in all' * bool(settings.validation)}"
        )
    if settings.validation:
        dataset, validation = hold_out(dataset, settings.validation)
    mesh = devices.make_mesh(settings.replicas, settings.batch_size)
    model = make_model(settings, dataset.data_dim, dataset.observation)
    optimizer = training.make_optimizer(
        learning_rate=1.0,  # updates are scaled by the epoch's learning rate
        max_gradient_norm=settings.max_gradient_norm or None,
        max_gradient=settings.max_gradient or None,
        adam_epsilon=settings.adam_epsilon,
        ema_decay=settings.ema_decay,
    )
    like = state_shapes(model, optimizer, _keys_like(settings, mesh))
    memory.check_arrays(
        like.params,
        like.opt_state,
        dataset.train_images.nbytes + np.float32().nbytes * dataset.test_images.size,
        devices.available_memory(mesh),
        settings.replicas,
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
    """Shape, dtype and sharding of the root keys, without making them."""
    key = jax.eval_shape(lambda: training_key(settings, 0))
    sharding = NamedSharding(mesh, PartitionSpec("replica"))
    return jax.ShapeDtypeStruct((settings.replicas,), key.dtype, sharding=sharding)


def training_key(settings: Settings, replica: int) -> jax.Array:
    """The root key of a replica, from which all draws of its training derive."""
    return jax.random.key(settings.seed + replica, impl=PRNG[settings.prng])


def new_state(experiment: Experiment) -> TrainState:
    """The initial state of all replicas, on the devices."""
    keys = experiment.keys
    return _initialisation(experiment.model, experiment.optimizer, keys.sharding)(keys)


@functools.lru_cache(maxsize=8)
def _initialisation(
    model: HierarchicalVAE, optimizer: optax.GradientTransformation, sharding: Sharding
) -> Callable[[jax.Array], TrainState]:
    """One function per model, so that JAX compiles it once for all runs of a process."""
    return jax.jit(
        functools.partial(training.init_state, model, optimizer),
        out_shardings=sharding,
        compiler_options=compilation.compiler_options("once"),
    )


def state_like(experiment: Experiment) -> TrainState:
    """Shapes, dtypes and shardings of a state."""
    return state_shapes(experiment.model, experiment.optimizer, shape_of(experiment.keys))


@functools.cache
def state_shapes(
    model: HierarchicalVAE, optimizer: optax.GradientTransformation, keys: jax.ShapeDtypeStruct
) -> TrainState:
    """`state_like` for a model, an optimiser and the shape of the root keys."""
    init = functools.partial(training.init_state, model, optimizer)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=keys.sharding),
        jax.eval_shape(init, keys),
    )


def shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def objective_of(settings: Settings) -> Objective:
    """The objective of a training step."""
    return Objective(
        mc_samples=settings.mc_samples,
        importance_samples=settings.iw_samples,
        gradient=settings.gradient,
        free_bits=settings.free_bits,
        closed_form_kl=settings.closed_form_kl,
    )


def make_model(settings: Settings, data_dim: int, observation: str) -> HierarchicalVAE:
    """The model for the settings and a data set's dimension and observation."""
    latent_sizes, hidden_sizes = settings.layers()
    wide = (hidden_sizes[0], *hidden_sizes[:-1])
    ladder = functools.partial(
        LadderVAE,
        own_top_down=settings.own_top_down,
        mean_upward=settings.mean_upward,
        generative_hidden_sizes=wide if settings.wide_generative else None,
    )
    model_class: Any = {"lvae": ladder, "vae": VAE}[settings.model]
    return model_class(
        data_dim=data_dim,
        latent_sizes=latent_sizes,
        hidden_sizes=hidden_sizes,
        observation=observation,
        activation=settings.activation,
        batch_norm=settings.batch_norm,
        batch_norm_epsilon=settings.batch_norm_epsilon,
        variance_floor=settings.variance_floor,
        variance_bias=settings.variance_bias,
    )


def continued(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """The fields of the initial state that --init_from takes from another run.

    They are the parameters, the optimiser's state and the step of its newest checkpoint; with
    --fresh_optimizer, the parameters that the other run evaluates, and the step. The step is
    rounded up to a whole epoch of this run. It decides the draws, so no draw is repeated.

    Args:
      experiment: this run.
      workdir: its folder.

    Returns:
      Host arrays with a leading axis of replicas, by field; empty without --init_from.

    Raises:
      SettingsError: the other run's model or optimiser differs from this one's, or it is this run.
      WorkdirError: there is no such run.
    """
    settings, like = experiment.settings, state_like(experiment)
    if not settings.init_from:
        return {}
    given, other = f"--init_from={settings.init_from}", Path(settings.init_from)
    if other.resolve() == workdir.resolve():
        raise SettingsError(f"{given} is this run's own folder; give another --workdir")
    params, config = read_trained(other)[0], read_config(other)
    _refuse_another_model(experiment, params, config)
    there, ema_decay = jax.tree.leaves(params)[0].shape[0], config["settings"].get("ema_decay", 0.0)
    if there not in (1, settings.replicas):
        raise SettingsError(
            f"{given}: it has {there} replicas; give --replicas={there}, or a run of one"
        )
    if settings.fresh_optimizer:
        fields = {"params": params, "step": read_step(other)}
    elif bool(ema_decay) == bool(settings.ema_decay):
        fields = read_state(other, _with_replicas(like, there))._asdict()
    else:
        raise SettingsError(
            f"{given}: --ema_decay={ema_decay} there, {settings.ema_decay} here, and only one of "
            "the optimisers keeps an average; give the same, or --fresh_optimizer"
        )
    per_epoch = experiment.steps_per_epoch
    fields["step"] = -(-fields["step"] // per_epoch) * per_epoch
    kept = {name: fields[name] for name in ("params", "opt_state", "step") if name in fields}
    return jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (settings.replicas, *leaf.shape[1:])), kept
    )


def _with_replicas(like: Any, replicas: int) -> Any:
    """Host arrays with a state's shapes and dtypes, but another number of replicas."""
    return jax.tree.map(
        lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), (replicas, *leaf.shape[1:])), like
    )


_OF_THE_MODEL = (
    "model",
    "latent_sizes",
    "hidden_sizes",
    "activation",
    "batch_norm",
    "batch_norm_epsilon",
    "own_top_down",
    "wide_generative",
    "mean_upward",
    "variance_floor",
    "observation",  # of the data sets that have a choice
)
"""The settings that decide what a model computes from its parameters."""


def _refuse_another_model(experiment: Experiment, params: Any, config: dict[str, Any]) -> None:
    settings, like = experiment.settings, state_like(experiment).params
    there, here = (jax.tree.map(lambda leaf: leaf.shape[1:], tree) for tree in (params, like))
    was, now = with_defaults(config["settings"], Settings()), settings.changing_results()
    differences = [
        f"{name} {was[name]} there, {now[name]} here"
        for name in _OF_THE_MODEL
        if name in was.keys() & now.keys() and was[name] != now[name]
    ]
    if there != here and config["dataset"] != experiment.dataset.name:
        differences.append(f"trained on {config['dataset']}, not on {experiment.dataset.name}")
    if there != here and not differences:
        differences.append("trained on images of another size")
    if differences:
        raise SettingsError(
            f"--init_from={settings.init_from}: its model differs "
            f"({'; '.join(differences)}); give the same model settings"
        )


def make_config(settings: Settings, dataset: Dataset, command: Command | None) -> dict[str, Any]:
    """The content of config.json: every setting, and the versions and device of the first start."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "experiment": command and command.name,
        "dataset": dataset.name,
        **dataset.identity(),
        "settings": settings.changing_results(),
        "other_settings": settings.not_changing_results(),
        "versions": {
            "python": platform.python_version(),
            "lvae_jax": lvae_jax.__version__,
            **{package: metadata.version(package) for package in packages},
        },
        "device": devices.describe(),
    }
