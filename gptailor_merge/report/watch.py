"""Serves a run's page while the search goes on, to this machine alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Lock
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from gptailor_merge.errors import ConfigError, InputError, TailorError
from gptailor_merge.report.page import PageContent, content, page
from gptailor_merge.report.view import view
from gptailor_merge.runs.run import Run

HOST = "127.0.0.1"


CONNECTIONS = 32
"""The number of connections that are served at once; a browser opens about six."""


IDLE_SECONDS = 30
"""A connection that has been silent for so long is closed."""


NOTHING_YET = PageContent(
    "Waiting for the first candidates", "<h1>Waiting for the first candidates …</h1>", "{}"
)


class Watched:
    """The page of a run, rendered again when the run's files have changed."""

    def __init__(self, run: Run, others: Sequence[Run] = ()) -> None:
        """
        Raises:
            InputError: the directory holds no run, not even one that has just begun.
        """
        if not run.config.is_file():
            raise InputError("no such run; expected a run directory of gptailor-evolve", file=run.path)
        self._run, self._others = run, tuple(others)
        self._last: tuple[str, PageContent] | None = None
        self._lock = Lock()

    @property
    def stamp(self) -> str:
        """The state of the files that the page is made of; it changes when they do."""
        stamps = []
        for file in (self._run.journal, self._run.best):
            try:
                stat = file.stat()
            except FileNotFoundError:
                stamps.append("none")
            else:
                stamps.append(f"{stat.st_mtime_ns:x}-{stat.st_size:x}")
        return ".".join(stamps)

    def state(self) -> tuple[str, PageContent]:
        """Returns the stamp, and the content for it."""
        with self._lock:
            # The stamp is taken before the files are read, so that no change is missed.
            stamp = self.stamp
            if self._last is None or self._last[0] != stamp:
                self._last = stamp, self._content()
            return self._last

    def _content(self) -> PageContent:
        if not self._run.journal.is_file():
            return NOTHING_YET
        return content(view(self._run.record(), [other.record() for other in self._others]))


class Server(ThreadingHTTPServer):
    """Serves one page on 127.0.0.1; use it as a context manager and call `serve_forever`.

    Raises:
        ConfigError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, watched: Watched, port: int = 0) -> None:
        """
        Args:
            port: 0 takes a free one.
        """
        self.watched = watched
        self._free = BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__((HOST, port), _PageHandler)
        except OSError as error:
            message = f"--port {port} cannot be had ({error.strerror}); choose another, or 0 for a free one"
            raise ConfigError(message) from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection in a thread of its own, or closes it where too many are open."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection until it is closed."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Takes no notice: a browser that goes away is no error."""


class _PageHandler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    _HTML: ClassVar[str] = "text/html; charset=utf-8"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        # A web page that resolves its own name to this machine (DNS rebinding) is not served.
        hosts = [f"{name}:{self.server.server_port}" for name in (HOST, "localhost")]
        if self.headers.get("Host") not in hosts:
            return self._answer(HTTPStatus.FORBIDDEN)
        if address.path not in ("/", "/state"):
            return self._answer(HTTPStatus.NOT_FOUND)
        try:
            stamp, page_content = self.server.watched.state()
        except Exception as error:
            # A journal that another program is writing over, or has damaged, can fail in any way.
            sentence = str(error) if isinstance(error, TailorError) else "the run cannot be read now"
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{sentence}\n")
        if address.path == "/":
            return self._answer(HTTPStatus.OK, page(page_content, stamp=stamp), self._HTML)
        if parse_qs(address.query).get("since") == [stamp]:
            return self._answer(HTTPStatus.NO_CONTENT)
        text = json.dumps({"stamp": stamp, "title": page_content.title, "main": page_content.main})
        # The figures are JSON already.
        return self._answer(
            HTTPStatus.OK, f'{text[:-1]}, "figures": {page_content.figures}}}', "application/json"
        )

    def _answer(self, status: HTTPStatus, text: str = "", kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: a line for every request, every two seconds, helps nobody."""
