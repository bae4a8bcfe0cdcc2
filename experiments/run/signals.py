"""SIGTERM and SIGINT stop a run between two steps, after its work is saved."""

import os
import signal
import socket
import sys
import threading
from typing import Any

from experiments import processes
from experiments.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Remembers the first signal instead of ending the process; use as a context manager.

    A further SIGINT ends the process at once. Python runs signal handlers only between bytecode
    instructions, and one instruction may compile or compute for minutes. So a thread reads the
    signals, from a socket that the interpreter's C handler writes their numbers to. Only the main
    thread can set handlers; a run in another thread leaves signals as they are.
    """

    def __init__(self) -> None:
        self.received = 0
        """The number of the first signal; 0 before."""
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
            if self.received == signal.SIGINT and processes.is_first():
                line = "SIGINT: finishing and saving this step; press Ctrl-C again to stop at once"
                print(line, file=sys.stderr, flush=True)

    def check(self, message: str) -> None:
        """Stops the run if any of its processes has received a signal.

        Raises:
          Interrupted: with the message.
        """
        received = int(processes.agree(self.received)[0])
        if received:
            raise Interrupted(received, message)
