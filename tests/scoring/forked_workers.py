"""Starts Ray's workers as forks of a process that has imported everything: each would import for seconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import gptailor_merge.runs.execution
import gptailor_merge.scoring.workplace  # noqa: F401

WORKER = "default_worker.py"

PYTHON = f"""#!{sys.executable} -SE
import json, os, socket, sys

if not any(argument.endswith({WORKER!r}) for argument in sys.argv):
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.path.join(os.path.dirname(os.path.abspath(__file__)), "socket"))
    connection.sendall(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode() + b"\\n")
    connection.recv(1)  # the worker holds the other end
"""


@contextmanager
def forked_workers(directory: Path) -> Iterator[None]:
    """Lets Ray that is started inside the block start its workers as forks, until the block ends."""
    executable = directory / "python"
    executable.write_text(PYTHON)
    executable.chmod(0o700)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen(64)
        parent = server.Process(target=_serve, args=(listener,))
        parent.start()
        try:
            with mock.patch.object(sys, "executable", str(executable)):
                yield
        finally:
            parent.kill()
            parent.join()


def _serve(listener: socket.socket) -> None:
    """Forks a worker for each connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        arguments, environment, directory = json.loads(connection.makefile().readline())
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(directory)
        worker = next(n for n, argument in enumerate(arguments) if argument.endswith(WORKER))
        sys.argv = arguments[worker:]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            os._exit(0)
