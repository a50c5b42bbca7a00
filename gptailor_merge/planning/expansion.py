"""Expands a slice into slots, one for each layer of its sources."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor_merge.methods.specs import method_spec
from gptailor_merge.planning.method_parameters import settle, slice_scopes, source_parameters
from gptailor_merge.recipe.edits import edits_of
from gptailor_merge.recipe.plan import Operation, Slot
from gptailor_merge.recipe.recipe import Recipe, Slice, Source


def expand(
    recipe: Recipe, part: Slice, method: str, sources: Sequence[Source], base: Source | None
) -> tuple[Slot, ...]:
    """Returns the slots of a slice whose sources go through one merge method.

    Args:
        method: the name of a registered method.
        sources: the slice's sources, and a base that was added to them.
        base: the one of `sources` that is the method's base, or None.
    """
    spec = method_spec(method)
    assert spec is not None
    scopes = slice_scopes(recipe, part)
    length = sources[0].length
    position = None if base is None else position_of(base, sources)
    slots = []
    for offset in range(length):
        # mergekit's position within a gradient (plan.py, plan_slice)
        t = offset / (length - 1) if length > 1 else 1.0
        inputs = tuple(
            settle(source_parameters(spec, source is base), [dict(source.parameters), *scopes], t)
            for source in sources
        )
        shared = settle(spec.shared_parameters, scopes, t)
        layers = tuple((source.model, source.layer_range[0] + offset) for source in sources)
        slots.append(Slot(layers, Operation(method, inputs, shared, position), edits_of(part)))
    return tuple(slots)


def position_of(source: Source, sources: Sequence[Source]) -> int:
    """Returns the position of the very same source; equal ones do not count."""
    return next(i for i, candidate in enumerate(sources) if candidate is source)
