"""What a recipe's keys mean: each slice becomes slots, and every mistake becomes a problem.

A slice's `op` is one of the classes in `OPERATIONS`; a new one is a class and an entry there.
"""

from __future__ import annotations

from collections.abc import Iterator

from gptailor_merge.documents import suggest
from gptailor_merge.errors import Problem, RecipeError
from gptailor_merge.methods.specs import chat_template_names
from gptailor_merge.planning.operations import OPERATIONS, Op
from gptailor_merge.planning.parameters import (
    default_problems,
)
from gptailor_merge.recipe.plan import SELECT, Operation, Plan
from gptailor_merge.recipe.recipe import BASE, Component, Recipe, Slice, Source

DTYPES = ("float32", "bfloat16", "float16", "float64")


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
