"""Compares the tokens of members: which token stands behind each id."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer

from gptailor_merge.digests import digest
from gptailor_merge.models.checkpoint import ModelId

_Named = TypeVar("_Named")


_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
)
"""The files that hold tokens; a directory without any of them has no tokenizer."""


_BESIDES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
"""The files that say how the tokens are read, which are added, and how they make a conversation."""


_NAMED_TOKENS = 3
"""The number of tokens that a sentence names."""


@dataclass(frozen=True)
class TokenDifferences:
    """The differences of a member's tokens from those of the tokenizer that a model gets.

    Attributes:
        others: id -> (the tokenizer's token, the member's), where they differ.
        missing: id -> token of the tokenizer that the member does not have.
        extra: id -> token of the member that the tokenizer does not have.
    """

    others: Mapping[int, tuple[str, str]]
    missing: Mapping[int, str]
    extra: Mapping[int, str]

    @property
    def ids(self) -> Collection[int]:
        """The ids of the tokenizer that mean nothing, or something else, to the member."""
        return {*self.others, *self.missing}

    def __str__(self) -> str:
        parts = []
        if self.others:
            named = ", ".join(
                f"id {number} is {theirs!a} and not {ours!a}"
                for number, (ours, theirs) in _first(self.others)
            )
            parts.append(f"{_counted(self.others, 'other token', 'other tokens')} behind the ids ({named})")
        for tokens, word in ((self.missing, "less"), (self.extra, "more")):
            if tokens:
                named = ", ".join(f"{token!a} at {number}" for number, token in _first(tokens))
                parts.append(f"{_counted(tokens, 'token', 'tokens')} {word} ({named})")
        return "; ".join(parts)


def token_differences(tokenizer: Mapping[int, str], member: Mapping[int, str]) -> TokenDifferences | None:
    """Compares the tokens of a member with those of the tokenizer that a model gets; None if they are equal.

    >>> print(token_differences({0: "a", 1: "b"}, {0: "a", 1: "c", 2: "d"}))
    1 other token behind the ids (id 1 is 'c' and not 'b'); 1 token more ('d' at 2)
    """
    if tokenizer == member:
        return None
    both = sorted(tokenizer.keys() & member.keys())
    return TokenDifferences(
        others={i: (tokenizer[i], member[i]) for i in both if tokenizer[i] != member[i]},
        missing={i: tokenizer[i] for i in sorted(tokenizer.keys() - member.keys())},
        extra={i: member[i] for i in sorted(member.keys() - tokenizer.keys())},
    )


def tokens_of_model(model: str) -> Mapping[int, str] | None:
    """Returns id -> token of a model's tokenizer, or None if it has none that can be read.

    A tokenizer that lies beside an adapter is the one that the adapter was trained with.
    """
    parsed = ModelId.parse(model)
    for part in (parsed.adapter, parsed.model):
        directory = None if part is None else _tokenizer_directory(part)
        if directory is not None:
            return _tokens_of(_TokenizerFiles.in_directory(directory))
    return None


def tokenizer_files(model: ModelId) -> tuple[Path, ...]:
    """Returns the files of the tokenizer that lies beside a model or adapter; none where there is none."""
    directory = _tokenizer_directory(model)
    return () if directory is None else _files_in(directory)


def is_tokenizer_file(name: str) -> bool:
    """Tells whether a file of this name belongs to a tokenizer."""
    return any(fnmatch(name, pattern) for pattern in (*_VOCABULARIES, *_BESIDES))


def _files_in(directory: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in directory.iterdir() if is_tokenizer_file(file.name)))


@dataclass(frozen=True)
class _TokenizerFiles:
    """The files of a tokenizer; those of equal contents are equal, wherever they are.

    Attributes:
        contents: a digest of them.
    """

    contents: str
    directory: Path = field(compare=False)

    @classmethod
    def in_directory(cls, directory: Path) -> _TokenizerFiles:
        files = _files_in(directory)
        contents = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
        return cls(digest(contents), directory)


@lru_cache(maxsize=16)
def _tokens_of(files: _TokenizerFiles) -> Mapping[int, str] | None:
    """Returns id -> token of a tokenizer, as transformers reads it; None if it cannot be read."""
    try:
        vocabulary = AutoTokenizer.from_pretrained(files.directory, trust_remote_code=False).get_vocab()
        return {int(number): str(token) for token, number in vocabulary.items()}
    except Exception:  # tokenizers come in many file formats, which fail in as many ways
        return None


def _tokenizer_directory(model: ModelId) -> Path | None:
    """Returns the directory that holds a model's tokenizer; of a Hub model, no other files are downloaded."""
    if model.is_local:
        return _with_tokens(Path(model.path))
    patterns = [*_VOCABULARIES, *_BESIDES, "config.json"]
    for on_disk in (True, False):
        try:
            snapshot = huggingface_hub.snapshot_download(
                model.repo, revision=model.revision, allow_patterns=patterns, local_files_only=on_disk
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            continue
        if directory := _with_tokens(Path(snapshot)):
            return directory
    return None


def _with_tokens(directory: Path) -> Path | None:
    return directory if any(True for name in _VOCABULARIES for _ in directory.glob(name)) else None


def _first(tokens: Mapping[int, _Named]) -> list[tuple[int, _Named]]:
    return list(tokens.items())[:_NAMED_TOKENS]


def _counted(tokens: Mapping[int, object], singular: str, plural: str) -> str:
    return f"1 {singular}" if len(tokens) == 1 else f"{len(tokens):,} {plural}"
