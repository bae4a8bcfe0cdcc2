"""Progress: a bar on a terminal, a line every half minute in a log."""

import sys
import time

from tqdm import tqdm


class Progress:
    """Counts steps of a known total; use as a context manager.

    On a terminal it is a bar with the time left; elsewhere a line at most every `interval` seconds,
    and one at the end. With `shown=False` it prints nothing.
    """

    def __init__(
        self,
        description: str,
        total: int,
        done: int = 0,
        interval: float = 30.0,
        shown: bool = True,
    ):
        self.description, self.total, self.done, self.interval = description, total, done, interval
        self.first, self.started = done, time.monotonic()
        self.reported = self.started
        self.shown = shown
        self.bar = (
            tqdm(desc=description, total=total, initial=done, dynamic_ncols=True, leave=True)
            if shown and sys.stderr is not None and sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, done: int, note: str = "") -> None:
        """Reports that `done` of the total are done, with a note."""
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.done)
        self.done = done
        now = time.monotonic()
        due = now - self.reported >= self.interval or done == self.total
        if self.shown and self.bar is None and due:
            self.reported = now
            seconds = (now - self.started) / max(done - self.first, 1) * (self.total - done)
            left = tqdm.format_interval(seconds)
            line = f"{self.description} {done}/{self.total}  {note}  {left} left"
            print(line, file=sys.stderr, flush=True)
