"""What a recipe's keys mean: each slice becomes slots, and every mistake becomes a problem.

A slice's `op` is one of the classes in `OPERATIONS`; a new one is a class and an entry there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gptailor_merge.editing import Edit
from gptailor_merge.errors import KeyPath, Problem, RecipeError
from gptailor_merge.mergekit_plugin import (
    SELECT,
    Operation,
    chat_template_names,
    method_names,
    method_spec,
)
from gptailor_merge.recipe.bases import base_problems, with_base
from gptailor_merge.recipe.edits import edit_problems, edits_of
from gptailor_merge.recipe.parameters import (
    default_problems,
    input_parameters,
    missing_problems,
    parameter_problems,
    scopes_of,
    settle,
)
from gptailor_merge.recipe.recipe import BASE, Component, Recipe, Slice, Source, suggest

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Slot:
    """One layer of the tailored model: the layers it is made from and how.

    Attributes:
        layers: (model, layer index) of each source.
        operation: what makes one layer of them.
        edits: what is done to single tensors of that layer then.
    """

    layers: tuple[tuple[str, int], ...]
    operation: Operation
    edits: tuple[Edit, ...] = ()

    @property
    def is_as_stored(self) -> bool:
        """Whether it is a member's own layer, with no more than a scale."""
        return self.operation.method == SELECT and not self.edits

    def to_json(self) -> list[Any]:
        """What the digest is made of."""
        edits = [[edit.part, edit.digest] for edit in self.edits]
        return [self.layers, self.operation.to_json(), *([edits] if edits else [])]


