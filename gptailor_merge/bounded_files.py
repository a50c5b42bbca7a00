"""Reads whole files that a stranger may have put there: regular ones only, and only up to a size."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_TEXT = 4 * 1024**2
"""Bytes that a document, e.g. a recipe, a config or an index of shards, may have."""


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def refuse_special(file: Path | str) -> None:
    """Checks that a path is that of a regular file, without opening it: a pipe may never answer.

    Raises:
        FileNotFoundError: there is no such file, and there cannot be one if the name is no name of a file.
        OSError: it is something else; says what.
    """
    try:
        mode = os.stat(file).st_mode
    except ValueError:  # a NUL in the name
        raise FileNotFoundError(f"no such file, found {str(file)!r}") from None
    if not stat.S_ISREG(mode):
        raise OSError(f"expected a file, found {_KINDS.get(stat.S_IFMT(mode), 'a directory')}")


def read_bounded(file: Path | str, most: int = MOST_TEXT) -> bytes:
    """Returns the content of a regular file of at most `most` bytes.

    Raises:
        OSError: see refuse_special; or the file is larger, or cannot be read.
    """
    refuse_special(file)
    with open(file, "rb") as stream:
        content = stream.read(most + 1)  # a file may grow, and those of /proc have no size
    if len(content) > most:
        raise OSError(f"expected at most {most:,} bytes, found more")
    return content
