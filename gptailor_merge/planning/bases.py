"""Which source of a merge is the method's base, and what is wrong with that."""

from __future__ import annotations

from collections.abc import Iterator

from mergekit.merge_methods.base import BasePolicy, MergeMethodSpec

from gptailor_merge.errors import KeyPath, Problem
from gptailor_merge.recipe.recipe import BASE_MARK, Recipe, Slice, Source


def base_problems(recipe: Recipe, part: Slice, spec: MergeMethodSpec) -> Iterator[Problem]:
    """A base that is not there, or is there twice, or that the method does not take."""
    marks: list[KeyPath] = [("sources", i, "parameters", BASE_MARK) for i in _marked(part)]
    if not _takes_base(spec):
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
    required = spec.contract.base is BasePolicy.REQUIRED
    if len(named) > 1 and required:
        yield Problem(
            ("sources",),
            f"{base} gives several layers to one slot; say which of them is {spec.name}'s base by "
            f"parameters: {{{BASE_MARK}: true}} at that source",
        )
    if named or not required:
        return
    if spec.contract.max_inputs is not None and len(part.sources) >= spec.contract.max_inputs:
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


def with_base(recipe: Recipe, part: Slice, spec: MergeMethodSpec) -> tuple[tuple[Source, ...], Source | None]:
    """The sources with the base among them where the method needs it, and which of them it is.

    It is the source that is marked, or else the one of the slice's or the recipe's base_model. A
    method that may go without goes without where that model has several sources.
    """
    if not _takes_base(spec):
        return part.sources, None
    base = part.base_model or recipe.base_model
    chosen = [part.sources[i] for i in _marked(part)]
    chosen = chosen or [source for source in part.sources if source.model == base]
    if len(chosen) == 1:
        return part.sources, chosen[0]
    if spec.contract.base is not BasePolicy.REQUIRED or chosen:
        return part.sources, None
    added = Source(model=base, layer_range=part.sources[0].layer_range)
    return (added, *part.sources), added


def _takes_base(spec: MergeMethodSpec) -> bool:
    return spec.contract.base not in (BasePolicy.IGNORED, BasePolicy.FORBIDDEN)


def _marked(part: Slice) -> list[int]:
    return [i for i, source in enumerate(part.sources) if dict(source.parameters).get(BASE_MARK) is True]
