"""From the command line to a run: what the modules of the data sets share."""

from collections.abc import Callable
from typing import Any

from absl import app, logging

from experiments import settings as settings_lib
from experiments.settings import Settings


def main(
    load: Callable[[Any], Any],
    defaults: Settings,
    paper_log_likelihoods: dict[tuple[str, int], float] | None = None,
) -> None:
    """Parses the flags, loads the data and runs; every foreseen error is one line and status 2.

    Args:
      load: loads the `Dataset` that the settings ask for.
      defaults: of the flags.
      paper_log_likelihoods: the paper's test log-likelihoods by model and depth.
    """
    settings_lib.define_flags(defaults)
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step of every save
    app.run(
        lambda _: _main(load, type(defaults), paper_log_likelihoods or {}),
        flags_parser=settings_lib.parse,
    )


def _main(
    load: Callable[[Any], Any],
    kind: type[Settings],
    paper_log_likelihoods: dict[tuple[str, int], float],
) -> None:
    try:
        settings = settings_lib.from_flags(kind)
    except settings_lib.SettingsError as error:
        settings_lib.fail(str(error))

    # Only now what takes seconds to import.
    from experiments.run import NonFiniteError, run
    from experiments.workdir import WorkdirError
    from lvae_jax.data import DataError

    try:
        run(settings, load(settings), paper_log_likelihoods.get((settings.model, settings.depth)))
    except (settings_lib.SettingsError, DataError, WorkdirError) as error:
        settings_lib.fail(str(error))
    except NonFiniteError as error:
        settings_lib.fail(str(error), status=3)
    except KeyboardInterrupt:
        settings_lib.fail("interrupted; the same command goes on from the last checkpoint", 130)
