"""The settings of a run: one table of flags, and the rules between them.

Nothing here imports JAX, so `--help` and errors in flags are printed at once.
"""

import dataclasses
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import SettingsError


class Kind(NamedTuple):
    """How a flag's text becomes a value, and which values are accepted."""

    convert: Callable[[str], Any]
    accept: Callable[[Any], bool]
    expected: str


FLOAT32 = (1.1754944e-38, 3.4028235e38)
"""The smallest normal float32 and the largest float32."""


LARGEST_INT32 = 2**31 - 1


def whole(at_least: int, at_most: int = LARGEST_INT32) -> Kind:
    """A whole number within limits; the computation uses int32."""
    expected = f"a whole number of at least {at_least} and at most {at_most}"
    return Kind(int, lambda v: at_least <= v <= at_most, expected)


def real(expected: str, accept: Callable[[float], bool]) -> Kind:
    """A number that `accept` accepts and that float32 can represent; `expected` describes it."""

    def is_float32(v: float) -> bool:
        return v == 0 or FLOAT32[0] <= abs(v) <= FLOAT32[1]

    return Kind(float, lambda v: is_float32(v) and accept(v), expected)


def choice(*choices: str) -> Kind:
    """One of several words."""
    return Kind(str, lambda v: v in choices, f"one of {', '.join(filter(None, choices))}")


POSITIVE = real("a number greater than 0, within float32", lambda v: v > 0)
PRECISION = choice("float32", "tf32", "bf16")
NOT_NEGATIVE = real("a number of at least 0, within float32", lambda v: v >= 0)
MOST_SEEDS = 2**32
"""JAX makes this many different keys from seeds."""
FLAG = Kind(
    lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
    lambda v: True,
    "true or false",
)
SIZES = Kind(
    lambda text: tuple(int(size) for size in text.split(",")) if text else (),
    lambda v: all(1 <= size <= LARGEST_INT32 for size in v),
    f"whole numbers of at least 1 and at most {LARGEST_INT32}, separated by commas, from the "
    "bottom layer to the top",
)
DECAY = Kind(float, lambda v: 0 <= v < 1, "a number of at least 0 and less than 1")
TEXT = Kind(str, lambda v: True, "a text")


def _is_address(text: str) -> bool:
    """Whether a text is HOST:PORT, or is empty."""
    found = re.fullmatch(r"(?:\[[^\s\[\]]+\]|[^\s:\[\]]+):([0-9]{1,5})", text)
    return not text or (found is not None and 1 <= int(found[1]) <= 65535)


ADDRESS = Kind(
    str, _is_address, "HOST:PORT, with an IPv6 address in brackets and a port from 1 to 65535"
)


def _is_utf8(path: str) -> bool:
    """Whether a path is UTF-8 (Python keeps other bytes as surrogates); orbax takes no others."""
    return re.search("[\ud800-\udfff]", path) is None


PATH = Kind(os.path.expanduser, _is_utf8, "a path in UTF-8")
SOURCE = Kind(os.path.expanduser, _is_utf8, "a path in UTF-8, to read from")
"""A path to read from: config.json stores it absolute, and the run's command line repeats it."""


def by_replica(kind: Kind) -> Kind:
    """One value for all replicas, or one per replica, separated by commas."""

    def convert(text: str) -> Any:
        values = tuple(kind.convert(value) for value in text.split(","))
        return values if len(values) > 1 else values[0]

    def accept(value: Any) -> bool:
        return all(map(kind.accept, value if isinstance(value, tuple) else (value,)))

    return Kind(convert, accept, f"{kind.expected}, or one per replica, separated by commas")


def setting(default: Any, kind: Kind, help: str, *, changes_results: bool = True) -> Any:
    """A field of `Settings`: a flag of the same name.

    Args:
      default: its value if the flag is not given.
      kind: the values that it accepts.
      help: its description in `--help` and docs/flags.md.
      changes_results: false if a run can be resumed with another value.
    """
    metadata = {"kind": kind, "help": help, "changes_results": changes_results}
    return dataclasses.field(default=default, metadata=metadata)


