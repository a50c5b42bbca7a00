"""Tells whether a model is the one that it was: by its content, or on the Hub by its commit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from gptailor_merge.digests import digest_of_file
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.checkpoint import ModelId, headers_in
from gptailor_merge.models.chosen_weights import ADAPTER
from gptailor_merge.models.member import Member

SETTINGS = ("config.json", "generation_config.json")
"""Files beside the weights that change what a model computes."""


TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
"""Files that change what a tokenizer does."""


MEMBER = "member "
"""The beginning of all names of what members are made of."""


def contents_of(members: Iterable[Member]) -> dict[str, str]:
    """Returns what each member is made of: "member NAME: FILE" -> digest of the content, or
    "member NAME" -> commit.

    The base's tokenizer counts, since texts are tokenised with it. Every local file is read once.

    Raises:
        FamilyError: a file cannot be read.
    """
    commits: dict[str, str] = {}
    files: dict[str, Path] = {}
    for number, member in enumerate(members):
        model = ModelId.parse(member.model)
        for part in (model.model, model.adapter):
            if part is None:
                continue
            label = f"{MEMBER}{member.name}" + ("'s adapter" if part is model.adapter else "")
            if not part.is_local:
                commits[label] = commit_of(part) or ""
                continue
            directory = Path(part.path)
            names = ADAPTER if part is model.adapter else (*_weights(directory), *SETTINGS)
            names += TOKENIZER if number == 0 else ()
            files |= {f"{label}: {name}": directory / name for name in names if (directory / name).is_file()}
    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            digests = dict(zip(files, pool.map(digest_of_file, files.values()), strict=True))
    except OSError as error:
        raise FamilyError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return {**commits, **digests}


def commit_of(model: ModelId) -> str | None:
    """Returns the commit of a Hub model's cached files, which are those that are read; None if unknown."""
    for file in ("config.json", ADAPTER[0]):
        try:
            cached = huggingface_hub.try_to_load_from_cache(model.repo, file, revision=model.revision)
        except HFValidationError:
            return None
        if isinstance(cached, str):
            return Path(cached).parent.name  # snapshots/COMMIT/config.json
    return None


def _weights(directory: Path) -> tuple[str, ...]:
    return tuple(sorted({header.file for header in headers_in(directory).values()}))
