"""Imports plain mergekit configurations, and those of the paper (paper_configs.py), as recipes.

A key that a recipe cannot express, or that mergekit itself would silently ignore, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptailor_merge.documents import read_yaml, suggest
from gptailor_merge.errors import KeyPath, Problem, RecipeError, errors_in
from gptailor_merge.host.imported_recipe import Document, Imported, complete
from gptailor_merge.host.paper_configs import from_paper_config, is_paper_config
from gptailor_merge.methods.specs import ParameterScope, method_names, method_spec
from gptailor_merge.models.checkpoint import depth_on_disk
from gptailor_merge.recipe.plan import SELECT
from gptailor_merge.recipe.recipe import TAILOR

_COPIED = ("dtype", "out_dtype", "chat_template")


_KEYS = {"merge_method", "base_model", "parameters", "slices", "models", *_COPIED}


_OUTER = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def load(file: Path, *, base: str | None = None, candidates: Sequence[str] = ()) -> Imported:
    """Imports a file: a mergekit configuration, or one that the paper's authors published.

    Args:
        base: the base model; overrides the file's.
        candidates: the models that the paper's configurations call candidates 0, 1, …

    Raises:
        RecipeError: a key cannot be imported.
    """
    document = read_yaml(file, RecipeError)  # JSON is YAML
    if not isinstance(document, Mapping):
        raise RecipeError(f"expected a mapping, found {type(document).__name__}", file=file)
    with errors_in(file):
        if is_paper_config(document):
            return from_paper_config(document, base=base, candidates=candidates)
        if candidates:
            raise RecipeError("candidates are for the paper's configurations, whose keys are remove_idx_*")
        return from_mergekit(document, base=base)


def from_mergekit(document: Mapping[str, Any], *, base: str | None = None) -> Imported:
    """Imports a mergekit configuration that stacks layers.

    mergekit takes the embeddings from the sources of the first slice, and final norm and head from those
    of the last, both at the start of gradients; the recipe states this explicitly.
    """
    notes: list[str] = []
    method = _method(document)
    slices = _slices(document)
    models = [source["model"] for part in slices for source in part["sources"]]
    base = base or document.get("base_model")
    spec = method_spec(method)
    assert spec is not None
    if base is None:
        if spec.takes_base:
            raise RecipeError(Problem(("base_model",), f"is missing; {method} calculates with a base"))
        base = models[0]
        notes.append(f"base_model is missing; {base} gives config and tokenizer")
    defaults = dict(document.get("parameters") or {})
    layers = [part for part in slices if _length(part)]
    if not layers:
        raise RecipeError(Problem(("slices",), "hold no layers"))
    recipe: Document = {"merge_method": TAILOR, "base_model": base}
    recipe |= {key: document[key] for key in _COPIED if document.get(key) is not None}
    ends = {
        "embeddings": _origin(slices[0], method, base, defaults),
        "head": _origin(slices[-1], method, base, defaults),
    }
    origins = {name: origin for name, origin in ends.items() if origin != base}
    if method == SELECT:
        _check_scale(slices, defaults)
    if defaults | origins:
        recipe["parameters"] = {**origins, **defaults}
    return complete({**recipe, "slices": [_slice(part, method) for part in layers]}, notes)


def _method(document: Mapping[str, Any]) -> str:
    """Returns the method of a configuration whose top-level keys are all known."""
    unknown = [str(key) for key in document if key not in _KEYS]
    if unknown:
        raise RecipeError([Problem((key,), "cannot be imported" + suggest(key, _KEYS)) for key in unknown])
    method = document.get("merge_method")
    if method == TAILOR:
        raise RecipeError(Problem(("merge_method",), "is tailor already; use the file as it is"))
    if method not in method_names():
        raise RecipeError(
            Problem(
                ("merge_method",),
                f"expected a method of mergekit, found {method!r}{suggest(str(method), method_names())}",
            )
        )
    return str(method)


def _slices(document: Mapping[str, Any]) -> list[Document]:
    """Returns the slices; `models` count as one slice of all layers."""
    if ("slices" in document) == ("models" in document):
        raise RecipeError("expected either slices or models")
    if "slices" in document:
        slices = document["slices"]
        if not isinstance(slices, list) or not slices:
            raise RecipeError(Problem(("slices",), "expected a list of slices"))
        return [_checked(part, ("slices", index)) for index, part in enumerate(slices)]
    sources = []
    for index, entry in enumerate(document["models"] or []):
        model = entry.get("model") if isinstance(entry, Mapping) else None
        depth = depth_on_disk(model) if isinstance(model, str) else None
        if depth is None:
            raise RecipeError(
                Problem(
                    ("models", index, "model"),
                    f"the number of layers of {model!r} is not known on this machine; write slices with "
                    "layer_range instead",
                )
            )
        sources.append({**entry, "layer_range": [0, depth]})
    base = document.get("base_model")
    if base is not None and base not in [source["model"] for source in sources]:
        sources.append({"model": base, "layer_range": sources[0]["layer_range"]})  # as mergekit does
    return [_checked({"sources": sources}, ("models",))]


def _checked(part: Any, path: KeyPath) -> Document:
    """Returns a slice whose keys and types are right."""
    if not isinstance(part, Mapping) or not isinstance(part.get("sources"), list) or not part["sources"]:
        raise RecipeError(Problem(path, "expected a mapping with sources"))
    for key in part:
        if key not in ("sources", "base_model", "parameters"):
            raise RecipeError(
                Problem((*path, str(key)), "mergekit ignores it or does what a recipe cannot; take it away")
            )
    for position, source in enumerate(part["sources"]):
        place = (*path, "sources", position)
        if not isinstance(source, Mapping) or not isinstance(source.get("model"), str):
            raise RecipeError(
                Problem(place, f"expected a mapping with the name of a model, found {source!r}")
            )
        bounds = source.get("layer_range")
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(type(b) is int for b in bounds)):
            raise RecipeError(
                Problem((*place, "layer_range"), f"expected [first, past the last], found {bounds!r}")
            )
    return dict(part)


def _length(part: Document) -> int:
    first, last = part["sources"][0]["layer_range"]
    return int(last - first)


def _slice(part: Document, method: str) -> Document:
    parameters = dict(part.get("parameters") or {})
    if method == SELECT:
        return {**part, "parameters": {"op": "select", **parameters}}
    return {**part, "parameters": {"op": "merge", "method": method, **parameters}}


def _origin(part: Document, method: str, base: str, defaults: Mapping[str, Any]) -> Any:
    """Returns the origin of embeddings or head, which mergekit takes from the slice at their end."""
    sources = part["sources"]
    if method == SELECT:
        return sources[0]["model"]
    spec = method_spec(method)
    assert spec is not None
    slice_base = part.get("base_model", base)
    spared = [p.name for p in spec.input_parameters if p.scope is ParameterScope.NON_BASE]
    members = [s for s in sources if not (spared and s["model"] == slice_base)]
    source_parameters = [dict(source.get("parameters") or {}) for source in members]
    weights = [_at_start(parameters.pop("weight", None)) for parameters in source_parameters]
    if any(source_parameters) or (
        any(w is not None for w in weights) and not all(type(w) in (int, float) for w in weights)
    ):
        raise RecipeError(
            "mergekit merges embeddings and head with the parameters of single sources of the first and the "
            "last slice, and a recipe knows only plain weights there; set embeddings and head by hand"
        )
    names = [source["model"] for source in members]
    origin: Document = {"method": method}
    weighted = dict(zip(names, weights, strict=True))
    origin |= {"weights": weighted} if None not in weights else {"members": names}
    if slice_base != base:
        origin["base_model"] = slice_base
    known = {parameter.name for parameter in spec.parameters}
    shared: Document = {}
    for scope in (part.get("parameters") or {}, defaults):
        for name, value in scope.items():
            if name in known:
                shared[name] = _join(shared[name], value) if name in shared else value
    if shared:
        origin["parameters"] = {name: _at_start(value) for name, value in shared.items()}
    return origin


def _join(first: Any, second: Any) -> Any:
    """Joins two settings by falling precedence: the second counts where no filter of the first matches."""
    first, second = (_conditions(value) for value in (first, second))
    catches_all = any(condition.get("filter") in (None, "*") for condition in first)
    return first if catches_all else [*first, *second]


def _conditions(value: Any) -> list[Document]:
    """Returns a setting as a list of conditional settings."""
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return value
    return [dict(value) if isinstance(value, Mapping) else {"value": value}]


def _at_start(value: Any) -> Any:
    """Returns the first value of gradients, which mergekit takes for embeddings and head."""
    if isinstance(value, Mapping):
        return {**value, "value": _at_start(value["value"])}
    if isinstance(value, list) and value:
        if isinstance(value[0], Mapping):
            return [_at_start(item) for item in value]
        return value[0]
    return value


def _check_scale(slices: Sequence[Document], defaults: Mapping[str, Any]) -> None:
    """Refuses scales that mergekit would apply to embeddings and head; a recipe's select does not."""
    for part in (slices[0], slices[-1]):
        scopes = (part["sources"][0].get("parameters") or {}, part.get("parameters") or {}, defaults)
        scales = [_at_start(scope["scale"]) for scope in scopes if "scale" in scope]
        conditions = [condition for scale in scales for condition in _conditions(scale)]
        for name in _OUTER:
            fitting = (condition["value"] for condition in conditions if _fits(condition, name))
            if next(fitting, 1.0) != 1.0:
                raise RecipeError(
                    "mergekit applies the scale of the first and the last slice to embeddings and head, and "
                    "a recipe does not; give it filters that leave them alone"
                )


def _fits(condition: Mapping[str, Any], name: str) -> bool:
    text = condition.get("filter")
    return text in (None, "*") or text in name
