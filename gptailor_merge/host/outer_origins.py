"""Finds where a mergekit configuration takes embeddings and head from: the slices at its ends.

mergekit takes the embeddings from the sources of the first slice, and final norm and head from those of
the last, both at the start of gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptailor_merge.errors import RecipeError
from gptailor_merge.host.imported_recipe import Document
from gptailor_merge.methods.specs import ParameterScope, method_spec
from gptailor_merge.recipe.plan import SELECT

_OUTER = {"embeddings": ("model.embed_tokens.weight",), "head": ("model.norm.weight", "lm_head.weight")}


def outer_origins(
    slices: Sequence[Document], method: str, base: str, defaults: Mapping[str, Any], chosen: Mapping[str, str]
) -> Document:
    """Returns the origins of embeddings and head, as a recipe writes them.

    Args:
        slices: of the configuration, all of one method.
        defaults: the configuration's parameters.
        chosen: "embeddings" or "head" -> the member to take it from, instead of what mergekit takes.

    Raises:
        RecipeError: a recipe cannot say the same; the message names the option that chooses.
    """
    first, last = slices[0], slices[-1]
    # mergekit pairs the sources of the last slice with those of the first, and drops the surplus.
    ends = {"embeddings": first, "head": {**last, "sources": last["sources"][: len(first["sources"])]}}
    origins: Document = dict(chosen)
    for name, part in ends.items():
        if name not in chosen:
            _check_scale(name, part, method, defaults)
            origins[name] = _origin(part, method, base, defaults)
    return origins


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
    settings = [
        {name: _at_start(value) for name, value in dict(source.get("parameters") or {}).items()}
        for source in members
    ]
    names = [source["model"] for source in members]
    origin: Document = {"method": method}
    if all(of_member.keys() == {"weight"} and _is_number(of_member["weight"]) for of_member in settings):
        origin["weights"] = dict(zip(names, (of_member["weight"] for of_member in settings), strict=True))
    elif any(settings):
        origin["members"] = [
            {"model": name, "parameters": of_member} if of_member else name
            for name, of_member in zip(names, settings, strict=True)
        ]
    else:
        origin["members"] = names
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


def _check_scale(name: str, part: Document, method: str, defaults: Mapping[str, Any]) -> None:
    """Refuses a scale that mergekit would apply to embeddings or head; a recipe's select does not."""
    if method != SELECT:
        return
    scopes = (part["sources"][0].get("parameters") or {}, part.get("parameters") or {}, defaults)
    scales = [_at_start(scope["scale"]) for scope in scopes if "scale" in scope]
    conditions = [condition for scale in scales for condition in _conditions(scale)]
    for tensor in _OUTER[name]:
        fitting = (condition["value"] for condition in conditions if _fits(condition, tensor))
        if next(fitting, 1.0) != 1.0:
            raise RecipeError(
                f"mergekit applies the scale of the first and the last slice to embeddings and head, here to "
                f"{tensor}, and a recipe does not; give it filters that leave them alone, or say where they "
                f"come from, unscaled, with --{name} MODEL"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fits(condition: Mapping[str, Any], name: str) -> bool:
    text = condition.get("filter")
    return text in (None, "*") or text in name
