"""SIGTERM and SIGINT: a run ends between two steps, with its work saved."""

import os
import signal
import socket
import sys
import threading
from typing import Any

from experiments.errors import Interrupted
from experiments.run import devices

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Remembers the first signal instead of ending the process; use as a context manager.

    A SIGINT after it ends the process at once: whoever types Ctrl-C twice does not want to wait.
    Python calls its handlers only between two of its own instructions, and a program may compile or
    compute for minutes within one; so the signals are read by a thread, from a socket that the
    system's handler writes their numbers to. Only the main thread may set handlers: in a run of
    another one, signals do what they did before.
    """

    def __init__(self) -> None:
        self.received = 0
        """The number of the signal, once there was one."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        self._handles = threading.current_thread() is threading.main_thread()
        if not self._handles:
            return self
        self._reading, self._written = socket.socketpair()
        self._written.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._written.fileno())
        self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._handles:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._written.close()
        self._thread.join()
        self._reading.close()

    def _read(self) -> None:
        while read := self._reading.recv(1):  # nothing once the other end is closed
            if read[0] not in SIGNALS:
                continue
            if self.received and read[0] == signal.SIGINT:
                os._exit(128 + signal.SIGINT)
            self.received = self.received or read[0]
            if self.received == signal.SIGINT and devices.writes():
                line = "SIGINT: finishing and saving this step; press Ctrl-C again to stop at once"
                print(line, file=sys.stderr, flush=True)

    def check(self, message: str) -> None:
        """Ends the run if any of its processes has been asked to.

        Raises:
          Interrupted: with the message.
        """
        received = int(devices.agree(self.received)[0])
        if received:
            raise Interrupted(received, message)