def operational(default: Any, kind: Kind, help: str) -> Any:
    """A setting that does not affect results: a run can be resumed with another value."""
    return setting(default, kind, help, changes_results=False)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run computes and where it keeps its files. The defaults are the paper's settings.

    A data set with settings of its own defines a subclass.
    """

    model: str = setting(
        "lvae", choice("lvae", "vae"), "ladder VAE, or VAE with bottom-up inference"
    )
    depth: int = setting(5, whole(1), "number of layers: the lowest ones of the sizes below")
    latent_sizes: tuple[int, ...] = setting(
        (64, 32, 16, 8, 4),
        SIZES,
        "units of z_1, z_2, ..., bottom to top; given alone, they set --depth and shorten "
        "--hidden_sizes",
    )
    hidden_sizes: tuple[int, ...] = setting(
        (512, 256, 128, 64, 32), SIZES, "units of the two hidden layers of the MLPs at each layer"
    )
    activation: str = setting(
        "leaky_relu",
        choice("leaky_relu", "leaky_relu_0.01", "tanh"),
        "nonlinearity of the MLPs; leaky_relu: max(x, x/10), leaky_relu_0.01: max(x, x/100)",
    )
    batch_norm: bool = setting(True, FLAG, "batch normalisation in the MLPs and the latents' heads")
    batch_norm_epsilon: float = setting(
        1e-5, POSITIVE, "added to variances within batch normalisation (the authors: 1e-10)"
    )
    own_top_down: bool = setting(
        False, FLAG, "lvae: own MLPs for the downward inference, an option of the authors' code"
    )
    wide_generative: bool = setting(
        False,
        FLAG,
        "lvae: the generative MLP of z_i has the hidden units of layer i instead of layer i + 1, "
        "as in the authors' code with own MLPs",
    )
    mean_upward: bool = setting(
        False, FLAG, "lvae: feed mu_hat upward instead of d, an option of the authors' code"
    )
    variance_floor: float = setting(1e-5, POSITIVE, "added to every variance")
    variance_bias: float = setting(
        0.0,
        real("a number within float32", lambda v: True),
        "initial bias of variances before softplus (the authors: 1); no effect before batch "
        "normalisation",
    )

    epochs: int = setting(2000, whole(1), "passes over the training images")
    warmup_epochs: int | tuple[int, ...] = setting(
        200,
        by_replica(whole(0)),
        "N_t: epochs over which the KL's weight rises from 0 to beta; 0: no warm-up",
    )
    beta: float | tuple[float, ...] = setting(
        1.0, by_replica(NOT_NEGATIVE), "weight of the KL in training, after warm-up"
    )
    batch_size: int = setting(256, whole(1), "images per step; the last partial batch is dropped")
    learning_rate: float | tuple[float, ...] = setting(
        1e-3, by_replica(POSITIVE), "Adam's learning rate in the first epoch"
    )
    schedule: str = setting(
        "constant",
        choice("constant", "staircase", "cosine"),
        "schedule of the learning rate; staircase: x0.75 after every tenth of the epochs; cosine: "
        "to 0 at the end",
    )
    mc_samples: int = setting(1, whole(1), "independent estimates of the bound per example")
    iw_samples: int = setting(1, whole(1), "importance samples K of the training bound")
    gradient: str = setting(
        "standard",
        choice("standard", "stl", "dreg"),
        "gradient of training; stl: sticking the landing; dreg: doubly reparameterised",
    )
    closed_form_kl: bool = setting(
        True,
        FLAG,
        "KL terms in closed form where one exists; false: log q - log p of the sample, as in the "
        "authors' code",
    )
    free_bits: float = setting(
        0.0, NOT_NEGATIVE, "nats per unit below which training does not reduce its mean KL; 0: none"
    )
    adam_epsilon: float = setting(1e-8, POSITIVE, "Adam's epsilon (the authors: 1e-4)")
    ema_decay: float = setting(
        0.0,
        DECAY,
        "decay of a moving average of the weights, which is then evaluated; 0: none",
    )
    max_gradient_norm: float = setting(
        0.0, NOT_NEGATIVE, "limit on the gradient's total norm (the authors: 4); 0: none"
    )
    max_gradient: float = setting(
        0.0,
        NOT_NEGATIVE,
        "then clip each element to plus or minus this (the authors: 0.9); 0: none",
    )
    on_nonfinite: str = setting(
        "stop",
        choice("stop", "skip"),
        "on a loss or gradient that is not finite: stop the run, or skip the update",
    )
    max_nonfinite: int = setting(
        100, whole(1), "with --on_nonfinite=skip: largest number of updates to skip"
    )
    seed: int = setting(0, whole(0, MOST_SEEDS - 1), "seed of every random draw")
    replicas: int = setting(
        1, whole(1), "runs to train at once, with consecutive seeds from --seed"
    )
    prng: str = setting(
        "threefry",
        choice("threefry", "rbg"),
        "random number generator of training; rbg is faster on a TPU, but differs between devices",
    )
    matmul_precision: str = setting(
        "float32",
        PRECISION,
        "precision of matrix products on a GPU or TPU; sums, and all on a CPU, stay in float32",
    )
    init_from: str = setting("", SOURCE, "workdir of another run, to continue its training")
    fresh_optimizer: bool = setting(
        False,
        FLAG,
        "with --init_from: start with a new state of Adam and the parameters that the other run "
        "evaluates",
    )

    eval_every: int = setting(10, whole(0), "epochs between test ELBOs; 0: only at the end")
    validation: int = setting(
        0,
        whole(0),
        "training images held out to choose the evaluated epoch; 0: evaluate the last epoch",
    )
    eval_samples: int = setting(5000, whole(1), "importance samples of the test log-likelihood")
    eval_subset: int = setting(
        0, whole(0), "evaluate the log-likelihood on the first N test images; 0: all"
    )

    workdir: str = operational(
        "", PATH, "folder of the run; the default is runs/DATASET-MODELDEPTH"
    )
    overwrite: bool = operational(
        False, FLAG, "remove the run that the folder holds, and start again"
    )
    checkpoint_seconds: float = operational(
        60.0,
        NOT_NEGATIVE,
        "seconds between checkpoints: a killed run loses about as much work at most",
    )
    data_dir: str = operational(
        "", SOURCE, "folder with the data set's original files, used until the data set is prepared"
    )
    tfds_dir: str = operational(
        "", SOURCE, "folder of prepared data sets; the default is tensorflow-datasets' own"
    )
    compilation_cache: str = operational(
        "",
        PATH,
        "folder that keeps compiled programs for the next start; the default is "
        "$JAX_COMPILATION_CACHE_DIR or the user's cache folder; off: keep none",
    )
    coordinator_address: str = operational(
        "",
        ADDRESS,
        "HOST:PORT of process 0, if several processes run one command; detected automatically "
        "under SLURM's srun, Open MPI and on TPU pods",
    )
    num_processes: int = operational(
        1, whole(1), "with --coordinator_address: the number of processes"
    )
    process_id: int = operational(
        0, whole(0), "with --coordinator_address: the number of this process, from 0"
    )

    def by_replica(self, name: str) -> tuple[Any, ...]:
        """The values of a setting, one per replica."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.replicas

    def layers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """latent_sizes and hidden_sizes of the lowest `depth` layers."""
        return self.latent_sizes[: self.depth], self.hidden_sizes[: self.depth]

    def changing_results(self) -> dict[str, Any]:
        """The settings that affect results, by name, as JSON values."""
        return self._json_values(changes_results=True)

    def not_changing_results(self) -> dict[str, Any]:
        """The other settings, which may change when a run is resumed."""
        return self._json_values(changes_results=False)

    def _json_values(self, changes_results: bool) -> dict[str, Any]:
        latent_sizes, hidden_sizes = self.layers()
        kept = dataclasses.replace(self, latent_sizes=latent_sizes, hidden_sizes=hidden_sizes)
        return {
            field.name: _json_value(getattr(kept, field.name), field.metadata["kind"])
            for field in dataclasses.fields(kept)
            if field.metadata["changes_results"] == changes_results
        }


