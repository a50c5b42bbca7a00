"""What the weight files of a model directory hold; headers only, no weight is loaded."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError

from gptailor_merge.models.checkpoint import INDEX, Header, headers_of

SINGLE = "model.safetensors"


LARGEST_SHARD = 5_000_000_000
"""Bytes. The Hub's viewers and many download tools stumble over larger files."""


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


_FIRST_INDEX = re.compile(r"^((?:.*?\.)?)(\d+)\.")


@dataclass(frozen=True)
class Stored:
    """The tensors of a model directory, by file.

    Attributes:
        headers: file name -> tensor name -> header; of the files that loading the model reads.
        errors: what makes the files unusable or ambiguous, one sentence each.
        remarks: what is sound and should still be mended, one sentence each.
    """

    directory: Path
    headers: Mapping[str, Mapping[str, Header]]
    errors: tuple[str, ...]
    remarks: tuple[str, ...]

    @classmethod
    def read(cls, directory: Path) -> Stored:
        """Read the index and the headers, and compare them."""
        present = sorted(file.name for file in directory.glob("*.safetensors"))
        errors: list[str] = []
        remarks: list[str] = []
        weight_map, total_size, problem = _read_index(directory / INDEX)
        if problem:
            errors.append(problem)
        named = sorted(set(weight_map.values())) if weight_map else []
        # transformers takes the single file where there are both
        used = [SINGLE] if SINGLE in present else named
        if not present:
            errors.append("no *.safetensors file; other formats are not read")
        elif not used:
            errors.append(
                f"{', '.join(present)} without a readable {INDEX}; transformers looks for {SINGLE} or that"
            )
            used = present
        headers: dict[str, Mapping[str, Header]] = {}
        for name in used:
            try:
                headers[name] = headers_of(directory / name)
            except (OSError, SafetensorError) as error:
                errors.append(f"{name}: cannot be read: {error}")
        if weight_map is not None:
            errors += _misplaced(weight_map, headers, named)
            held = sum(_bytes(directory / name) for name in headers)
            if total_size is not None and total_size != held and set(named) <= set(headers):
                remarks.append(f"{INDEX}: total_size is {total_size:,}, the files hold {held:,} bytes")
        unused = sorted(set(present) - set(used))
        if unused:
            remarks.append(f"{', '.join(unused)}: no part of the model; nothing loads it")
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
        return cls(directory, headers, tuple(errors), tuple(remarks))

    @cached_property
    def tensors(self) -> dict[str, Header]:
        """Tensor name -> header, of all files."""
        return {name: header for part in self.headers.values() for name, header in part.items()}

    @cached_property
    def layers(self) -> dict[int, int]:
        """Layer index -> number of parameters."""
        found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        tensors: Counter[str] = Counter()
        for name, header in self.tensors.items():
            match = _FIRST_INDEX.match(name)
            if match:
                found[match[1]][int(match[2])] += math.prod(header.shape)
                tensors[match[1]] += 1
        return dict(found[tensors.most_common(1)[0][0]]) if tensors else {}

    @property
    def parameters(self) -> int:
        """Number of values in all tensors; a head that is the embedding matrix counts once."""
        return sum(math.prod(header.shape) for header in self.tensors.values())

    @property
    def embeddings(self) -> int:
        """Number of values in the matrices outside the layers: embeddings, and the head if it has its own."""
        return sum(
            math.prod(header.shape)
            for name, header in self.tensors.items()
            if len(header.shape) == 2 and not _FIRST_INDEX.match(name)
        )

    @property
    def dtypes(self) -> dict[str, list[str]]:
        """File name -> the dtypes in it."""
        return {file: sorted({h.dtype for h in part.values()}) for file, part in self.headers.items()}


def _read_index(file: Path) -> tuple[dict[str, str] | None, int | None, str | None]:
    """Weight map, total size, and what keeps the index from being read."""
    if not file.exists():
        return None, None, None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        weight_map = {str(name): str(shard) for name, shard in document["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None, f"{INDEX}: cannot be read; expected an object weight_map from tensor to file"
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return weight_map, int(total) if isinstance(total, int | float) else None, None


def _misplaced(
    weight_map: Mapping[str, str], headers: Mapping[str, Mapping[str, Header]], named: list[str]
) -> list[str]:
    """Where an index and the headers of its shards disagree; the first of each kind tells the story."""
    found = []
    astray = [n for n, shard in weight_map.items() if shard in headers and n not in headers[shard]]
    if astray:
        found.append(f"{INDEX}: {astray[0]} is not in {weight_map[astray[0]]} ({len(astray)} such tensors)")
    unlisted = [n for shard in named for n in headers.get(shard, {}) if weight_map.get(n) != shard]
    if unlisted and not astray:
        found.append(f"{INDEX}: {unlisted[0]} is stored and not listed ({len(unlisted)} such tensors)")
    return found


def _bytes(file: Path) -> int:
    """Size of the tensors in a safetensors file: all that is not its header."""
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
