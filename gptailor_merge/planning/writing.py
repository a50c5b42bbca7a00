"""Writes a plan down as a recipe: the inverse of planning.resolve, and the only writer of slices.

It stands here and not in the recipe room because what may stay unwritten, a merge's base, depends on the
method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from gptailor_merge.methods.specs import method_spec
from gptailor_merge.planning.merge_bases import with_base
from gptailor_merge.recipe.fields import Conditional, Origin, Parameters
from gptailor_merge.recipe.grouping import runs
from gptailor_merge.recipe.plan import (
    NORMS,
    SELECT,
    Component,
    Filtered,
    Operation,
    Plan,
    Scalar,
    Settings,
    Slot,
)
from gptailor_merge.recipe.recipe import (
    BASE,
    BASE_MARK,
    GAINS,
    GAINS_DIGEST,
    REPAIR,
    REPAIR_DIGEST,
    WITHOUT,
    GlobalParameters,
    Recipe,
    Slice,
    Source,
)


def recipe_of(plan: Plan, depth: int) -> Recipe:
    """Writes a plan as a recipe that resolves to an equal plan and documents which layers are removed.

    A base_model that the plan's method does not use is not in the plan, and is not written.

    Args:
        depth: layers of every member of the family.

    >>> from gptailor_merge.planning.resolve import plan
    >>> slots = tuple(Slot((("org/base", layer),), Operation(SELECT, ((),))) for layer in (0, 1, 4))
    >>> whole = Component(("org/base",), Operation(SELECT, ((),)))
    >>> pruned = Plan("org/base", slots, whole, whole, "org/base", "float32", None)
    >>> print(recipe_of(pruned, depth=5).to_yaml())
    merge_method: tailor
    base_model: org/base
    dtype: float32
    slices:
      - sources:
          - {model: org/base, layer_range: [0, 2]}
        parameters: {op: select}
      - sources:
          - {model: org/base, layer_range: [2, 4]}
        parameters: {op: remove}
      - sources:
          - {model: org/base, layer_range: [4, 5]}
        parameters: {op: select}
    <BLANKLINE>
    >>> plan(recipe_of(pruned, depth=5)) == pruned
    True
    """
    slices = tuple(slices_of(plan.slots, plan.base_model))
    return Recipe(
        base_model=plan.base_model,
        dtype=plan.dtype,
        out_dtype=plan.out_dtype,
        parameters=GlobalParameters(
            embeddings=origin_of(plan.embeddings, plan.base_model),
            head=origin_of(plan.head, plan.base_model),
            rest=origin_of(plan.rest_component, plan.base_model),
            tokenizer=_member(plan.tokenizer, plan.base_model),
            gains=plan.gains.file if plan.gains else None,
            gains_digest=plan.gains.digest if plan.gains else None,
            adapter=plan.adapter.file if plan.adapter else None,
            adapter_digest=plan.adapter.digest if plan.adapter else None,
        ),
        slices=with_removals(slices, plan.base_model, depth),
    )


def slices_of(slots: Sequence[Slot], base_model: str) -> Iterator[Slice]:
    """Writes slots as slices: neighbours that are made alike share one, a repaired slot stands alone.

    Args:
        base_model: the recipe's.
    """
    for run in runs(slots):
        first = slots[run.start]
        # A map is fitted to one layer, and a slice with one may not have more.
        is_repaired = any(edit.is_repair for edit in first.edits)
        if is_repaired:
            yield from (_slice(slots[position], 1, base_model) for position in run)
        else:
            yield _slice(first, len(run), base_model)


def with_removals(slices: Sequence[Slice], base_model: str, depth: int) -> tuple[Slice, ...]:
    """Adds slices that document which layers no slice uses, each where the layers would stand.

    Args:
        base_model: the model that these layers are attributed to.
        depth: layers of every member of the family.
    """
    used = {layer for part in slices for source in part.sources for layer in range(*source.layer_range)}
    removed = list(_stretches(layer for layer in range(depth) if layer not in used))
    whole: list[Slice] = []
    for part in slices:
        first = part.sources[0].layer_range[0]
        while removed and removed[0][0] < first:
            whole.append(_removal(removed.pop(0), base_model))
        whole.append(part)
    return (*whole, *(_removal(layers, base_model) for layers in removed))


def _stretches(layers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yields ascending layers as ranges [first, past the last)."""
    for _, group in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        stretch = [layer for _, layer in group]
        yield stretch[0], stretch[-1] + 1


def _removal(layers: tuple[int, int], base_model: str) -> Slice:
    return Slice(sources=(Source(model=base_model, layer_range=layers),), parameters=(("op", "remove"),))


