"""A run's page while the search goes on, served to this machine alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from gptailor_merge.errors import ConfigError, InputError
from gptailor_merge.report.page import Content, content, page
from gptailor_merge.report.view import view
from gptailor_merge.runs.run import Run

HOST = "127.0.0.1"


NOTHING_YET = Content("Waiting for the first candidates", "<h1>Waiting for the first candidates …</h1>", "{}")


class Watched:
    """A run as it was when its files last changed; rendered once for each state."""

    def __init__(self, run: Run, others: Sequence[Run] = ()) -> None:
        """
        Raises:
            InputError: the directory holds no run, not even one that has just begun.
        """
        if not run.config.is_file():
            raise InputError("no such run; expected a run directory of gptailor-evolve", file=run.path)
        self._run, self._others = run, tuple(others)
        self._known: tuple[str, Content] | None = None
        self._lock = Lock()

    @property
    def stamp(self) -> str:
        """Differs where a file that the page is made of has changed."""
        found = []
        for file in (self._run.journal, self._run.best):
            try:
                known = file.stat()
            except FileNotFoundError:
                found.append("none")
            else:
                found.append(f"{known.st_mtime_ns:x}-{known.st_size:x}")
        return ".".join(found)

    def state(self) -> tuple[str, Content]:
        """The stamp and what is shown."""
        with self._lock:
            # The stamp is older than what is read, so that nothing is missed.
            stamp = self.stamp
            if self._known is None or self._known[0] != stamp:
                self._known = stamp, self._content()
            return self._known

    def _content(self) -> Content:
        if not self._run.journal.is_file():
            return NOTHING_YET
        return content(view(self._run.record(), [other.record() for other in self._others]))


class Server(ThreadingHTTPServer):
    """Serves one page on 127.0.0.1. Use as a context manager and call `serve_forever`.

    Raises:
        ConfigError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, watched: Watched, port: int = 0) -> None:
        """
        Args:
            port: 0 takes one that is free.
        """
        self.watched = watched
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            message = f"--port {port} cannot be had ({error.strerror}); choose another, or 0 for a free one"
            raise ConfigError(message) from None

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    _HTML: ClassVar[str] = "text/html; charset=utf-8"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        # A page of the web that resolves its own name to this machine is not served.
        own = [f"{name}:{self.server.server_port}" for name in (HOST, "localhost")]
        if self.headers.get("Host") not in own:
            return self._answer(HTTPStatus.FORBIDDEN)
        if address.path not in ("/", "/state"):
            return self._answer(HTTPStatus.NOT_FOUND)
        stamp, shown = self.server.watched.state()
        if address.path == "/":
            return self._answer(HTTPStatus.OK, page(shown, stamp=stamp), self._HTML)
        if parse_qs(address.query).get("since") == [stamp]:
            return self._answer(HTTPStatus.NO_CONTENT)
        text = json.dumps({"stamp": stamp, "title": shown.title, "main": shown.main})
        # The figures are JSON already.
        return self._answer(HTTPStatus.OK, f'{text[:-1]}, "figures": {shown.figures}}}', "application/json")

    def _answer(self, status: HTTPStatus, text: str = "", kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line for every question of every two seconds is of no use."""
