"""From the command line to a run or another command: what all modules with a command share."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, logging

from experiments import settings as settings_lib
from experiments.errors import RunError
from experiments.settings import Settings
from experiments.store.files import NO_ROOM


def main(load: Callable[[Any], Any], defaults: Settings) -> None:
    """Parses the flags, loads the data and runs.

    Args:
      load: loads the `Dataset` that the settings ask for.
      defaults: of the flags.
    """

    def train_and_evaluate() -> None:
        settings = settings_lib.from_flags(type(defaults))
        with _interrupted_at_once():
            # Only now what takes seconds to import.
            from experiments.run import compilation_cache, devices
            from experiments.run.loop import run

            compilation_cache.enable(settings.compilation_cache)
            devices.start_processes(settings)
            dataset = devices.first_alone(lambda: load(settings))  # it may have to be prepared
            run(settings, dataset, experiment_name=Path(sys.argv[0]).stem)

    _start(train_and_evaluate, defaults, arguments="")


def start(command: Callable[..., None], defaults: Any, arguments: str = "") -> None:
    """Parses the flags and calls a command.

    Args:
      command: takes the settings, then the arguments that are not flags.
      defaults: of the flags, a dataclass of `setting` fields.
      arguments: what may be given besides flags; nothing if empty.
    """
    kind = type(defaults)

    def call(*given: str) -> None:
        command(kind(**settings_lib.flag_values(kind)), *given)

    _start(call, defaults, arguments)


def _start(command: Callable[..., None], defaults: Any, arguments: str) -> None:
    settings_lib.define_flags(defaults)
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step of every save

    def call(argv: list[str]) -> None:
        with errors_in_one_line():
            command(*argv[1:])

    app.run(call, flags_parser=lambda argv: settings_lib.parse(argv, arguments))


@contextlib.contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """SIGINT ends the process without an exception, but where a run waits for it.

    An exception in the middle of an import is not safe: compiled modules abort at it, and others
    catch it and go on as if nothing had been typed. Data sets import their own modules too.
    """

    def end(*_: object) -> None:
        print("error: interrupted", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Every foreseen error ends the process with one line; the status says which kind it is."""
    try:
        yield
    except RunError as error:
        settings_lib.fail(str(error), error.status)
    except KeyboardInterrupt:
        settings_lib.fail("interrupted; the same command goes on from the last checkpoint", 130)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        settings_lib.fail(
            f"cannot write {error.filename or 'a file'} ({error.strerror}); "
            "free space and give the same command again"
        )
    except Exception as error:
        from lvae_jax.data import DataError

        if isinstance(error, DataError):
            settings_lib.fail(str(error))
        raise
