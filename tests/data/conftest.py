"""Fixtures of the data sets' tests."""

import contextlib
import functools
import http.server
import threading

import pytest


@pytest.fixture
def serve(monkeypatch):
    """Serves a folder at an address of this machine; some files break off half way."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        broken: tuple[str, ...] = ()

        def log_message(self, *args):
            pass

        def copyfile(self, source, outputfile):
            content = source.read()
            broken = self.path.removeprefix("/") in self.broken
            outputfile.write(content[: len(content) // 2] if broken else content)

    with contextlib.ExitStack() as stack:

        def start(directory, broken=()):
            Handler.broken = broken
            handler = functools.partial(Handler, directory=directory)
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.enter_context(server)
            threading.Thread(target=server.serve_forever).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/"

        yield start
