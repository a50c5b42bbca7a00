"""Writes files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptailor_merge.errors import ConfigError


def refuse_existing(out: Path) -> None:
    """Raises a ConfigError if writing a directory would overwrite something."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty directory; choose another or remove it")


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Yields a directory beside `out`, which becomes `out` when the block ends without an error.

    An existing `out` is replaced; after an error the new directory is removed and `out` is untouched. A
    link, perhaps to a larger disk, stays, and the directory behind it is replaced.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield directory
        grant_ordinary_access(directory)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
            out.rename(old)
            directory.rename(out)
            shutil.rmtree(old)
        else:
            directory.rename(out)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def grant_ordinary_access(directory: Path) -> None:
    """Gives a new directory and its files the permissions that files have here.

    mkdtemp grants access to the owner alone, and so does safetensors, which writes temporary files, too.
    """
    mask = os.umask(0)
    os.umask(mask)
    directory.chmod(0o777 & ~mask)
    for file in directory.rglob("*"):
        state = file.lstat()
        # A file with another name belongs to somebody else's directory, too.
        if stat.S_ISREG(state.st_mode) and stat.S_IMODE(state.st_mode) == 0o600 and state.st_nlink == 1:
            file.chmod(0o666 & ~mask)


def write_beside(file: Path, text: str) -> None:
    """Writes a text file atomically: other processes see the old content or all of the new."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
