"""The operations that a slice's `op` names: remove, select and merge, and those of other packages.

A new operation is a class that implements `LayerOperation` and an entry in `BUILT_IN`, or an entry point
of the group `gptailor_merge.operations` in another package. `gptailor_merge.testing.operations` holds
the tests that every operation passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from gptailor_merge.errors import KeyPath, Problem, RecipeError
from gptailor_merge.extensions import Registry
from gptailor_merge.methods.specs import merge_method_problem, method_spec
from gptailor_merge.planning.edit_problems import edit_problems
from gptailor_merge.planning.expansion import expand, position_of
from gptailor_merge.planning.merge_bases import base_problems, with_base
from gptailor_merge.planning.parameter_problems import missing_problems, parameter_problems
from gptailor_merge.recipe.plan import SELECT, Slot
from gptailor_merge.recipe.recipe import Recipe, Slice


class LayerOperation(Protocol):
    """Turns slices into slots.

    Attributes:
        takes_base_model: True if a slice may have a `base_model`.
    """

    @property
    def takes_base_model(self) -> bool: ...

    def method_of(self, part: Slice) -> object:
        """Returns the name of the slice's merge method; the recipe's defaults may set its parameters."""

    def problems(self, recipe: Recipe, part: Slice) -> Iterator[Problem]:
        """Yields the slice's mistakes, with key paths relative to it; it has at least one source."""

    def slots(self, recipe: Recipe, part: Slice) -> tuple[Slot, ...]:
        """Returns one slot for each layer of the first source; the slice has no problems."""


class RemoveOperation:
    """Documents layers that are gone; fills no slots."""

    takes_base_model = False

    def method_of(self, part: Slice) -> object:
        return SELECT

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


class SelectOperation:
    """Takes the layers of one member as they are."""

    takes_base_model = False

    def method_of(self, part: Slice) -> object:
        return SELECT

    def problems(self, recipe: Recipe, part: Slice) -> Iterator[Problem]:
        if len(part.sources) != 1:
            yield Problem(
                ("sources",),
                f"select takes one source, found {len(part.sources)}; to combine them write op: merge",
            )
        if part.parameter("method") is not None:
            yield Problem(("parameters", "method"), "select takes no method; did you mean op: merge?")
        spec = method_spec(SELECT)
        assert spec is not None
        yield from parameter_problems(spec, part)
        yield from edit_problems(part)

    def slots(self, recipe: Recipe, part: Slice) -> tuple[Slot, ...]:
        return expand(recipe, part, SELECT, part.sources, base=None)


class MergeOperation:
    """Merges layers of several members by the method that the slice names."""

    takes_base_model = True

    def method_of(self, part: Slice) -> object:
        return part.parameter("method")

    def problems(self, recipe: Recipe, part: Slice) -> Iterator[Problem]:
        method = part.parameter("method")
        if (text := merge_method_problem(method)) is not None:
            yield Problem(("parameters",) if method is None else ("parameters", "method"), text)
            return
        spec = method_spec(method)
        assert spec is not None
        of_base = list(base_problems(recipe, part, spec))
        yield from of_base
        sources, base = with_base(recipe, part, spec)
        wrong = list(parameter_problems(spec, part))
        yield from wrong or missing_problems(recipe, part, spec, base)
        if len({(source.model, source.layer_range) for source in sources}) < len(sources):
            yield Problem(("sources",), "a layer appears twice; give it once, with the weight of both")
        elif not of_base and (len(part.sources) > 1 or base is not None):
            position = None if base is None else position_of(base, sources)
            if (text := spec.input_problem(len(sources), position)) is not None:
                yield Problem(("sources",), text)
        if len(sources) < 2:
            yield Problem(("sources",), "merge takes two sources or more; for one write op: select")
        yield from edit_problems(part)

    def slots(self, recipe: Recipe, part: Slice) -> tuple[Slot, ...]:
        method = part.parameter("method")
        spec = method_spec(method)
        assert spec is not None
        sources, base = with_base(recipe, part, spec)
        return expand(recipe, part, method, sources, base)


BUILT_IN: Mapping[str, Callable[[], LayerOperation]] = {
    "remove": RemoveOperation,
    "select": SelectOperation,
    "merge": MergeOperation,
}


OPERATIONS: Registry[Callable[[], LayerOperation]] = Registry(
    "op", "gptailor_merge.operations", BUILT_IN, RecipeError
)
"""`op` -> the class of its operation, which is constructed without arguments."""


def operation_of(part: Slice) -> LayerOperation:
    """Returns the operation that a slice names.

    Raises:
        RecipeError: there is no such operation, or it cannot be imported.
    """
    return OPERATIONS[part.parameter("op")]()


def is_removed(part: Slice) -> bool:
    """Tells whether a slice documents layers that are gone."""
    return bool(part.parameter("op") == "remove")


def merges(part: Slice) -> bool:
    """Tells whether a slice computes its layers by a merge method, instead of taking or removing them."""
    return operation_of(part).method_of(part) != SELECT
