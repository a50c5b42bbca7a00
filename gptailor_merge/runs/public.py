"""What of a run others may see: names of models and files, never where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_FILES = ("file",)
"""Keys whose values are files, however they are written."""


def public_name(model: str) -> str:
    """A Hub id as it is; of a directory its name, also on both sides of an adapter's plus."""
    first, plus, adapter = model.partition("+")
    if not _is_path(first):
        return model if not _is_path(adapter) else f"{first}+{_last(adapter)}"
    # Behind the plus of a directory's name may be more of the path.
    return f"{_last(first)}{plus}{_last(adapter)}" if plus and _last(adapter) else _last(model)


def public(value: Any) -> Any:
    """A loaded YAML document with the last part of every path in it."""
    if isinstance(value, Mapping):
        return {public(key): _last(v) if key in _FILES else public(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    return public_name(value) if isinstance(value, str) and _is_path(value.partition("+")[0]) else value


def _is_path(text: str) -> bool:
    rooted = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return rooted or text.startswith(("./", "../", "~"))


def _last(path: Any) -> str:
    return PureWindowsPath(str(path)).name
