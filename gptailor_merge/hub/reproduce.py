"""Builds a published model again from its members, and compares the two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from gptailor_merge import __version__
from gptailor_merge.errors import ConfigError, FamilyError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.host.names_and_commands import RECIPE
from gptailor_merge.hub.client import check_name
from gptailor_merge.hub.client_errors import explained
from gptailor_merge.hub.published_recipe import with_places
from gptailor_merge.hub.release import ADAPTER
from gptailor_merge.models.checkpoint import headers_in
from gptailor_merge.models.stranger_files import read_object

FILES = [RECIPE, "config.json", "*.safetensors", "*.safetensors.index.json", f"{ADAPTER}/*.json"]
"""The files of a published model that are downloaded."""


IGNORED = ("transformers_version", "_name_or_path")
"""Keys of config.json that do not describe the model."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of a published model with one that was built again.

    Attributes:
        tensors: number of tensors of the published model.
        differences: a sentence each; empty where the models are equal.
    """

    tensors: int
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """True where all tensors and the config are equal."""
        return not self.differences


def fetch(repo_id: str, revision: str | None = None) -> Path:
    """Downloads the recipe, config and weights of a published model and returns their directory.

    Raises:
        ConfigError: the repository holds no recipe of ours, or no model.
        HubError: the model cannot be downloaded.
    """
    check_name(repo_id)
    with explained(repo_id, again="try again: what has arrived is kept"):
        snapshot = snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=FILES,
            library_name="gptailor-merge",
            library_version=__version__,
        )
    directory = Path(snapshot)
    if not (directory / RECIPE).is_file():
        raise ConfigError(f"{repo_id} holds no {RECIPE}; expected a model that gptailor push has published")
    try:
        _config(directory)
        headers_in(directory)
    except FamilyError as error:
        text = str(error).replace(f"{directory}/", "").replace(f"{directory}: ", "")
        raise ConfigError(f"{repo_id} is no whole model, and cannot be compared: {text}") from None
    return directory


def rebuild(published: Path, members: Mapping[str, str], out: Path) -> None:
    """Builds the model of a published recipe.

    Args:
        published: the directory that holds the recipe.
        members: name -> directory of each member that is not on the Hub.
        out: the directory to make.

    Raises:
        ConfigError, RecipeError, FamilyError: see published_recipe.with_places.
        MergeFailedError: see materialize.
    """
    materialize(with_places(published, members), out)


def compare(published: Path, rebuilt: Path) -> Comparison:
    """Compares all tensors and the configs of two models."""
    theirs, ours = _digests(published), _digests(rebuilt)
    differences = [
        f"{name}: {_difference(theirs.get(name), ours.get(name))}" for name in _differing_keys(theirs, ours)
    ]
    configs = [_config(directory) for directory in (published, rebuilt)]
    differences += [f"config.json: {key} differs" for key in _differing_keys(*configs)]
    return Comparison(len(theirs), tuple(differences))


def _differing_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterable[str]:
    return [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]


def _difference(theirs: str | None, ours: str | None) -> str:
    if theirs is None:
        return "is not in the published model"
    return "is only in the published model" if ours is None else "differs"


def _digests(directory: Path) -> dict[str, str]:
    """Tensor name -> digest of its dtype, shape and bytes, whichever file holds it."""
    digests = {}
    by_file: dict[str, list[str]] = {}
    headers = headers_in(directory)
    for name, header in headers.items():
        by_file.setdefault(header.file, []).append(name)
    for file, names in by_file.items():
        with safe_open(directory / file, "pt") as tensors:
            for name in names:
                tensor = tensors.get_tensor(name)
                digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
                digest.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
                digests[name] = digest.hexdigest()
    return digests


def _config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    try:
        document = read_object(file)
    except FileNotFoundError:
        raise FamilyError(f"{file}: no such file") from None
    return {key: value for key, value in document.items() if key not in IGNORED}


def members_given(options: Iterable[str]) -> dict[str, str]:
    """Reads `NAME=PATH` options; name -> path.

    Raises:
        ConfigError: an option has another form, or its directory is not there.
    """
    members = {}
    for text in options:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise ConfigError(f"--member: expected NAME=PATH, found {text!r}")
        if not Path(path).is_dir():
            raise ConfigError(f"--member {name}: no such directory, found {path!r}")
        members[name] = path
    return members
