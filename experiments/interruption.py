"""SIGTERM and SIGINT: a run ends between two steps, with its work saved."""

import signal
from types import FrameType
from typing import Any

from experiments import devices

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """A run that was asked to end has ended; the message is one line."""

    def __init__(self, received: int, message: str):
        super().__init__(message)
        self.received = received
        """The number of the signal."""


class Interruption:
    """Remembers the first signal instead of ending the process; use as a context manager.

    A second SIGINT ends the process at once: whoever types Ctrl-C twice does not want to wait.
    """

    def __init__(self) -> None:
        self.received = 0
        """The number of the signal, once there was one."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or number
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def check(self, message: str) -> None:
        """Ends the run if any of its processes has been asked to.

        Raises:
          Interrupted: with the message.
        """
        received = int(devices.agree(self.received)[0])
        if received:
            raise Interrupted(received, f"{signal.Signals(received).name}: {message}")
