"""Chooses the weight files of a model directory as transformers' from_pretrained does.

A directory can hold several sets of weights: a single file beside shards, the index of an older save,
other precisions, other formats. This module is the only one that says which of them are the model;
transformers decides it in `_get_resolved_checkpoint_files`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.stranger_files import check_entries, read_json

SINGLE = "model.safetensors"
"""The file that holds all tensors of a model that is not in shards."""


INDEX = "model.safetensors.index.json"
"""The file that says which shard holds which tensor."""


CONFIG = "config.json"


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a LoRA adapter."""


EXPLICIT = "transformers_weights"
"""The key of a config that names the weight file or the index itself."""


_SUFFIX, _INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"


_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files of a distributed checkpoint, which transformers prefers to all others."""


@dataclass(frozen=True)
class ChosenWeights:
    """The weight files that are the model.

    Attributes:
        files: in the order in which they are loaded; of a tensor that several hold, the last one counts.
        index: the name of the index that lists them; None for a single file.
        weight_map: tensor -> file, as that index says.
    """

    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] | None = None


def choose(directory: Path) -> ChosenWeights:
    """Returns the weight files of a model directory.

    Raises:
        FamilyError: transformers would load none of its files, or others than safetensors; a file of the
            choice is missing; or the directory holds what it should not, see check_entries.
    """
    check_entries(directory)
    names = {file.name for file in directory.iterdir() if file.is_file()}
    chosen = choose_among(names, lambda name: read_json(directory / name), str(directory))
    for name in chosen.files:
        if not (directory / name).is_file():
            raise FamilyError(f"{directory}: {name} is missing, which {chosen.index or CONFIG} names")
    return chosen


def choose_among(names: Collection[str], read: Callable[[str], Any], where: str) -> ChosenWeights:
    """Returns the weight files among the files of a directory or a repository; they may be missing.

    Args:
        names: the files, without those in directories inside.
        read: returns the content of a JSON file.
        where: the directory or repository, for messages.

    Raises:
        FamilyError: see choose.
    """
    distributed = sorted(filter(_DISTRIBUTED.fullmatch, names))
    if distributed:
        text = "is a part of a distributed checkpoint; save the model with save_pretrained"
        raise FamilyError(f"{where}: {distributed[0]} {text}")
    explicit = _explicit(read(CONFIG), where) if CONFIG in names else None
    if explicit is not None:
        chosen = _from_index(read(explicit), explicit, where) if _is_index(explicit) else _single(explicit)
    elif SINGLE in names:
        chosen = _single(SINGLE)
    elif INDEX in names:
        chosen = _from_index(read(INDEX), INDEX, where)
    else:
        raise FamilyError(f"{where}: {_lack(names)}")
    # With peft, which mergekit needs, transformers puts such an adapter into the model while it loads it.
    if ADAPTER[0] in names and CONFIG in names:
        raise FamilyError(
            f"{where}: {ADAPTER[0]} lies beside {chosen.files[0]}, and transformers loads both as one model; "
            f"move the adapter to a directory of its own, and name MODEL+ADAPTER if it is meant"
        )
    return chosen


def leftovers(names: Collection[str], chosen: ChosenWeights) -> tuple[str, ...]:
    """Returns the safetensors files and indices that are no part of the model."""
    used = {*chosen.files, chosen.index}
    return tuple(
        sorted(name for name in names if name.endswith((_SUFFIX, _INDEX_SUFFIX)) and name not in used)
    )


def _single(name: str) -> ChosenWeights:
    return ChosenWeights((name,))


def _explicit(config: Any, where: str) -> str | None:
    name = config.get(EXPLICIT) if isinstance(config, dict) else None
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith((_SUFFIX, _INDEX_SUFFIX)) or not _stays(name):
        text = f"expected a safetensors file inside the directory or its index, found {name!r}"
        raise FamilyError(f"{where}: {CONFIG}: {EXPLICIT}: {text}")
    return name


def _is_index(name: str) -> bool:
    return name.endswith(_INDEX_SUFFIX)


def _from_index(document: Any, name: str, where: str) -> ChosenWeights:
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        text = "cannot be read as an index of shards; expected an object weight_map from tensor to file"
        raise FamilyError(f"{where}: {name}: {text}")
    # transformers reads this key without asking whether it is there.
    if not isinstance(document.get("metadata"), dict):
        text = 'metadata is missing, and transformers does not load it so; add "metadata": {}'
        raise FamilyError(f"{where}: {name}: {text}")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(_SUFFIX) or not _stays(file):
            text = f"expected a safetensors file inside the directory, found {file!r}"
            raise FamilyError(f"{where}: {name}: weight_map: {tensor}: {text}")
    return ChosenWeights(tuple(sorted(set(weight_map.values()))), name, weight_map)


def _stays(name: str) -> bool:
    """Tells whether a relative name stays inside its directory."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _lack(names: Collection[str]) -> str:
    """Says why no file is the model."""
    present = sorted(name for name in names if name.endswith(_SUFFIX) and name not in ADAPTER)
    if ADAPTER[0] in names:
        return "holds a LoRA adapter and no model; name it MODEL+ADAPTER"
    if not present:
        return "no *.safetensors file; other formats are not read"
    listed = ", ".join(present[:3]) + (", …" if len(present) > 3 else "")
    return (
        f"neither {SINGLE} nor {INDEX}, and transformers loads nothing without one of them, found {listed}; "
        "get the index from where the model comes from, or save the model with save_pretrained"
    )
