"""The settings of a run: one table of flags, checked before anything is created.

Nothing here imports JAX, so that `--help` and a bad flag are answered at once.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from absl import flags


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line: what was given, what is expected."""


class _Kind(NamedTuple):
    """How the text of a flag becomes a value, and what is expected of it."""

    convert: Callable[[str], Any]
    accept: Callable[[Any], bool]
    expected: str


def _whole(at_least: int) -> _Kind:
    return _Kind(int, lambda v: v >= at_least, f"a whole number of at least {at_least}")


def _real(expected: str, accept: Callable[[float], bool]) -> _Kind:
    return _Kind(float, lambda v: math.isfinite(v) and accept(v), expected)


def _choice(*choices: str) -> _Kind:
    return _Kind(str, lambda v: v in choices, f"one of {', '.join(choices)}")


_POSITIVE = _real("a number greater than 0", lambda v: v > 0)
_NOT_NEGATIVE = _real("a number of at least 0", lambda v: v >= 0)
_FLAG = _Kind(
    lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
    lambda v: True,
    "true or false",
)
_SIZES = _Kind(
    lambda text: tuple(int(size) for size in text.split(",")) if text else (),
    lambda v: all(size >= 1 for size in v),
    "whole numbers of at least 1, separated by commas, from the bottom layer to the top",
)
_PATH = _Kind(str, lambda v: True, "a path")


def _flag(default: Any, kind: _Kind, help: str, *, changes_results: bool = True) -> Any:
    metadata = {"kind": kind, "help": help, "changes_results": changes_results}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, and where it keeps it. Defaults: the paper's."""

    model: str = _flag(
        "lvae", _choice("lvae", "vae"), "ladder VAE, or VAE with bottom-up inference"
    )
    depth: int = _flag(5, _whole(1), "layers of latents: the lowest ones of the sizes below")
    latent_sizes: tuple[int, ...] = _flag(
        (64, 32, 16, 8, 4), _SIZES, "units of z_1, z_2, ..., bottom to top"
    )
    hidden_sizes: tuple[int, ...] = _flag(
        (512, 256, 128, 64, 32), _SIZES, "units of the two hidden layers of the MLPs at each layer"
    )
    activation: str = _flag("leaky_relu", _choice("leaky_relu", "tanh"), "nonlinearity of the MLPs")
    batch_norm: bool = _flag(True, _FLAG, "batch normalisation in the MLPs and the latents' heads")
    own_top_down: bool = _flag(
        False, _FLAG, "lvae: the downward inference has MLPs of its own, as the authors' code can"
    )
    mean_upward: bool = _flag(
        False, _FLAG, "lvae: feed mu_hat upward instead of d, as the authors' code can"
    )
    variance_floor: float = _flag(1e-5, _POSITIVE, "added to every variance")

    epochs: int = _flag(2000, _whole(1), "passes over the training images")
    warmup_epochs: int = _flag(
        200, _whole(0), "N_t: beta rises from 0 to 1 over these; 0: no warm-up"
    )
    batch_size: int = _flag(256, _whole(1), "images a step; the last partial batch is dropped")
    learning_rate: float = _flag(1e-3, _POSITIVE, "Adam's, in the first epoch")
    schedule: str = _flag(
        "constant",
        _choice("constant", "staircase", "cosine"),
        "of the learning rate; staircase: x0.75 every 200 epochs; cosine: to 0 at the end",
    )
    mc_samples: int = _flag(1, _whole(1), "independent estimates of the bound an example")
    iw_samples: int = _flag(1, _whole(1), "importance samples K of the bound that is trained")
    adam_epsilon: float = _flag(1e-8, _POSITIVE, "Adam's epsilon (the authors: 1e-4)")
    max_gradient_norm: float = _flag(
        0.0, _NOT_NEGATIVE, "limit of the gradient's total norm (the authors: 4); 0: none"
    )
    max_gradient: float = _flag(
        0.0,
        _NOT_NEGATIVE,
        "then clip its elements to plus or minus this (the authors: 0.9); 0: none",
    )
    seed: int = _flag(0, _whole(0), "of every random draw")
    init_from: str = _flag("", _PATH, "workdir of another run to start from the parameters of")

    eval_every: int = _flag(10, _whole(0), "epochs between test ELBOs; 0: only at the end")
    eval_samples: int = _flag(5000, _whole(1), "importance samples of the test log-likelihood")

    workdir: str = _flag(
        "", _PATH, "folder of the run; runs/DATASET-MODELDEPTH if not given", changes_results=False
    )
    checkpoint_seconds: float = _flag(
        60.0,
        _NOT_NEGATIVE,
        "time between checkpoints: at most so much work is lost",
        changes_results=False,
    )
    data_dir: str = _flag(
        "", _PATH, "folder with the data set's original files as downloaded", changes_results=False
    )
    tfds_dir: str = _flag(
        "",
        _PATH,
        "where prepared data sets live; tensorflow-datasets' own place if not given",
        changes_results=False,
    )

    def layers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """latent_sizes and hidden_sizes of the layers that are kept."""
        return self.latent_sizes[: self.depth], self.hidden_sizes[: self.depth]

    def changing_results(self) -> dict[str, Any]:
        """The settings that decide the results, by name, as JSON values."""
        latent_sizes, hidden_sizes = self.layers()
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata["changes_results"]
        }
        layers = {"latent_sizes": list(latent_sizes), "hidden_sizes": list(hidden_sizes)}
        return values | layers


class _Parser(flags.ArgumentParser):
    """absl's interface to a `_Kind`."""

    def __init__(self, kind: _Kind):
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


def define_flags(defaults: Settings) -> None:
    """Defines one absl flag a setting, of the module that is run.

    Args:
      defaults: of the data set.
    """
    for field in dataclasses.fields(Settings):
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


def from_flags() -> Settings:
    """The settings on the command line, checked against each other.

    Raises:
      SettingsError: settings that do not fit together.
    """
    values: dict[str, Any] = {
        f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(Settings)
    }
    given = {name for name in values if flags.FLAGS[name].present}
    # Sizes that are given decide how many of the others are used, and the depth.
    for sizes, others in (("latent_sizes", "hidden_sizes"), ("hidden_sizes", "latent_sizes")):
        if sizes in given and others not in given:
            values[others] = values[others][: len(values[sizes])]
    if given & {"latent_sizes", "hidden_sizes"} and "depth" not in given:
        values["depth"] = len(values["latent_sizes"])
    settings = Settings(**values)
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
    if settings.model == "vae" and (settings.own_top_down or settings.mean_upward):
        raise SettingsError(
            "--model=vae: --own_top_down and --mean_upward are variants of the ladder; "
            "leave them out or give --model=lvae"
        )


def _comma(sizes: tuple[int, ...]) -> str:
    return ",".join(map(str, sizes))


def fail(message: str, status: int = 2) -> NoReturn:
    """Ends the process with one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; a bad one ends the process with one line and status 2."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        fail(str(error))
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}: every setting is given as --name=value; see --help")
    return rest
