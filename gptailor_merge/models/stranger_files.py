"""Reads the small files of model directories, which strangers may have written: bounded, and only their own.

A directory can hold a FIFO that never answers, a device, a file without an end, or a link to somebody's
private files, which a merge would copy and a push would publish.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from gptailor_merge.errors import FamilyError

LARGEST_JSON = 32 * 1024 * 1024
"""Bytes. The index of the largest models, with some 140,000 tensors, is half as large."""


DEEPEST_JSON = 64
"""Levels of lists and objects in each other; configs have five or six."""


LARGEST_NUMBER = 2**63 - 1
"""Larger whole numbers fit into no tensor's shape."""


TEMPLATES = "additional_chat_templates"
"""The only directory inside a model directory from which transformers reads files by itself."""


def check_entries(directory: Path) -> None:
    """Checks that a model directory holds regular files, and no link that leaves it.

    Links into the Hub's cache are allowed, since the cache itself consists of them. Directories inside are
    not looked into, except for that of chat templates.

    Raises:
        FamilyError: names the first file that is something else.
    """
    roots = [directory.resolve(), Path(constants.HF_HUB_CACHE).resolve()]
    if directory.resolve().parent.name == "snapshots":  # a cache in another place
        roots.append(directory.resolve().parent.parent / "blobs")
    try:
        entries = sorted(_entries(directory), key=lambda entry: entry.path)
    except OSError as error:
        raise FamilyError(f"{directory}: cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.is_symlink() and not _is_inside(Path(entry.path), roots):
            raise FamilyError(
                f"{entry.path} is a link that leaves its directory, and nothing is read or copied through "
                "such links; put the file itself in its place"
            )
        if not (entry.is_symlink() or entry.is_file() or entry.is_dir()):
            raise FamilyError(f"{entry.path} is no regular file, but {_kind(entry.stat().st_mode)}")


def read_json(file: Path) -> Any:
    """Reads a JSON file of a model directory.

    Raises:
        FileNotFoundError: there is no such file.
        FamilyError: it is no regular file, too large, not UTF-8, no JSON, nested too deeply, or holds a
            whole number that no tensor can have.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise FamilyError(f"{file}: expected a regular file, found {_kind(mode)}")
            content = stream.read(LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise FamilyError(f"{file}: larger than {LARGEST_JSON:,} bytes, more than any such file needs")
        document = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        text = f"byte {error.object[error.start]:#x} at {error.start} is no UTF-8"
        raise FamilyError(f"{file}: cannot be read: {text}") from None
    except RecursionError:
        raise FamilyError(f"{file}: lists and objects are nested more than {DEEPEST_JSON} deep") from None
    except OSError as error:
        raise FamilyError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise FamilyError(f"{file}: cannot be read: no valid JSON: {error}") from None
    _check_values(file, document)
    return document


def read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object; see `read_json`."""
    document = read_json(file)
    if not isinstance(document, dict):
        kind = "null" if document is None else type(document).__name__
        raise FamilyError(f"{file}: expected an object, found {kind}")
    return document


def _check_values(file: Path, document: Any) -> None:
    level = [document]
    for _ in range(DEEPEST_JSON):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
                text = f"a whole number of {value.bit_length()} bits; none has more than 63"
                raise FamilyError(f"{file}: {text}")
        if not inner:
            return
        level = inner
    raise FamilyError(f"{file}: lists and objects are nested more than {DEEPEST_JSON} deep")


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Yields what transformers and mergekit may open or copy."""
    with os.scandir(directory) as entries:
        listed = list(entries)
    for entry in listed:
        if not Path(entry.path).is_dir():  # an entry's own is_dir fails on links in a circle
            yield entry
        elif entry.name == TEMPLATES:
            yield entry
            if not entry.is_symlink():
                with os.scandir(entry.path) as templates:
                    yield from templates


def _is_inside(link: Path, roots: list[Path]) -> bool:
    try:
        target = link.resolve()
    except (OSError, RuntimeError):  # a circle of links
        return False
    return any(target.is_relative_to(root) for root in roots)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISFIFO: "a FIFO",
        stat.S_ISSOCK: "a socket",
        stat.S_ISDIR: "a directory",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for matches, name in kinds.items() if matches(mode)), "something else")
