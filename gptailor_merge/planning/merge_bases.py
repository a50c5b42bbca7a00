"""Finds which source of a merge is the method's base."""

from __future__ import annotations

from collections.abc import Iterator

from gptailor_merge.errors import KeyPath, Problem
from gptailor_merge.methods.specs import BasePolicy, MethodSpec
from gptailor_merge.recipe.recipe import BASE_MARK, Recipe, Slice, Source


def base_problems(recipe: Recipe, part: Slice, spec: MethodSpec) -> Iterator[Problem]:
    """Yields problems of a base that is absent, is marked twice, or is not taken by the method."""
    marks: list[KeyPath] = [("sources", i, "parameters", BASE_MARK) for i in _marked(part)]
    if not spec.takes_base:
        places: list[KeyPath] = [("base_model",)] if part.base_model is not None else []
        yield from (Problem(place, f"{spec.name} takes no base") for place in (*places, *marks))
        return
    if len(marks) > 1:
        yield Problem(marks[1], f"{spec.name} takes one base, found {len(marks)} sources that are marked so")
        return
    base = part.base_model or recipe.base_model
    if marks:
        marked = part.sources[_marked(part)[0]]
        if part.base_model is not None and part.base_model != marked.model:
            yield Problem(("base_model",), f"the source that is marked as base is of {marked.model}")
        return
    named = [source for source in part.sources if source.model == base]
    required = spec.base is BasePolicy.REQUIRED
    if len(named) > 1 and required:
        yield Problem(
            ("sources",),
            f"{base} gives several layers to one slot; say which of them is {spec.name}'s base by "
            f"parameters: {{{BASE_MARK}: true}} at that source",
        )
    if named or not required:
        return
    if spec.most is not None and len(part.sources) >= spec.most:
        names = " or ".join(dict.fromkeys(source.model for source in part.sources))
        yield Problem(
            ("base_model",),
            f"{spec.name} needs a base among its {len(part.sources)} sources and {base} is none of "
            f"them; set the slice's base_model to {names}",
        )
    elif len({source.layer_range for source in part.sources}) > 1:
        yield Problem(
            ("sources",),
            f"{spec.name} needs the base's layers, and the sources take different ones; "
            f"add {base} as a source with its layer_range",
        )


def with_base(recipe: Recipe, part: Slice, spec: MethodSpec) -> tuple[tuple[Source, ...], Source | None]:
    """Returns (sources, base): the base is one of the sources, or None.

    The base is the source that is marked, or else the source of the slice's or the recipe's base_model,
    which is added if the method requires it. If that model has several sources and none is marked, a
    method that does not require a base gets none.
    """
    if not spec.takes_base:
        return part.sources, None
    base = part.base_model or recipe.base_model
    chosen = [part.sources[i] for i in _marked(part)]
    chosen = chosen or [source for source in part.sources if source.model == base]
    if len(chosen) == 1:
        return part.sources, chosen[0]
    if spec.base is not BasePolicy.REQUIRED or chosen:
        return part.sources, None
    added = Source(model=base, layer_range=part.sources[0].layer_range)
    return (added, *part.sources), added


def _marked(part: Slice) -> list[int]:
    """Returns the positions of the sources that are marked as base."""
    return [i for i, source in enumerate(part.sources) if dict(source.parameters).get(BASE_MARK) is True]
