"""The one place that decides what of a run may leave this machine.

Models and files are shown by name, never by where they lie, and nothing that is published may hold the
token or a path of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import safe_open

from gptailor_merge.errors import MergeFailedError

Names = Mapping[str, str]
"""Model or file of this machine -> what the public calls it."""


WEIGHTS = "*.safetensors"
"""The pattern of the files that hold weights."""


_TOKEN = re.compile(rb"hf_(?:oauth_|jwt_)?[A-Za-z0-9]{16,}")
"""The form of the Hub's tokens, whoever they belong to."""


_FILE_KEYS = ("file",)
"""Keys whose values are files, even where a value does not look like a path."""


def public_name(model: str) -> str:
    """Returns a Hub id as it is, and the last part of a directory, on both sides of an adapter's plus.

    >>> public_name("org/model@main")
    'org/model@main'
    >>> public_name("/home/alice/base+org/adapter")
    'base+adapter'
    """
    first, plus, adapter = model.partition("+")
    if not _is_path(first):
        return model if not _is_path(adapter) else f"{first}+{_last(adapter)}"
    # A directory's name may itself hold a plus, with more of the path behind it.
    return f"{_last(first)}{plus}{_last(adapter)}" if plus and _last(adapter) else _last(model)


def public(document: Any, names: Names | None = None) -> Any:
    """Returns a recipe, a config or another document of YAML with the last part of every path in it.

    Args:
        names: models, and files that have a public name of their own.

    >>> public({"base_model": "/home/alice/base", "weights": {"/home/alice/math": 0.5}})
    {'base_model': 'base', 'weights': {'math': 0.5}}
    >>> public(["/home/alice/base"], {"/home/alice/base": "org/base@v1"})
    ['org/base@v1']
    """
    names = names or {}
    if isinstance(document, Mapping):
        return {
            public(key, names): (
                names.get(value) or _last(value)
                if key in _FILE_KEYS and isinstance(value, str)
                else public(value, names)
            )
            for key, value in document.items()
        }
    if isinstance(document, (list, tuple)):
        return [public(item, names) for item in document]
    if not isinstance(document, str):
        return document
    # A plus means an adapter in models only, so that every other path is cut to its last part.
    return names.get(document) or (_last(document) if _is_path(document) else public_name(document))


def refuse_private(directory: Path, paths: Iterable[Path], token: str | None) -> None:
    """Refuses a directory that is to be published if a file in it holds the token or a private path.

    Args:
        paths: what must not be named, beside the home and the working directory.

    Raises:
        MergeFailedError: a file holds one of them, or what looks like the token of anybody.
    """
    private = [path for path in (Path.home(), Path.cwd(), *paths) if path.is_absolute()]
    # The root and what lies directly in it do not tell whose machine it is, and are parts of many texts.
    texts = [str(path) for path in private if len(path.parts) > 2] + ([token] if token else [])
    for file in sorted(directory.rglob("*")):
        if not file.is_file():
            continue
        content = _metadata(file) if file.match(WEIGHTS) else file.read_bytes()
        if any(text.encode() in content for text in texts):
            raise MergeFailedError(
                f"{file.name} names a path of this machine or the token, and was not published; look for it "
                "in that file of the model, and in the config of the run"
            )
        if _TOKEN.search(content):
            raise MergeFailedError(
                f"{file.name} holds what looks like a token of the Hub, hf_…, and was not published; remove "
                "it from that file of the model, and revoke the token where it is not secret any more"
            )


def _metadata(file: Path) -> bytes:
    """Returns what a safetensors file says beside its tensors, and their names."""
    with safe_open(file, "pt") as tensors:
        said = [tensors.metadata() or {}, list(tensors.keys())]
    return json.dumps(said, ensure_ascii=False).encode()


def _is_path(text: str) -> bool:
    rooted = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return rooted or text.startswith(("./", "../", "~"))


def _last(path: str) -> str:
    return PureWindowsPath(path).name