def _json_value(value: Any, kind: Kind) -> Any:
    if kind is SOURCE and value:
        return str(Path(value).absolute())
    return list(value) if isinstance(value, tuple) else value


def _all_values(settings: Settings) -> dict[str, Any]:
    return settings.changing_results() | settings.not_changing_results()


def with_defaults(stored: dict[str, Any], defaults: Settings) -> dict[str, Any]:
    """The settings in a config.json, with those added since its version: it used their defaults."""
    return defaults.changing_results() | stored


class Command(NamedTuple):
    """An experiment's command, such as `python -m experiments.mnist`."""

    name: str
    defaults: Settings
    """The defaults of its flags."""

    def line(self, settings: Settings, workdir: Path) -> str:
        """The command line that makes or resumes a run.

        Args:
          settings: the run's settings; those that differ from the defaults become flags.
          workdir: the run's folder.
        """
        # The depth alone says which of the default sizes are used.
        usual = dataclasses.replace(self.defaults, depth=settings.depth)
        default = _all_values(usual) | {"depth": self.defaults.depth}
        given = _all_values(settings)
        flags = [
            as_flag(field.name, given[field.name])
            for field in dataclasses.fields(settings)
            if field.metadata["changes_results"] or field.metadata["kind"] is SOURCE
            if given[field.name] != default[field.name]
        ]
        module = f"experiments.{self.name}"
        # A folder that is called "~" is not the user's home.
        path = f"./{workdir}" if str(workdir).startswith("~") else workdir
        return shlex.join(["python", "-m", module, *flags, f"--workdir={path}"])


