"""Finds the directory that holds a model's weights; downloads Hub models and merges LoRA adapters."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from gptailor_merge.digests import digest
from gptailor_merge.errors import FamilyError
from gptailor_merge.files import grant_ordinary_access, make_directory, writing
from gptailor_merge.methods.adapters import merge_adapter
from gptailor_merge.models.checkpoint import ModelId, check_adapter
from gptailor_merge.models.chosen_weights import ADAPTER, choose, choose_among
from gptailor_merge.models.stranger_files import read_json
from gptailor_merge.models.vocabulary import is_tokenizer_file, tokenizer_files

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
"""The files of a Hub model that are downloaded beside its weights."""


# The base of what httpx raises, or httpx2, which newer versions of the client use.
HTTPError: type[Exception] = huggingface_hub.errors.HTTPError  # type: ignore[attr-defined]


def directory_of(model: ModelId) -> Path:
    """Returns the directory with a model's weights.

    Raises:
        FamilyError: the model cannot be downloaded, or its adapter cannot be merged.
    """
    if model.adapter is not None:
        return _merged(model)
    if model.is_local:
        return Path(model.path)
    return _download(model)


def adapter_directory(model: ModelId) -> Path:
    """Returns the directory with the files of a model's adapter; downloads them where they are not here.

    Raises:
        FamilyError: there is no such adapter.
    """
    assert model.adapter is not None
    directory = Path(model.adapter.path)
    if not model.adapter.is_local:
        directory = _download(model.adapter, ADAPTER)
    check_adapter(model.text, directory)
    return directory


def _download(model: ModelId, files: Sequence[str] | None = None) -> Path:
    """Downloads files of a repository; default the model itself: its weights, config and tokenizer."""
    try:
        wanted = files or _files_of(model)
        return Path(
            huggingface_hub.snapshot_download(
                model.repo,
                revision=model.revision,
                allow_patterns=[glob.escape(name) for name in wanted or ()] or None,
                local_files_only=wanted is None,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise FamilyError(f"{model.path}: cannot be downloaded: {error}") from None


def _files_of(model: ModelId) -> list[str] | None:
    """Returns the files of a repository that are the model, without other weights; None without a network."""
    try:
        names = huggingface_hub.list_repo_files(model.repo, revision=model.revision)
    except HfHubHTTPError:
        raise
    except (OSError, HTTPError):
        return None

    def read(name: str) -> Any:
        return read_json(Path(huggingface_hub.hf_hub_download(model.repo, name, revision=model.revision)))

    outer = [name for name in names if "/" not in name]
    chosen = choose_among(outer, read, model.path)
    small = [name for name in outer if any(fnmatch(name, pattern) for pattern in SMALL_FILES)]
    skipped = {name for name in small if name.endswith(".index.json") and name != chosen.index}
    return [*chosen.files, *(name for name in small if name not in skipped)]


def _merged(model: ModelId) -> Path:
    """Returns the directory of a model with its adapter merged into it; the same files are merged once."""
    assert model.adapter is not None
    base, adapter = directory_of(model.model), adapter_directory(model)
    choose(base)
    merged = Path(constants.HF_HOME) / "gptailor" / "adapters" / _stamp(base, adapter)
    if merged.exists():
        return merged
    make_directory(merged.parent)
    with writing(merged.parent):
        staged = tempfile.TemporaryDirectory(dir=merged.parent, prefix=".")
    with staged as beside:
        try:
            directory = merge_adapter(base, adapter, Path(beside))
        except Exception as error:
            raise FamilyError(f"{model.text}: the adapter cannot be merged: {error}") from error
        # Merging leaves out the tokenizer and the like. An adapter may have been trained with its own.
        tokenizer = tokenizer_files(model.adapter)
        kept = [f for f in base.iterdir() if not tokenizer or not is_tokenizer_file(f.name)]
        with writing(merged):
            for file in (*kept, *tokenizer):
                is_weights = ".safetensors" in file.name or file.suffix in (".bin", ".pt", ".pth")
                if file.is_file() and not is_weights and not (directory / file.name).exists():
                    shutil.copy(file, directory / file.name)
            grant_ordinary_access(directory)
            try:
                directory.rename(merged)
            except OSError:
                if not merged.exists():  # if it exists, another process was faster
                    raise
    return merged


def _stamp(*directories: Path) -> str:
    """Returns a digest that changes when a file in one of the directories is replaced."""
    stamps = [
        [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
        for directory in directories
        for file in sorted(directory.glob("*"))
        if file.suffix in (".safetensors", ".json")
    ]
    return digest(stamps)
