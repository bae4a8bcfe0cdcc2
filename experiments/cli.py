"""Parses the command line, runs a command, and turns every error into one line."""

import contextlib
import dataclasses
import logging as standard_logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags, logging

from experiments import settings as settings_lib
from experiments.errors import NO_ROOM, RunError, what_to_do
from experiments.presets import Presets
from experiments.settings import PATH, Command, Kind, Settings


def main(name: str, load: Callable[[Any], Any], defaults: Settings) -> None:
    """Parses the flags, loads the data and runs.

    Args:
      name: the experiment's name, as in `python -m experiments.NAME`.
      load: loads the `Dataset` that the settings ask for.
      defaults: the defaults of the flags.
    """

    def train_and_evaluate() -> None:
        settings = from_flags(type(defaults))
        # These take seconds to import, so bad flags are reported first.
        from experiments import processes
        from experiments.run import compilation_cache, devices
        from experiments.run.loop import run

        compilation_cache.enable(settings.compilation_cache)
        devices.start_processes(settings)
        dataset = processes.first_alone(lambda: load(settings))  # it may have to be prepared
        run(settings, dataset, Command(name, defaults))

    define_flags(Presets())
    _start(train_and_evaluate, defaults, takes_paths=False)


def start(command: Callable[..., None], defaults: Any, takes_paths: bool = False) -> None:
    """Parses the flags and calls a command.

    Args:
      command: a function of the settings and the arguments that are not flags.
      defaults: the defaults of the flags, a dataclass of `setting` fields.
      takes_paths: whether arguments that are not flags are accepted, as paths.
    """
    kind = type(defaults)

    def call(*given: str) -> None:
        for path in given:
            if not PATH.accept(path):
                fail(f"{path}: give {PATH.expected}")
        command(kind(**_flag_values(kind)), *map(os.path.expanduser, given))

    _start(call, defaults, takes_paths)


def _start(command: Callable[..., None], defaults: Any, takes_paths: bool) -> None:
    _open_standard_streams()
    os.environ["MPLBACKEND"] = "agg"  # figures are files; a notebook's backend may be missing here
    define_flags(defaults)
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
    logging.get_absl_handler().setFormatter(_Formatter())

    with errors_in_one_line(), _interrupted_at_once():
        try:
            app.run(
                lambda argv: command(*argv[1:]), flags_parser=lambda argv: parse(argv, takes_paths)
            )
        finally:
            sys.stdout.flush()


class _Formatter(standard_logging.Formatter):
    """Logged warnings look like all others."""

    def format(self, record: standard_logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def _open_standard_streams() -> None:
    """Makes printing safe if a stream is closed, or cannot encode every character."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # Occupy the descriptor: compiled code writes to it, even if a file has taken it.
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


# Flags


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
    """Prints a value as it is typed."""

    def serialize(self, value: Any) -> str:
        return settings_lib.as_typed(value)


def define_flags(defaults: Any) -> None:
    """Defines one absl flag per setting.

    Args:
      defaults: the data set's `Settings`, or another dataclass of `setting` fields.
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


def parse(argv: list[str], takes_paths: bool = False) -> list[str]:
    """Parses the command line; an invalid one ends the process with one line and status 2.

    Args:
      argv: the command line.
      takes_paths: see `start`.

    Returns:
      The command line without its flags.
    """
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:  # ValueError: a --flagfile that is not text
        fail(str(error))
    except SystemExit:  # after --help, which absl counts as a failure
        raise SystemExit(0) from None
    if len(rest) > 1 and not takes_paths:
        fail(f"unexpected argument {rest[1]!r}: every setting is given as --name=value; see --help")
    return rest


def _flag_values(kind: Any) -> dict[str, Any]:
    """The values of the flags, by the names of a dataclass's fields."""
    return {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(kind)}


def from_flags(kind: type[Settings]) -> Settings:
    """The settings on the command line, checked against each other.

    Args:
      kind: `Settings`, or the subclass of the data set.

    Raises:
      SettingsError: settings that do not fit together.
    """
    values = _flag_values(kind)
    given = {name for name in values if flags.FLAGS[name].present}
    presets = Presets(**_flag_values(Presets)).defaults(values)
    values |= {name: value for name, value in presets.items() if name not in given}
    # If only one of the sizes is given, the other is cut to its length; so is the depth.
    for sizes, others in (("latent_sizes", "hidden_sizes"), ("hidden_sizes", "latent_sizes")):
        if sizes in given and others not in given:
            values[others] = values[others][: len(values[sizes])]
    if given & {"latent_sizes", "hidden_sizes"} and "depth" not in given:
        values["depth"] = len(values["latent_sizes"])
    settings = kind(**values)
    settings_lib.check(settings)
    return settings


# Errors


def fail(message: str, status: int = 2) -> NoReturn:
    """Ends the process with one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the process with one line for every expected error; the status tells its kind."""
    try:
        yield
    except BrokenPipeError:  # nobody reads on, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to flush
        raise SystemExit(128 + signal.SIGPIPE) from None
    except RunError as error:
        fail(str(error), error.status)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except OSError as error:
        path = error.filename2 or error.filename  # the second is where a file was to be moved
        if path is None and error.errno not in NO_ROOM:
            raise
        fail(f"cannot use {path or 'a file'} ({error.strerror}); {what_to_do(error)}")
    except Exception as error:
        # These import JAX.
        from experiments import processes
        from lvae_jax.data import DataError

        if isinstance(error, DataError):
            fail(_with_flags(str(error)))
        processes.end_if_one_is_lost(error)
        raise


def _with_flags(message: str) -> str:
    """A message of `lvae_jax.data`, with flags in place of its functions' arguments."""
    message = message.replace("set check_scale=False", "give --nocheck_scale")
    message = re.sub(r"(?<!\S)observation='(\w+)'", r"--observation=\1", message)
    return re.sub(r"(?<!\S)(data_dir|tfds_dir|train_labels|test_labels)\b", r"--\1", message)


@contextlib.contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """SIGINT ends the process at once, without an exception, until a run handles it itself.

    An exception is not safe in the middle of an import or of a callback from compiled code: the
    process may crash, or the exception may be caught and ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script
        yield
        return

    def end(*_: object) -> None:
        print("error: interrupted", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