def as_flag(name: str, value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={as_typed(value)}"


def as_typed(value: Any) -> str:
    """A value as it is typed for its flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


BY_REPLICA = ("warmup_epochs", "beta", "learning_rate")
"""Settings that may have a value for each replica."""

OF_THE_LADDER = ("own_top_down", "wide_generative", "mean_upward")
"""Settings that a VAE does not have."""

Rules = list[tuple[bool, str]]
"""Whether a rule is broken, and the error message if it is."""


def check(settings: Settings) -> None:
    """Checks settings against each other.

    Raises:
      SettingsError: a rule is broken; the message is one line.
    """
    for broken, message in (*_rules_of_the_model(settings), *_rules_of_replicas(settings)):
        if broken:
            raise SettingsError(message)


def _rules_of_replicas(s: Settings) -> Rules:
    by_replica = [
        (
            isinstance(value, tuple) and len(value) != s.replicas,
            f"--{name}={as_typed(value)}: {as_typed(value).count(',') + 1} values for --replicas="
            f"{s.replicas}; give one, or one per replica",
        )
        for name in BY_REPLICA
        for value in [getattr(s, name)]
    ]
    return [
        *by_replica,
        (
            s.seed + s.replicas > MOST_SEEDS,
            f"--seed={s.seed} --replicas={s.replicas}: seeds end at {MOST_SEEDS - 1}; give a "
            "smaller --seed",
        ),
        (
            s.replicas > 1 and s.prng == "rbg",
            f"--prng=rbg --replicas={s.replicas}: with rbg a replica's draws would depend on the "
            "other replicas; give --prng=threefry, or one replica",
        ),
        (
            s.process_id >= s.num_processes,
            f"--process_id={s.process_id} --num_processes={s.num_processes}: processes count "
            "from 0; give a smaller --process_id",
        ),
        (
            s.num_processes > 1 and not s.coordinator_address,
            f"--num_processes={s.num_processes}: no --coordinator_address; give HOST:PORT of "
            "process 0",
        ),
    ]


def _rules_of_the_model(s: Settings) -> Rules:
    latent, hidden = as_typed(s.latent_sizes), as_typed(s.hidden_sizes)
    return [
        (
            not s.latent_sizes or len(s.latent_sizes) != len(s.hidden_sizes),
            f"--latent_sizes={latent} --hidden_sizes={hidden}: give the same number of both, and "
            "at least one",
        ),
        (
            s.depth > len(s.latent_sizes),
            f"--depth={s.depth}: there are sizes for {len(s.latent_sizes)} layers; give at "
            "most as many, or longer --latent_sizes and --hidden_sizes",
        ),
        (
            bool(s.validation) and not s.eval_every,
            f"--validation={s.validation} --eval_every=0: the best of the evaluated epochs is "
            "chosen; give --eval_every of at least 1, or --validation=0",
        ),
        (
            s.batch_size == 1 and s.batch_norm,
            "--batch_size=1: batch normalisation has nothing to normalise over; give at least 2, "
            "or --nobatch_norm",
        ),
        (
            s.model == "vae" and any(getattr(s, name) for name in OF_THE_LADDER),
            "--model=vae: --own_top_down, --wide_generative and --mean_upward are variants of the "
            "ladder; leave them out or give --model=lvae",
        ),
        (
            s.fresh_optimizer and not s.init_from,
            "--fresh_optimizer: there is no --init_from; give the workdir of the run to continue, "
            "or leave it out",
        ),
        (
            bool(s.free_bits) and (s.iw_samples > 1 or s.gradient != "standard"),
            f"--free_bits={s.free_bits} --iw_samples={s.iw_samples} --gradient={s.gradient}: free "
            "bits are for the ELBO and its standard gradient; give --free_bits=0, or "
            "--iw_samples=1 --gradient=standard",
        ),
    ]
