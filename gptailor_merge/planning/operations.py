"""The operations remove, select and merge: what is wrong with a slice, and the slots that it fills."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from gptailor_merge.documents import suggest
from gptailor_merge.errors import KeyPath, Problem
from gptailor_merge.methods.specs import method_names, method_spec
from gptailor_merge.planning.bases import base_problems, with_base
from gptailor_merge.planning.edit_problems import edit_problems
from gptailor_merge.planning.parameters import (
    input_parameters,
    missing_problems,
    parameter_problems,
    scopes_of,
    settle,
)
from gptailor_merge.recipe.edits import edits_of
from gptailor_merge.recipe.plan import SELECT, Operation, Slot
from gptailor_merge.recipe.recipe import Recipe, Slice, Source


class Op(Protocol):
    """What a slice's `op` does."""

    def problems(self, recipe: Recipe, part: Slice) -> Iterator[Problem]:
        """What is wrong with the slice; paths are relative to it."""

    def slots(self, recipe: Recipe, part: Slice) -> tuple[Slot, ...]:
        """The slots that a sound slice fills."""


class Remove:
    """Documents layers that are gone; fills no slot."""

    def problems(self, recipe: Recipe, part: Slice) -> Iterator[Problem]:
        for name, _ in part.parameters:
            if name != "op":
                yield Problem(("parameters", name), "a removed slice takes no parameters but op")
        for position, source in enumerate(part.sources):
            if source.parameters:
                path: KeyPath = ("sources", position, "parameters")
                yield Problem(path, "a removed slice takes no parameters but op")

    def slots(self, recipe: Recipe, part: Slice) -> tuple[Slot, ...]:
        return ()


class Select:
    """Takes the layers of one member as they are."""

    def problems(self, recipe: Recipe, part: Slice) -> Iterator[Problem]:
        if len(part.sources) != 1:
            yield Problem(
                ("sources",),
                f"select takes one source, found {len(part.sources)}; to combine them write op: merge",
            )
        if part.parameter("method") is not None:
            yield Problem(("parameters", "method"), "select takes no method; did you mean op: merge?")
        yield from parameter_problems(SELECT, part)
        yield from edit_problems(part)

    def slots(self, recipe: Recipe, part: Slice) -> tuple[Slot, ...]:
        return _expand(recipe, part, SELECT, part.sources, base=None)


class Merge:
    """Merges layers of several members by a mergekit method."""

    def problems(self, recipe: Recipe, part: Slice) -> Iterator[Problem]:
        method = part.parameter("method")
        if method is None:
            yield Problem(("parameters",), "method is missing; merge takes the name of a mergekit method")
            return
        spec = method_spec(method) if isinstance(method, str) else None
        if spec is None or method == SELECT:
            known = [name for name in method_names() if name != SELECT]
            yield Problem(
                ("parameters", "method"),
                f"unknown method, found {method!r}{suggest(str(method), known)}",
            )
            return
        yield from base_problems(recipe, part, spec)
        sources, base = with_base(recipe, part, spec)
        wrong = list(parameter_problems(method, part))
        yield from wrong or missing_problems(recipe, part, method, sources, base)
        if len({(source.model, source.layer_range) for source in sources}) < len(sources):
            yield Problem(("sources",), "a layer appears twice; give it once, with the weight of both")
        elif len(part.sources) > 1 or base is not None:
            try:
                spec.contract.validate_ids(
                    range(len(sources)), None if base is None else _index(sources, base)
                )
            except ValueError as error:
                text = str(error)
                yield Problem(("sources",), f"{method}: {text[0].lower() + text[1:]}")
        if len(sources) < 2:
            yield Problem(("sources",), "merge takes two sources or more; for one write op: select")
        yield from edit_problems(part)

    def slots(self, recipe: Recipe, part: Slice) -> tuple[Slot, ...]:
        method = part.parameter("method")
        spec = method_spec(method)
        assert spec is not None
        sources, base = with_base(recipe, part, spec)
        return _expand(recipe, part, method, sources, base)


OPERATIONS: Mapping[str, Op] = {"remove": Remove(), "select": Select(), "merge": Merge()}


def _expand(
    recipe: Recipe, part: Slice, method: str, sources: tuple[Source, ...], base: Source | None
) -> tuple[Slot, ...]:
    spec = method_spec(method)
    assert spec is not None
    scopes = scopes_of(recipe, part)
    length = sources[0].length
    position = None if base is None else _index(sources, base)
    slots = []
    for offset in range(length):
        # mergekit's position within a gradient (plan.py, plan_slice)
        t = offset / (length - 1) if length > 1 else 1.0
        shared = settle(spec.shared_parameters, scopes, t)
        inputs = tuple(
            settle(input_parameters(spec, source is base), [dict(source.parameters), *scopes], t)
            for source in sources
        )
        slots.append(
            Slot(
                layers=tuple((s.model, s.layer_range[0] + offset) for s in sources),
                operation=Operation(method, inputs, shared, position),
                edits=edits_of(part),
            )
        )
    return tuple(slots)


def _index(sources: tuple[Source, ...], wanted: Source) -> int:
    return next(i for i, source in enumerate(sources) if source is wanted)
