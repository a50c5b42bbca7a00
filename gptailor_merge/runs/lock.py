"""The lock on a run: one process writes it at a time.

The lock belongs to the process and ends with it, however it ends. Reading a run needs no lock.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from gptailor_merge.errors import ConfigError
from gptailor_merge.files import make_directory, writing
from gptailor_merge.runs.directory import Directory

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        """Locks a byte far behind the text, which others may then still read."""
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


NAME = ".lock"
"""The name of the file in the run directory; it is there while the run is being written."""


_HELD: set[int] = set()
"""The descriptors of the locks that this process holds."""


@contextmanager
def locked(directory: Path, *, advice: str = "wait until it ends", make: bool = False) -> Iterator[None]:
    """Holds the lock on a run directory.

    Args:
        advice: says in the message what to do where another process holds it.
        make: makes the directory first. Where it is False and there is no directory, nothing is locked.

    Raises:
        ConfigError: another process is writing the run; the message names it.
        ConfigError, UnwritableError: the directory cannot be made or written.
    """
    if make:
        make_directory(directory)
    elif not directory.is_dir():
        yield
        return
    file = directory / NAME
    with writing(directory):
        descriptor = _locked_file(file)
    if descriptor is None:
        raise ConfigError(f"{directory} is being written by {_holder(file)}; {advice}")
    _HELD.add(descriptor)
    try:
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().isoformat(sep=" ", timespec="seconds"),
        }
        with suppress(OSError):  # on a full disk the lock holds without its text
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        _HELD.discard(descriptor)
        os.close(descriptor)


@contextmanager
def locked_around(path: Path) -> Iterator[None]:
    """Holds the lock on the run in which a file or directory is to be written; elsewhere nothing is locked.

    Raises:
        ConfigError: another process is writing the run.
    """
    run = Directory(path.absolute().parent)
    if not (run.config.is_file() or run.journal.is_file()):
        yield
        return
    with locked(run.path):
        yield


def _locked_file(file: Path) -> int | None:
    """Returns a locked descriptor of the file, or None where another process holds the lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _take(descriptor)
            # Who ends removes the file, so that a lock on a removed one is worth nothing.
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _holder(file: Path) -> str:
    """Says which process holds a lock, as far as its file tells."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"process {int(holder['process'])} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"


def _forget_locks() -> None:
    """Closes in a forked child what its parent has locked: a child must not keep the lock alive."""
    for descriptor in _HELD:
        with suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
