"""The slices of a recipe that document what is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

Document = Mapping[str, Any]


def with_removals(slices: Sequence[Document], base: str, depth: int) -> list[Document]:
    """The slices, with a slice that documents the layers that none of them uses, in their places.

    Args:
        base: the model that these layers are named of.
        depth: layers of every member.
    """
    ranges = [range(*source["layer_range"]) for part in slices for source in part["sources"]]
    used = {layer for layers in ranges for layer in layers}
    runs = _runs([layer for layer in range(depth) if layer not in used])
    whole: list[Document] = []
    for part in slices:
        first = part["sources"][0]["layer_range"][0]
        while runs and runs[0][0] < first:
            whole.append(_removal(runs.pop(0), base))
        whole.append(part)
    return [*whole, *(_removal(run, base) for run in runs)]


def _runs(layers: Sequence[int]) -> list[list[int]]:
    """Ascending layers, those that follow each other together."""
    in_line = groupby(enumerate(layers), lambda pair: pair[1] - pair[0])
    return [[layer for _, layer in run] for _, run in in_line]


def _removal(run: Sequence[int], base: str) -> Document:
    source = {"model": base, "layer_range": [run[0], run[-1] + 1]}
    return {"sources": [source], "parameters": {"op": "remove"}}
