"""The settings of a run: one table of flags, checked before anything is created.

Nothing here imports JAX, so that `--help` and a bad flag are answered at once.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from absl import flags

from experiments.errors import SettingsError


class Kind(NamedTuple):
    """How the text of a flag becomes a value, and what is expected of it."""

    convert: Callable[[str], Any]
    accept: Callable[[Any], bool]
    expected: str


FLOAT32 = (1.1754944e-38, 3.4028235e38)
"""The least normal number of float32 and the largest one."""


def whole(at_least: int, at_most: int | None = None) -> Kind:
    """A whole number within limits."""
    expected = f"a whole number of at least {at_least}"
    if at_most is not None:
        expected += f" and at most {at_most}"
    return Kind(int, lambda v: at_least <= v and (at_most is None or v <= at_most), expected)


def real(expected: str, accept: Callable[[float], bool]) -> Kind:
    """A number that is accepted; `expected` says which. Float32, which computes with it, has it."""

    def is_float32(v: float) -> bool:
        return v == 0 or FLOAT32[0] <= abs(v) <= FLOAT32[1]

    return Kind(float, lambda v: is_float32(v) and accept(v), expected)


def choice(*choices: str) -> Kind:
    """One of some words."""
    return Kind(str, lambda v: v in choices, f"one of {', '.join(filter(None, choices))}")


POSITIVE = real("a number greater than 0, within float32", lambda v: v > 0)
NOT_NEGATIVE = real("a number of at least 0, within float32", lambda v: v >= 0)
MOST_SEEDS = 2**32
"""As many different keys as JAX makes of seeds."""
FLAG = Kind(
    lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
    lambda v: True,
    "true or false",
)
SIZES = Kind(
    lambda text: tuple(int(size) for size in text.split(",")) if text else (),
    lambda v: all(size >= 1 for size in v),
    "whole numbers of at least 1, separated by commas, from the bottom layer to the top",
)
PATH = Kind(str, lambda v: True, "a path")


def by_replica(kind: Kind) -> Kind:
    """One value for all replicas, or as many as there are, separated by commas."""

    def convert(text: str) -> Any:
        values = tuple(kind.convert(value) for value in text.split(","))
        return values if len(values) > 1 else values[0]

    def accept(value: Any) -> bool:
        return all(map(kind.accept, value if isinstance(value, tuple) else (value,)))

    return Kind(convert, accept, f"{kind.expected}, or one for every replica, separated by commas")


def setting(default: Any, kind: Kind, help: str, *, changes_results: bool = True) -> Any:
    """A field of `Settings`: a flag of the same name.

    Args:
      default: its value where it is not given.
      kind: what it may be.
      help: what `--help` and the README say of it.
      changes_results: false if two starts of one run may differ in it.
    """
    metadata = {"kind": kind, "help": help, "changes_results": changes_results}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, and where it keeps it. Defaults: the paper's.

    A data set with settings of its own has a subclass.
    """

    model: str = setting(
        "lvae", choice("lvae", "vae"), "ladder VAE, or VAE with bottom-up inference"
    )
    depth: int = setting(5, whole(1), "layers of latents: the lowest ones of the sizes below")
    latent_sizes: tuple[int, ...] = setting(
        (64, 32, 16, 8, 4), SIZES, "units of z_1, z_2, ..., bottom to top"
    )
    hidden_sizes: tuple[int, ...] = setting(
        (512, 256, 128, 64, 32), SIZES, "units of the two hidden layers of the MLPs at each layer"
    )
    activation: str = setting(
        "leaky_relu", choice("leaky_relu", "tanh"), "nonlinearity of the MLPs"
    )
    batch_norm: bool = setting(True, FLAG, "batch normalisation in the MLPs and the latents' heads")
    own_top_down: bool = setting(
        False, FLAG, "lvae: the downward inference has MLPs of its own, as the authors' code can"
    )
    mean_upward: bool = setting(
        False, FLAG, "lvae: feed mu_hat upward instead of d, as the authors' code can"
    )
    variance_floor: float = setting(1e-5, POSITIVE, "added to every variance")

    epochs: int = setting(2000, whole(1), "passes over the training images")
    warmup_epochs: int | tuple[int, ...] = setting(
        200,
        by_replica(whole(0)),
        "N_t: the KL's weight rises from 0 to beta over these; 0: no warm-up",
    )
    beta: float | tuple[float, ...] = setting(
        1.0, by_replica(NOT_NEGATIVE), "weight of the KL in training, after warm-up"
    )
    batch_size: int = setting(256, whole(1), "images a step; the last partial batch is dropped")
    learning_rate: float | tuple[float, ...] = setting(
        1e-3, by_replica(POSITIVE), "Adam's, in the first epoch"
    )
    schedule: str = setting(
        "constant",
        choice("constant", "staircase", "cosine"),
        "of the learning rate; staircase: x0.75 after every tenth of the epochs; cosine: to 0 at "
        "the end",
    )
    mc_samples: int = setting(1, whole(1), "independent estimates of the bound an example")
    iw_samples: int = setting(1, whole(1), "importance samples K of the bound that is trained")
    gradient: str = setting(
        "standard",
        choice("standard", "stl", "dreg"),
        "of the inference model; stl: sticking the landing; dreg: doubly reparameterised",
    )
    free_bits: float = setting(
        0.0, NOT_NEGATIVE, "nats of a unit's mean KL below which it is not reduced; 0: none"
    )
    adam_epsilon: float = setting(1e-8, POSITIVE, "Adam's epsilon (the authors: 1e-4)")
    max_gradient_norm: float = setting(
        0.0, NOT_NEGATIVE, "limit of the gradient's total norm (the authors: 4); 0: none"
    )
    max_gradient: float = setting(
        0.0,
        NOT_NEGATIVE,
        "then clip its elements to plus or minus this (the authors: 0.9); 0: none",
    )
    on_nonfinite: str = setting(
        "stop",
        choice("stop", "skip"),
        "what a loss or gradient that is not finite does: stop the run, or have its update skipped",
    )
    max_nonfinite: int = setting(100, whole(1), "with skip: how many updates may be skipped")
    seed: int = setting(0, whole(0, MOST_SEEDS - 1), "of every random draw")
    replicas: int = setting(
        1, whole(1), "runs that are trained at once, with the seeds from --seed on"
    )
    prng: str = setting(
        "threefry",
        choice("threefry", "rbg"),
        "of training's draws; rbg is faster on a TPU, and its draws differ between devices",
    )
    matmul_precision: str = setting(
        "float32",
        choice("float32", "tf32", "bf16"),
        "of matrix products on a GPU or TPU; sums are float32 always, on a CPU products are too",
    )
    init_from: str = setting("", PATH, "workdir of another run to start from the parameters of")

    eval_every: int = setting(10, whole(0), "epochs between test ELBOs; 0: only at the end")
    validation: int = setting(
        0, whole(0), "training images held out to choose the evaluated epoch by; 0: the last epoch"
    )
    eval_samples: int = setting(5000, whole(1), "importance samples of the test log-likelihood")
    eval_subset: int = setting(
        0, whole(0), "test images, the first ones, that the log-likelihood is of; 0: all"
    )

    workdir: str = setting(
        "", PATH, "folder of the run; runs/DATASET-MODELDEPTH if not given", changes_results=False
    )
    overwrite: bool = setting(
        False, FLAG, "remove the run that the folder holds, and start again", changes_results=False
    )
    checkpoint_seconds: float = setting(
        60.0,
        NOT_NEGATIVE,
        "time between checkpoints: at most so much work is lost",
        changes_results=False,
    )
    data_dir: str = setting(
        "", PATH, "folder with the data set's original files as downloaded", changes_results=False
    )
    tfds_dir: str = setting(
        "",
        PATH,
        "where prepared data sets live; tensorflow-datasets' own place if not given",
        changes_results=False,
    )
    compilation_cache: str = setting(
        "",
        PATH,
        "where compiled programs are kept for the next start; the user's cache folder if not "
        "given, off: nowhere",
        changes_results=False,
    )
    coordinator_address: str = setting(
        "",
        PATH,
        "HOST:PORT of process 0, where several processes run one command; found on SLURM, TPU pods",
        changes_results=False,
    )
    num_processes: int = setting(
        1, whole(1), "with --coordinator_address: how many processes", changes_results=False
    )
    process_id: int = setting(
        0, whole(0), "with --coordinator_address: which of them this is", changes_results=False
    )

    def by_replica(self, name: str) -> tuple[Any, ...]:
        """The value of a setting for every replica."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.replicas

    def layers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """latent_sizes and hidden_sizes of the layers that are kept."""
        return self.latent_sizes[: self.depth], self.hidden_sizes[: self.depth]

    def changing_results(self) -> dict[str, Any]:
        """The settings that decide the results, by name, as JSON values."""
        latent_sizes, hidden_sizes = self.layers()
        layers = {"latent_sizes": list(latent_sizes), "hidden_sizes": list(hidden_sizes)}
        return self._values(changes_results=True) | layers

    def not_changing_results(self) -> dict[str, Any]:
        """The other settings, those that two starts of one run may differ in."""
        return self._values(changes_results=False)

    def _values(self, changes_results: bool) -> dict[str, Any]:
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if field.metadata["changes_results"] == changes_results
            for value in [getattr(self, field.name)]
        }


class _Parser(flags.ArgumentParser):
    """absl's interface to a `Kind`."""

    def __init__(self, kind: Kind):
        self.kind = kind

    def parse(self, argument: Any) -> Any:
        try:
            value = self.kind.convert(argument) if isinstance(argument, str) else argument
            if self.kind.accept(value):
                return value
        except (ValueError, KeyError):
            pass
        raise ValueError(f"give {self.kind.expected}")

    def flag_type(self) -> str:
        return self.kind.expected


