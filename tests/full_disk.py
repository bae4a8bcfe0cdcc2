"""A disk that is full, to the tests' own process."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
