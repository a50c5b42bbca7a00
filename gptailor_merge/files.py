"""Writes files and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptailor_merge.errors import ConfigError, UnwritableError

STAGED = "gptailor-staged"
"""A part of the names of files and directories that are not whole yet."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def refuse_existing(out: Path) -> None:
    """Raises a ConfigError if writing a directory would overwrite something."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty directory; choose another or remove it")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the file system inside the block into sentences about a file or directory.

    Raises:
        UnwritableError: there is no room.
        ConfigError: the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise (UnwritableError if error.errno in _NO_ROOM else ConfigError)(message) from None


def make_directory(directory: Path) -> None:
    """Makes a directory and those above it; one that exists stays.

    Raises:
        ConfigError, UnwritableError: that is not possible.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{directory} cannot be made a directory: {error.strerror or error}"
        raise (UnwritableError if error.errno in _NO_ROOM else ConfigError)(message) from None


@contextmanager
def staging(out: Path, *, marker: str | None = None, leftovers: Collection[str] = ()) -> Iterator[Path]:
    """Yields a directory beside `out`, which becomes `out` when the block ends without an error.

    An existing `out` is replaced; after an error the new directory is removed and `out` is untouched. Where
    `out` is a link to a directory, e.g. on a larger disk, that directory is replaced and the link stays.

    An old directory that lacks the marker, or has files that somebody has put there, is not deleted but kept
    as `out.replaced-N`.

    Args:
        marker: the name of a file that every directory has that was written here; None where there is none.
        leftovers: patterns of files that the writer of `out` may have left in it.

    Raises:
        ConfigError, UnwritableError: the place cannot be written.
    """
    if out.is_symlink():
        out = out.resolve()
    make_directory(out.parent)
    with writing(out):
        directory = Path(tempfile.mkdtemp(prefix=staged_prefix(out), dir=out.parent))
    try:
        yield directory
        with writing(out):
            grant_ordinary_access(directory)
            if not out.exists() or (out.is_dir() and not any(out.iterdir())):
                directory.rename(out)
            elif not (marker and (out / marker).is_file()) or any(_foreign(out, directory, leftovers)):
                out.rename(_free_name(out))
                directory.rename(out)
            else:
                old = Path(tempfile.mkdtemp(prefix=staged_prefix(out), dir=out.parent))
                out.rename(old)
                directory.rename(out)
                shutil.rmtree(old)
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise UnwritableError(f"{out} cannot be written: {error.strerror}") from None
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


def write_beside(file: Path, content: str | bytes) -> None:
    """Writes a file, texts in UTF-8, atomically: other processes see the old content or all of the new.

    Raises:
        ConfigError, UnwritableError: the place cannot be written.
    """
    beside = file.with_name(f"{staged_prefix(file)}{os.getpid()}")
    try:
        with writing(file):
            with beside.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(file)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def creating(file: Path, content: str) -> Iterator[Path]:
    """Writes a new file in UTF-8 under another name, which it yields, and names it when the block has ended.

    A file that has the name already stays as it is, and an error leaves nothing.

    Raises:
        ConfigError: the name is taken, or the place cannot be written.
        UnwritableError: there is no room.
    """
    if not file.parent.is_dir():
        raise ConfigError(f"{file} cannot be written: no such directory")
    beside = file.with_name(f"{staged_prefix(file)}{os.getpid()}")
    try:
        write_beside(beside, content)
        yield beside
        try:
            os.link(beside, file)
        except FileExistsError:
            raise ConfigError(f"{file} exists; choose another name or remove it") from None
        except OSError:  # a file system without links
            with writing(file), file.open("x", encoding="utf-8") as stream:
                stream.write(content)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def staged_prefix(path: Path) -> str:
    """Returns how the names of what is written beside a file or directory begin, until it is whole."""
    return f".{path.name}.{STAGED}-"


def sweep(path: Path) -> None:
    """Removes what killed processes have left beside a file or directory that they were writing.

    Call it where nobody else can be writing the same.
    """
    target = path.resolve() if path.is_symlink() else path
    for staged in target.parent.glob(f"{glob.escape(staged_prefix(target))}*"):
        if staged.is_dir() and not staged.is_symlink():
            shutil.rmtree(staged, ignore_errors=True)
        else:
            with suppress(OSError):
                staged.unlink()


def _foreign(old: Path, new: Path, leftovers: Collection[str]) -> Iterator[Path]:
    """Yields the files of an old directory that neither the new one has nor the writer may have left."""
    for file in old.rglob("*"):
        name = file.relative_to(old)
        if not file.is_dir() and not (new / name).exists() and not any(map(name.match, leftovers)):
            yield file


def _free_name(out: Path) -> Path:
    names = (out.with_name(f"{out.name}.replaced-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())