class _Serializer(flags.ArgumentSerializer):
    """Shows a tuple of sizes as it is typed."""

    def serialize(self, value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def define_flags(defaults: Any) -> None:
    """Defines one absl flag a setting, of the module that is run.

    Args:
      defaults: `Settings` of the data set, or another dataclass of `setting` fields.
    """
    for field in dataclasses.fields(defaults):
        default = getattr(defaults, field.name)
        flag = flags.Flag(
            _Parser(field.metadata["kind"]),
            _Serializer(),
            field.name,
            default,
            field.metadata["help"],
            boolean=isinstance(default, bool),
        )
        flags.DEFINE_flag(flag, module_name=sys.argv[0])


def flag_values(kind: Any) -> dict[str, Any]:
    """What the command line says, by the names of a dataclass's fields."""
    return {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(kind)}


def from_flags(kind: type[Settings]) -> Settings:
    """The settings on the command line, checked against each other.

    Args:
      kind: `Settings`, or the subclass of the data set.

    Raises:
      SettingsError: settings that do not fit together.
    """
    values = flag_values(kind)
    given = {name for name in values if flags.FLAGS[name].present}
    # Sizes that are given decide how many of the others are used, and the depth.
    for sizes, others in (("latent_sizes", "hidden_sizes"), ("hidden_sizes", "latent_sizes")):
        if sizes in given and others not in given:
            values[others] = values[others][: len(values[sizes])]
    if given & {"latent_sizes", "hidden_sizes"} and "depth" not in given:
        values["depth"] = len(values["latent_sizes"])
    settings = kind(**values)
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Checks settings against each other.

    Raises:
      SettingsError: one line.
    """
    latent_sizes, hidden_sizes = settings.latent_sizes, settings.hidden_sizes
    if not latent_sizes or len(latent_sizes) != len(hidden_sizes):
        raise SettingsError(
            f"--latent_sizes={_comma(latent_sizes)} --hidden_sizes={_comma(hidden_sizes)}: "
            "give as many of the one as of the other, and at least one"
        )
    if settings.depth > len(latent_sizes):
        raise SettingsError(
            f"--depth={settings.depth}: there are sizes for {len(latent_sizes)} layers; give at "
            "most as many, or longer --latent_sizes and --hidden_sizes"
        )
    for name in ("warmup_epochs", "beta", "learning_rate"):
        value = getattr(settings, name)
        if isinstance(value, tuple) and len(value) != settings.replicas:
            raise SettingsError(
                f"--{name}={_comma(value)}: {len(value)} values for --replicas="
                f"{settings.replicas}; give one, or one for every replica"
            )
    if settings.seed + settings.replicas > MOST_SEEDS:
        raise SettingsError(
            f"--seed={settings.seed} --replicas={settings.replicas}: seeds end at "
            f"{MOST_SEEDS - 1}; give a smaller --seed"
        )
    if settings.replicas > 1 and settings.prng == "rbg":
        raise SettingsError(
            f"--prng=rbg --replicas={settings.replicas}: draws of several rbg keys at once are not "
            "those of each alone; give --prng=threefry, or one replica"
        )
    if settings.process_id >= settings.num_processes:
        raise SettingsError(
            f"--process_id={settings.process_id} --num_processes={settings.num_processes}: "
            "processes count from 0; give a smaller --process_id"
        )
    if settings.num_processes > 1 and not settings.coordinator_address:
        raise SettingsError(
            f"--num_processes={settings.num_processes}: no --coordinator_address; give HOST:PORT "
            "of process 0"
        )
    if settings.batch_size == 1 and settings.batch_norm:
        raise SettingsError(
            "--batch_size=1: batch normalisation has nothing to normalise over; "
            "give at least 2, or --nobatch_norm"
        )
    if settings.model == "vae" and (settings.own_top_down or settings.mean_upward):
        raise SettingsError(
            "--model=vae: --own_top_down and --mean_upward are variants of the ladder; "
            "leave them out or give --model=lvae"
        )
    if settings.free_bits and (settings.iw_samples > 1 or settings.gradient != "standard"):
        raise SettingsError(
            f"--free_bits={settings.free_bits} --iw_samples={settings.iw_samples} "
            f"--gradient={settings.gradient}: free bits are for the ELBO and its standard "
            "gradient; give --free_bits=0, or --iw_samples=1 --gradient=standard"
        )


def _comma(values: tuple[Any, ...]) -> str:
    return ",".join(map(str, values))


def fail(message: str, status: int = 2) -> NoReturn:
    """Ends the process with one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


def parse(argv: list[str], arguments: str = "") -> list[str]:
    """Parses the command line; a bad one ends the process with one line and status 2.

    Args:
      argv: the command line.
      arguments: what may be given besides flags, for the message; nothing if empty.

    Returns:
      The command line without its flags.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        fail(str(error))
    if len(rest) > 1 and not arguments:
        fail(f"unexpected argument {rest[1]!r}: every setting is given as --name=value; see --help")
    return rest
