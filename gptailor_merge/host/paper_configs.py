"""Imports the configurations that the paper's authors published, as the code of arXiv 2506.20480 writes them.

Such a file is flat JSON. `remove_idx_j` is a removed layer. Candidate k contributes to source layer i if
`layer_i_candidate_k` is set: with none the base's layer is kept, one is selected, several are merged,
W = W_base + λ Σ_k (W_k - W_base) with λ = `layer_i_merge_scale_factor` and every W at layer i. Embeddings
follow the first kept layer, final norm and head the last. That code records `layer_i_output_scale` and
never applies it.

That code reads a merge's base tensor at the output position; a recipe reads it at the source layer, as
the paper describes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptailor_merge.errors import Problem, RecipeError
from gptailor_merge.host.imported_recipe import Document, Imported, complete
from gptailor_merge.recipe.recipe import MOST_LAYERS, TAILOR

_KEY = re.compile(
    r"remove_idx_\d{1,4}|layer_(?P<layer>\d{1,4})_(candidate_(?P<candidate>\d{1,4})|(?P<scale>\w+_scale\w*))"
)


_FACTOR = "merge_scale_factor"


_IGNORED = "output_scale"


@dataclass
class _Keys:
    """The content of a configuration, collected key by key.

    Attributes:
        removed: the removed layers.
        candidates: layer -> the numbers of the candidates that contribute to it.
        factors: layer -> λ.
        has_ignored: True if there is a key that the paper's code never applies.
    """

    removed: set[int] = field(default_factory=set)
    candidates: dict[int, set[int]] = field(default_factory=dict)
    factors: dict[int, float] = field(default_factory=dict)
    has_ignored: bool = False


def is_paper_config(document: Mapping[str, Any]) -> bool:
    """Tells whether a document is one of the paper's configurations."""
    return any(re.fullmatch(r"remove_idx_\d+", str(key)) for key in document)


def from_paper_config(
    document: Mapping[str, Any], *, base: str | None, candidates: Sequence[str]
) -> Imported:
    """Imports one of the paper's configurations.

    Args:
        candidates: the models in the order of the candidates' numbers.

    Raises:
        RecipeError: a key is unknown, or a layer is neither removed nor kept.
    """
    if base is None or not candidates:
        raise RecipeError(
            "the paper's configurations name no models; give --base MODEL, and --candidates MODEL … in the "
            "order of their numbers"
        )
    keys = _read(document, len(candidates))
    depth = max([*keys.removed, *keys.candidates], default=-1) + 1
    kept = [layer for layer in range(depth) if layer not in keys.removed]
    missing = [layer for layer in kept if layer not in keys.candidates]
    if missing:
        raise RecipeError(f"layer {missing[0]} is neither removed nor given candidates")
    if not kept:
        raise RecipeError("every layer is removed")
    slices: list[Document] = []
    for layer in kept:
        models = [candidates[k] for k in sorted(keys.candidates[layer])] or [base]
        parameters: Document = {"op": "select"}
        if len(models) > 1:
            if layer not in keys.factors:
                raise RecipeError(Problem((f"layer_{layer}_{_FACTOR}",), "is missing"))
            parameters = {"op": "merge", "method": "task_arithmetic", "weight": keys.factors[layer]}
        _append(slices, layer, models, parameters)
    ends = {"embeddings": _end(slices[0]), "head": _end(slices[-1])}
    origins = {name: origin for name, origin in ends.items() if origin != base}
    recipe: Document = {"merge_method": TAILOR, "base_model": base, "dtype": "float32"}
    if origins:
        recipe["parameters"] = origins
    notes = ["layer_i is taken for layer i of the models, removed layers counted"]
    if keys.has_ignored:
        notes.append(f"layer_*_{_IGNORED} is left out; the paper's code never applies it")
    return complete({**recipe, "slices": slices}, notes)


def _read(document: Mapping[str, Any], candidates: int) -> _Keys:
    keys = _Keys()
    for key, value in document.items():
        match = _KEY.fullmatch(str(key))
        if match is None or match["scale"] not in (None, _FACTOR, _IGNORED):
            raise RecipeError(Problem((str(key),), "is no key of the paper's configurations"))
        if not isinstance(value, (bool, int, float)):
            raise RecipeError(Problem((str(key),), f"expected a number, found {value!r}"))
        if match["layer"] is None:
            if value in keys.removed or value not in range(MOST_LAYERS):
                raise RecipeError(Problem((str(key),), f"expected a layer of its own, found {value}"))
            keys.removed.add(int(value))
            continue
        layer = int(match["layer"])
        if match["candidate"] is not None:
            if int(match["candidate"]) >= candidates:
                raise RecipeError(Problem((str(key),), f"only {candidates} candidates are given"))
            numbers = keys.candidates.setdefault(layer, set())
            numbers |= {int(match["candidate"])} if value else set()
        elif match["scale"] == _FACTOR:
            keys.factors[layer] = float(value)
        else:
            keys.has_ignored = True
    return keys


def _append(slices: list[Document], layer: int, models: Sequence[str], parameters: Document) -> None:
    """Appends a slice of one layer, or extends the last slice if that selects from the same model."""
    if slices and parameters == {"op": "select"} == slices[-1]["parameters"]:
        (source,) = slices[-1]["sources"]
        if source["model"] == models[0] and source["layer_range"][1] == layer:
            source["layer_range"] = [source["layer_range"][0], layer + 1]
            return
    sources = [{"model": model, "layer_range": [layer, layer + 1]} for model in models]
    slices.append({"sources": sources, "parameters": parameters})


def _end(part: Document) -> Any:
    """Returns the origin of embeddings or head, which follow the slice at their end."""
    models = [source["model"] for source in part["sources"]]
    if len(models) == 1:
        return models[0]
    weight = part["parameters"]["weight"]
    return {"method": part["parameters"]["method"], "weights": dict.fromkeys(models, weight)}