def _slice(slot: Slot, length: int, base_model: str) -> Slice:
    """Writes `length` slots, of which the others differ from the first in taking the next layers."""
    operation = slot.operation
    models = [model for model, _ in slot.layers]
    base = None if operation.method == SELECT or operation.base is None else models[operation.base]
    # A model that gives several layers to the slot does not say which of them is the base.
    is_marked = base is not None and models.count(base) > 1
    sources = []
    for position, ((model, layer), settings) in enumerate(zip(slot.layers, operation.inputs, strict=True)):
        mark: Parameters = ((BASE_MARK, True),) if is_marked and position == operation.base else ()
        parameters = (*mark, *_parameters(settings))
        sources.append(Source(model=model, layer_range=(layer, layer + length), parameters=parameters))
    op: Parameters = (("op", "select"),)
    if operation.method != SELECT:
        op = (("op", "merge"), ("method", operation.method))
    edits: list[tuple[str, str]] = []
    for edit in slot.edits:
        if edit.digest is None:
            edits.append((WITHOUT, edit.part))
        elif edit.part == NORMS:
            edits += [(GAINS, edit.file), (GAINS_DIGEST, edit.digest)]
        else:
            edits += [(REPAIR, edit.file), (REPAIR_DIGEST, edit.digest)]
    return Slice(
        sources=tuple(sources),
        base_model=None if is_marked or base == base_model else base,
        parameters=(*op, *_parameters(operation.shared), *edits),
    )


def origin_of(component: Component, base_model: str) -> Origin:
    """Writes the origin of embeddings, head or the rest."""
    models, operation = component
    if operation.method == SELECT:
        return Origin(weights=((_member(models[0], base_model), 1.0),))
    members = list(zip(models, map(dict, operation.inputs), strict=True))
    base = None if operation.base is None else models[operation.base]
    if operation.base == 0 and _is_implied(models, operation, base_model):
        members = members[1:]
    weights = _weights(members, base)
    members_with_settings = [settings for model, settings in members if settings or model != base]
    if len({_beside_weights(settings, weights) for settings in members_with_settings}) > 1:
        return Origin(
            weights=tuple((_member(model, base_model), None) for model, _ in members),
            method=operation.method,
            base_model=None if base is None or base == base_model else base,
            parameters=_parameters(operation.shared),
            settings=tuple(_parameters(tuple(settings.items())) for _, settings in members),
        )
    # Only weights differ between the members of a component: what else they have is that of all.
    of_members = {
        name: value
        for _, settings in members
        for name, value in settings.items()
        if name != "weight" or None in weights
    }
    return Origin(
        weights=tuple(
            (_member(model, base_model), weight) for (model, _), weight in zip(members, weights, strict=True)
        ),
        method=operation.method,
        base_model=None if base is None or base == base_model else base,
        parameters=_parameters((*of_members.items(), *operation.shared)),
    )


def _beside_weights(
    settings: Mapping[str, Scalar | Filtered], weights: Sequence[float | None]
) -> frozenset[tuple[str, Scalar | Filtered]]:
    """Returns the settings of a member that no number for each member says."""
    return frozenset(pair for pair in settings.items() if pair[0] != "weight" or None in weights)


def _weights(
    members: Sequence[tuple[str, Mapping[str, Scalar | Filtered]]], base: str | None
) -> list[float | None]:
    """Returns a number for each member, or None for each where they have none or these differ by tensor."""
    # A base that takes no weight needs some number, which is not read.
    settings = [of_member.get("weight", 1.0 if model == base else None) for model, of_member in members]
    numbers = [float(setting) if isinstance(setting, (int, float)) else None for setting in settings]
    are_written = None not in numbers and any("weight" in of_member for _, of_member in members)
    return numbers if are_written else [None] * len(members)


def _is_implied(models: Sequence[str], operation: Operation, base_model: str) -> bool:
    """Tells whether the planner adds a component's base, its first model, where it is not written."""
    if models[0] != base_model:
        return False
    spec = method_spec(operation.method)
    assert spec is not None
    sources = tuple(Source(model=model, layer_range=(0, 1)) for model in models[1:])
    _, base = with_base(Recipe(base_model=base_model, slices=()), Slice(sources=sources), spec)
    return base is not None


def _member(model: str, base_model: str) -> str:
    return BASE if model == base_model else model


def _parameters(settings: Settings) -> Parameters:
    return tuple(
        (name, tuple(Conditional(filter=f, value=v) for f, v in value) if isinstance(value, tuple) else value)
        for name, value in settings
    )
