"""Reads the headers of a model directory's weight files, and compares them with its index."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gptailor_merge.checking.finding import Finding
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.checkpoint import Header, headers_of
from gptailor_merge.models.chosen_weights import ADAPTER, ChosenWeights, choose, leftovers
from gptailor_merge.models.configs import bounded_modules
from gptailor_merge.models.reload import not_finite
from gptailor_merge.models.stored_names import layers_prefix
from gptailor_merge.models.stranger_files import read_json

LARGEST_SHARD = 5_000_000_000
"""Bytes. The Hub's viewers and many download tools stumble over larger files."""


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


_FIRST_INDEX = re.compile(r"^((?:.*?\.)?)(\d+)\.")


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a model directory, by file; headers only, no weight is loaded.

    Attributes:
        headers: file name -> tensor name -> header, for the files that loading the model reads.
        errors: what makes the files unusable or ambiguous, a sentence each.
        remarks: what is sound but ought to be mended, a sentence each.
        readable: whether the headers of all files were read.
        prefix: the part of the names of the language model's layers before their index; None where the
            model is not known to be a list of layers.
    """

    directory: Path
    headers: Mapping[str, Mapping[str, Header]]
    errors: tuple[str, ...]
    remarks: tuple[str, ...]
    readable: bool
    prefix: str | None = None

    @classmethod
    def read(cls, directory: Path) -> StoredWeights:
        """Reads the index and the headers, and compares them."""
        present = {file.name for file in directory.iterdir() if file.is_file()}
        errors: list[str] = []
        remarks: list[str] = []
        used: tuple[str, ...]
        chosen: ChosenWeights | None = None
        try:
            chosen = choose(directory)
        except FamilyError as error:
            errors.append(str(error).removeprefix(f"{directory}: "))
            used, weight_map, index = tuple(sorted(filter(_is_weights, present))), None, None
        else:
            used, weight_map, index = chosen.files, chosen.weight_map, chosen.index
            if unused := leftovers(present, chosen):
                remarks.append(f"{', '.join(unused)}: no part of the model; nothing loads it")
        headers: dict[str, Mapping[str, Header]] = {}
        for name in used:
            try:
                headers[name] = headers_of(directory / name)
            except (OSError, SafetensorError) as error:
                errors.append(f"{name}: cannot be read: {error}")
        if index is not None and weight_map is not None:
            errors += _misplaced(index, weight_map, headers)
            size = sum(_bytes(directory / name) for name in headers)
            total_size = read_json(directory / index)["metadata"].get("total_size", size)
            if total_size != size and set(used) == set(headers):
                remarks.append(f"{index}: total_size is {total_size}, the files hold {size} bytes")
        large = [name for name in headers if _bytes(directory / name) > LARGEST_SHARD]
        if large:
            remarks.append(
                f"{', '.join(large)}: larger than 5 GB; save_pretrained(…, max_shard_size='5GB') splits it"
            )
        pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
        if pickles:
            remarks.append(
                f"{', '.join(pickles)}: pickle files can run code when loaded; remove what safetensors holds"
            )
        readable = chosen is not None and len(headers) == len(used)
        return cls(directory, headers, tuple(errors), tuple(remarks), readable)

    def of_model(self, config: Mapping[str, Any]) -> StoredWeights:
        """Returns the same weights with the prefix of the layers, if a config's model is a list of them."""
        try:
            with bounded_modules(len(self.tensors)):
                return replace(self, prefix=layers_prefix(config, self.tensors))
        except FamilyError:
            return self

    @cached_property
    def tensors(self) -> dict[str, Header]:
        """Tensor name -> header, over all files."""
        return {name: header for by_name in self.headers.values() for name, header in by_name.items()}

    @cached_property
    def layers(self) -> dict[int, int]:
        """Layer index -> number of parameters.

        Without a prefix, the layers are the list that holds the most tensors; a model may have lists of
        other modules.
        """
        sizes: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        tensors: Counter[str] = Counter()
        for name, header in self.tensors.items():
            match = _FIRST_INDEX.match(name)
            if match:
                sizes[match[1]][int(match[2])] += math.prod(header.shape)
                tensors[match[1]] += 1
        prefix = tensors.most_common(1)[0][0] if self.prefix is None and tensors else self.prefix
        return dict(sizes.get(prefix or "", {}))

    @property
    def parameters(self) -> int:
        """Number of values in all tensors; a head that is the embedding matrix counts once."""
        return sum(math.prod(header.shape) for header in self.tensors.values())

    @property
    def embeddings(self) -> int:
        """Number of values in the matrices outside the layers: embeddings, and a head of its own."""
        return sum(
            math.prod(header.shape)
            for name, header in self.tensors.items()
            if len(header.shape) == 2 and not _FIRST_INDEX.match(name)
        )

    @property
    def dtypes(self) -> dict[str, list[str]]:
        """File name -> the dtypes in it."""
        return {file: sorted({h.dtype for h in by_name.values()}) for file, by_name in self.headers.items()}


def check_files(weights: StoredWeights) -> Finding:
    """Checks that index and weight files agree."""
    if weights.errors:
        return Finding("files", "fail", "; ".join((*weights.errors, *weights.remarks)))
    if weights.remarks:
        return Finding("files", "warn", "; ".join(weights.remarks))
    counts = f"{len(weights.tensors)} tensors in {len(weights.headers)} safetensors file(s)"
    return Finding("files", "ok", counts)


def check_values(weights: StoredWeights) -> Finding:
    """Checks that all stored values are finite."""
    name = not_finite(weights.directory / file for file in weights.headers)
    if name:
        return Finding("values", "fail", f"{name} holds values that are not finite")
    if not weights.headers:
        return Finding("values", "warn", "not tried: no weights can be read")
    return Finding("values", "ok", f"{weights.parameters:,} parameters, all of them finite")


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and name not in ADAPTER


def _misplaced(
    index: str, weight_map: Mapping[str, str], headers: Mapping[str, Mapping[str, Header]]
) -> list[str]:
    """Returns where an index and the headers of its shards disagree, naming the first tensor of each kind."""
    problems = []
    astray = [n for n, shard in weight_map.items() if shard in headers and n not in headers[shard]]
    if astray:
        problems.append(
            f"{index}: {astray[0]} is not in {weight_map[astray[0]]} ({len(astray)} such tensors)"
        )
    unlisted = [n for shard in headers for n in headers[shard] if weight_map.get(n) != shard]
    if unlisted and not astray:
        problems.append(f"{index}: {unlisted[0]} is stored and not listed ({len(unlisted)} such tensors)")
    return problems


def _bytes(file: Path) -> int:
    """Returns the size of the tensors in a safetensors file: everything behind its header."""
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