@dataclass(frozen=True)
class Plan:
    """A recipe with nothing left to resolve: what lowering and composing both execute.

    Attributes:
        slots: the layers of the tailored model, first to last.
        embeddings: (models, operation) of the token embeddings.
        head: (models, operation) of the final norm and lm_head.
        tokenizer: the model whose tokenizer, special tokens and generation config the model gets.
    """

    base_model: str
    slots: tuple[Slot, ...]
    embeddings: tuple[tuple[str, ...], Operation]
    head: tuple[tuple[str, ...], Operation]
    tokenizer: str
    dtype: str | None
    out_dtype: str | None

    @property
    def kept(self) -> tuple[int, ...]:
        """For each slot the layer whose kind it is of: that of its first source."""
        return tuple(slot.layers[0][1] for slot in self.slots)

    @property
    def repaired(self) -> tuple[int, ...]:
        """The slots whose MLP is multiplied with a map."""
        edited = (any(edit.digest is not None for edit in slot.edits) for slot in self.slots)
        return tuple(position for position, one in enumerate(edited) if one)

    @property
    def digest(self) -> str:
        """16 hex digits; equal for recipes that make the same model, however they are written."""
        parts = [
            self.base_model,
            [slot.to_json() for slot in self.slots],
            [[models, operation.to_json()] for models, operation in (self.embeddings, self.head)],
            self.dtype,
            self.out_dtype,
        ]
        if self.tokenizer != self.base_model:
            parts.append(self.tokenizer)
        text = json.dumps(parts, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def plan(recipe: Recipe) -> Plan:
    """Resolve a recipe to slots.

    Raises:
        RecipeError: see `problems`.
    """
    found = problems(recipe)
    if found:
        raise RecipeError(found)
    slots = [slot for part in recipe.slices for slot in _op(part).slots(recipe, part)]
    return Plan(
        base_model=recipe.base_model,
        slots=tuple(slots),
        embeddings=_component(recipe, recipe.parameters.embeddings),
        head=_component(recipe, recipe.parameters.head),
        tokenizer=recipe.resolve(recipe.parameters.tokenizer),
        dtype=recipe.dtype,
        out_dtype=recipe.out_dtype,
    )


def problems(recipe: Recipe) -> list[Problem]:
    """Everything that can be found wrong with a recipe without looking at any model."""
    found: list[Problem] = []
    for name in ("dtype", "out_dtype"):
        value = getattr(recipe, name)
        if value is not None and value not in DTYPES:
            found.append(Problem((name,), f"unknown dtype, found {value!r}{suggest(value, DTYPES)}"))
    found += _chat_template_problems(recipe.chat_template)
    used = {part.parameter("method") if part.parameter("op") == "merge" else SELECT for part in recipe.slices}
    found += default_problems(recipe, used)
    if found:
        return found  # the slices are resolved with these
    for index, part in enumerate(recipe.slices):
        found += [Problem(("slices", index, *p.path), p.message) for p in _slice_problems(recipe, part)]
    found += _removal_problems(recipe)
    if recipe.chat_template == "auto" and any(
        len({s.model for s in p.sources}) < len(p.sources) for p in recipe.slices
    ):
        # It would be counted once for each of its layers in a slot, see lowering.py.
        text = "auto takes the commonest, and a model that gives several layers to a slot counts as several"
        found.append(Problem(("chat_template",), f"{text}; name a template"))
    components = {
        "embeddings": recipe.parameters.embeddings,
        "head": recipe.parameters.head,
        "tokenizer": Component(weights=((recipe.parameters.tokenizer, 1.0),)),
    }
    for name, component in components.items():
        found += [
            Problem(("parameters", name, *p.path), p.message) for p in _component_problems(recipe, component)
        ]
    if not found and not any(_op(part).slots(recipe, part) for part in recipe.slices):
        found.append(Problem(("slices",), "the model would be empty; no slice selects or merges a layer"))
    return found


def _chat_template_problems(template: str | None) -> Iterator[Problem]:
    """mergekit logs a bad template as an error, goes on, and leaves the model without tokenizer."""
    names = chat_template_names()
    if (
        template is not None
        and template not in ("auto", *names)
        and (len(template) < 20 or "{" not in template)
    ):
        message = f"expected auto, the name of a template of mergekit or a Jinja template, found {template!r}"
        yield Problem(("chat_template",), message + suggest(template, names))


def _op(part: Slice) -> Op:
    return OPERATIONS[part.parameter("op")]


def _slice_problems(recipe: Recipe, part: Slice) -> Iterator[Problem]:
    op = part.parameter("op")
    if op is None:
        yield Problem(("parameters",), f"op is missing; one of {', '.join(OPERATIONS)}")
        return
    if op not in OPERATIONS:
        yield Problem(("parameters", "op"), f"unknown op, found {op!r}{suggest(str(op), OPERATIONS)}")
        return
    if not part.sources:
        yield Problem(("sources",), "is empty; at least one source is needed")
        return
    for position, source in enumerate(part.sources):
        first, last = source.layer_range
        if not 0 <= first < last:
            yield Problem(
                ("sources", position, "layer_range"),
                f"expected [first, past the last] with 0 <= first < last, found [{first}, {last}]",
            )
    if len({source.length for source in part.sources}) > 1:
        lengths = ", ".join(f"{s.model} {list(s.layer_range)} has {s.length}" for s in part.sources)
        yield Problem(("sources",), f"sources of different length: {lengths} layers; all must be equal")
    if part.base_model is not None and op != "merge":
        yield Problem(("base_model",), f"only a merge takes a base_model, this slice is op: {op}")
    yield from OPERATIONS[op].problems(recipe, part)


def _removal_problems(recipe: Recipe) -> Iterator[Problem]:
    """A layer index is either removed, once, or used."""
    removed: dict[int, int] = {}
    for index, part in enumerate(recipe.slices):
        if part.parameter("op") == "remove":
            for layer in sorted({layer for s in part.sources for layer in range(*s.layer_range)}):
                if layer in removed:
                    yield Problem(
                        ("slices", index),
                        f"overlapping removal: layer {layer} is already removed by slices[{removed[layer]}]",
                    )
                removed.setdefault(layer, index)
    for index, part in enumerate(recipe.slices):
        if part.parameter("op") != "remove":
            for position, source in enumerate(part.sources):
                clash = [layer for layer in range(*source.layer_range) if layer in removed]
                if clash:
                    yield Problem(
                        ("slices", index, "sources", position, "layer_range"),
                        f"layer {clash[0]} is used here and removed by slices[{removed[clash[0]]}]; "
                        "a layer is either removed or used",
                    )


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


def _component_problems(recipe: Recipe, component: Component) -> Iterator[Problem]:
    used = {source.model for part in recipe.slices for source in part.sources} | {recipe.base_model}
    named = [member for member, _ in component.weights]
    for member in [*named, *([component.base_model] if component.base_model else [])]:
        # Not every member gives layers; what looks like a model may be one.
        if recipe.resolve(member) not in used and "/" not in member:
            names = ["base", *sorted(used)]
            yield Problem((), f"unknown member, found {member!r}{suggest(member, names)}")
    if component.method is None:
        return
    key = "members" if any(weight is None for _, weight in component.weights) else "weights"
    if not named:
        yield Problem((key,), "is empty")
        return
    if len({recipe.resolve(member) for member in named}) < len(named):
        yield Problem((key,), f"a model appears twice ({BASE} is {recipe.base_model})")
        return
    # The same merge as a slice: the same rules hold. What each source lacks is said once.
    found = OPERATIONS["merge"].problems(_without_defaults(recipe), _as_slice(recipe, component))
    for problem in {(p.path[:1], p.message): p for p in found}.values():
        head, *rest = problem.path or ("",)
        if head == "sources":
            yield Problem((key,), problem.message)
        elif head == "parameters" and rest == ["method"]:
            yield Problem(("method",), problem.message)
        else:
            yield problem


def _component(recipe: Recipe, component: Component) -> tuple[tuple[str, ...], Operation]:
    if component.method is None:
        return (recipe.resolve(component.weights[0][0]),), Operation(SELECT, ((),))
    # What the recipe's slices take by default is not meant for embeddings and head.
    (slot,) = OPERATIONS["merge"].slots(_without_defaults(recipe), _as_slice(recipe, component))
    return tuple(model for model, _ in slot.layers), slot.operation


def _as_slice(recipe: Recipe, component: Component) -> Slice:
    """A slice that merges as the component does."""
    sources = tuple(
        Source(
            model=recipe.resolve(member),
            layer_range=(0, 1),
            parameters=() if weight is None else (("weight", weight),),
        )
        for member, weight in component.weights
    )
    parameters = (("op", "merge"), ("method", component.method), *component.parameters)
    base = None if component.base_model is None else recipe.resolve(component.base_model)
    return Slice(sources=sources, base_model=base, parameters=parameters)


def _without_defaults(recipe: Recipe) -> Recipe:
    parameters = recipe.parameters.model_copy(update={"defaults": ()})
    return recipe.model_copy(update={"parameters": parameters})
