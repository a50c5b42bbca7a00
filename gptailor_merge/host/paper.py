"""The recipes that the paper's authors published, as the code of arXiv 2506.20480 writes them.

A flat JSON. `remove_idx_j` is a removed layer. At source layer i candidate k contributes where
`layer_i_candidate_k` is set: none is the base's own layer, one is selected, several are merged,
W = W_base + λ Σ_k (W_k - W_base) with λ = `layer_i_merge_scale_factor`, every W at layer i. Embeddings
follow the first kept layer, final norm and head the last. `layer_i_output_scale` is recorded by that
code and never applied.

That code reads a merge's base tensor at the output position; a recipe reads it at the source layer, as
the paper describes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptailor_merge.errors import Problem, RecipeError
from gptailor_merge.host.imported import Document, Imported, finish
from gptailor_merge.recipe.recipe import TAILOR

_KEY = re.compile(
    r"remove_idx_\d+|layer_(?P<layer>\d+)_(candidate_(?P<candidate>\d+)|(?P<scale>\w+_scale\w*))"
)


_FACTOR = "merge_scale_factor"


_IGNORED = "output_scale"


@dataclass
class _Read:
    """What the keys say."""

    removed: set[int] = field(default_factory=set)
    chosen: dict[int, set[int]] = field(default_factory=dict)
    factors: dict[int, float] = field(default_factory=dict)
    has_ignored: bool = False


def is_published(document: Mapping[str, Any]) -> bool:
    """Whether a file is one of these."""
    return any(re.fullmatch(r"remove_idx_\d+", str(key)) for key in document)


def from_published(document: Mapping[str, Any], *, base: str | None, candidates: Sequence[str]) -> Imported:
    """The recipe.

    Raises:
        RecipeError: keys that are not known, or layers that nothing is said of.
    """
    if base is None or not candidates:
        raise RecipeError(
            "the paper's configurations name no models; give --base MODEL, and --candidates MODEL … in the "
            "order of their numbers"
        )
    read = _read(document, len(candidates))
    depth = max([*read.removed, *read.chosen], default=-1) + 1
    kept = [layer for layer in range(depth) if layer not in read.removed]
    missing = [layer for layer in kept if layer not in read.chosen]
    if missing:
        raise RecipeError(f"layer {missing[0]} is neither removed nor given candidates")
    if not kept:
        raise RecipeError("every layer is removed")
    slices: list[Document] = []
    for layer in kept:
        models = [candidates[k] for k in sorted(read.chosen[layer])] or [base]
        parameters: Document = {"op": "select"}
        if len(models) > 1:
            if layer not in read.factors:
                raise RecipeError(Problem((f"layer_{layer}_{_FACTOR}",), "is missing"))
            parameters = {"op": "merge", "method": "task_arithmetic", "weight": read.factors[layer]}
        _append(slices, layer, models, parameters)
    ends = {"embeddings": _end(slices[0]), "head": _end(slices[-1])}
    own = {name: value for name, value in ends.items() if value != base}
    written: Document = {"merge_method": TAILOR, "base_model": base, "dtype": "float32"}
    if own:
        written["parameters"] = own
    notes = ["layer_i is taken for layer i of the models, removed layers counted"]
    if read.has_ignored:
        notes.append(f"layer_*_{_IGNORED} is left out; the paper's code never applies it")
    return finish({**written, "slices": slices}, notes)


def _read(document: Mapping[str, Any], candidates: int) -> _Read:
    read = _Read()
    for key, value in document.items():
        match = _KEY.fullmatch(str(key))
        if match is None or match["scale"] not in (None, _FACTOR, _IGNORED):
            raise RecipeError(Problem((str(key),), "is no key of the paper's configurations"))
        if not isinstance(value, (bool, int, float)):
            raise RecipeError(Problem((str(key),), f"expected a number, found {value!r}"))
        if match["layer"] is None:
            if value in read.removed or int(value) != value:
                raise RecipeError(Problem((str(key),), f"expected a layer of its own, found {value}"))
            read.removed.add(int(value))
            continue
        layer = int(match["layer"])
        if match["candidate"] is not None:
            if int(match["candidate"]) >= candidates:
                raise RecipeError(Problem((str(key),), f"only {candidates} candidates are given"))
            members = read.chosen.setdefault(layer, set())
            members |= {int(match["candidate"])} if value else set()
        elif match["scale"] == _FACTOR:
            read.factors[layer] = float(value)
        else:
            read.has_ignored = True
    return read


def _append(slices: list[Document], layer: int, models: Sequence[str], parameters: Document) -> None:
    """A slice of one layer, or one layer more in the last slice where that selects from the same model."""
    if slices and parameters == {"op": "select"} == slices[-1]["parameters"]:
        (source,) = slices[-1]["sources"]
        if source["model"] == models[0] and source["layer_range"][1] == layer:
            source["layer_range"] = [source["layer_range"][0], layer + 1]
            return
    sources = [{"model": model, "layer_range": [layer, layer + 1]} for model in models]
    slices.append({"sources": sources, "parameters": parameters})


def _end(part: Document) -> Any:
    """Embeddings or head as the slice at that end."""
    models = [source["model"] for source in part["sources"]]
    if len(models) == 1:
        return models[0]
    weight = part["parameters"]["weight"]
    return {"method": part["parameters"]["method"], "weights": dict.fromkeys(models, weight)}
