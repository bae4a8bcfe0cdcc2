"""Decides when a run saves a checkpoint, and stops it after a signal."""

import time

import jax

from experiments import processes
from experiments.errors import Interrupted
from experiments.run.setup import Experiment
from experiments.run.signals import Interruption
from experiments.store.workdir import Workdir
from lvae_jax.training import TrainState


class Checkpointing:
    """Saves a run's state every --checkpoint_seconds, at its end, and before a signal stops it."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Workdir,
        interruption: Interruption,
        command: str | None,
    ):
        """Starts the clock.

        Args:
          experiment: the run.
          workdir: its folder.
          interruption: receives the process's signals.
          command: the command line that resumes the run, if there is one.
        """
        self._workdir, self._interruption = workdir, interruption
        self._seconds = experiment.settings.checkpoint_seconds
        self._last_step = experiment.settings.epochs * experiment.steps_per_epoch
        alone = jax.process_count() == 1  # other processes have other command lines
        same = "the same command resumes it"
        self._resume = f"resume with: {command}" if command and alone else same
        self._saved = time.monotonic()

    def after(self, state: TrainState, step: int, score: float | None) -> None:
        """Saves the state if a checkpoint is due, and stops the run after a signal.

        Args:
          state: after the step.
          step: counted over the whole run.
          score: quality of the state, higher is better; None if it was not measured.

        Raises:
          Interrupted: a signal stopped the run; the state is saved.
          WorkdirError: the disk is full, or cannot be written.
        """
        finished = step == self._last_step
        waited = time.monotonic() - self._saved
        received, due = processes.agree(
            self._interruption.received, finished or waited >= self._seconds
        )
        if received or due:
            self._workdir.save(state, step, score)
            self._saved = time.monotonic()
        if received and not finished:
            raise Interrupted(
                int(received),
                f"stopped after step {step}, which is saved in {self._workdir.path}; "
                f"{self._resume}",
            )

    def stop_if_interrupted(self) -> None:
        """Stops an evaluation after a signal.

        Raises:
          Interrupted: a signal was received.
        """
        self._interruption.check(
            f"stopped while evaluating; training is done and saved in {self._workdir.path}; "
            f"{self._resume}"
        )
