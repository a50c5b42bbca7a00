"""Resolves the origins of embeddings, head and rest to components of a plan, and finds mistakes in them."""

from __future__ import annotations

from collections.abc import Iterator

from gptailor_merge.documents import suggest
from gptailor_merge.errors import Problem
from gptailor_merge.planning.operations import MergeOperation
from gptailor_merge.recipe.fields import Origin
from gptailor_merge.recipe.plan import SELECT, Component, Operation
from gptailor_merge.recipe.recipe import BASE, Recipe, Slice, Source


def component(recipe: Recipe, origin: Origin) -> Component:
    """Returns the component of an origin that has no problems."""
    if origin.method is None:
        return Component((recipe.resolve(origin.weights[0][0]),), Operation(SELECT, ((),)))
    (slot,) = MergeOperation().slots(_without_defaults(recipe), _as_slice(recipe, origin))
    return Component(tuple(model for model, _ in slot.layers), slot.operation)


def rest_component(recipe: Recipe) -> Component | None:
    """Returns the component of what is no part of the language model; None if it is the base's."""
    rest = component(recipe, recipe.parameters.rest)
    return None if rest == Component((recipe.base_model,), Operation(SELECT, ((),))) else rest


def component_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields mistakes in the origins of embeddings, head, the rest and tokenizer."""
    origins = {
        "embeddings": recipe.parameters.embeddings,
        "head": recipe.parameters.head,
        "rest": recipe.parameters.rest,
        "tokenizer": Origin(weights=((recipe.parameters.tokenizer, 1.0),)),
    }
    for name, origin in origins.items():
        for problem in _origin_problems(recipe, origin):
            yield Problem(("parameters", name, *problem.path), problem.message)


def _origin_problems(recipe: Recipe, origin: Origin) -> Iterator[Problem]:
    used = {source.model for part in recipe.slices for source in part.sources} | {recipe.base_model}
    members = [member for member, _ in origin.weights]
    for member in [*members, *([origin.base_model] if origin.base_model else [])]:
        # A member need not give layers: a name with a slash may be a model that no slice uses.
        if recipe.resolve(member) not in used and "/" not in member:
            names = ["base", *sorted(used)]
            yield Problem((), f"unknown member, found {member!r}{suggest(member, names)}")
    if origin.method is None:
        return
    key = "members" if any(weight is None for _, weight in origin.weights) else "weights"
    if not members:
        yield Problem((key,), "is empty")
        return
    if len({recipe.resolve(member) for member in members}) < len(members):
        yield Problem((key,), f"a model appears twice ({BASE} is {recipe.base_model})")
        return
    # The rules are those of a slice that merges. A mistake of several sources is reported once.
    problems = MergeOperation().problems(_without_defaults(recipe), _as_slice(recipe, origin))
    for problem in {(p.path[:1], p.message): p for p in problems}.values():
        head, *rest = problem.path or ("",)
        if head == "sources":
            yield Problem((key,), problem.message)
        elif head == "parameters" and rest == ["method"]:
            yield Problem(("method",), problem.message)
        else:
            yield problem


def _as_slice(recipe: Recipe, origin: Origin) -> Slice:
    """Returns a slice that merges as the origin does."""
    sources = tuple(
        Source(
            model=recipe.resolve(member),
            layer_range=(0, 1),
            parameters=origin.settings_of(position),
        )
        for position, (member, _) in enumerate(origin.weights)
    )
    parameters = (("op", "merge"), ("method", origin.method), *origin.parameters)
    base = None if origin.base_model is None else recipe.resolve(origin.base_model)
    return Slice(sources=sources, base_model=base, parameters=parameters)


def _without_defaults(recipe: Recipe) -> Recipe:
    """Returns the recipe without its defaults, which are for its slices alone."""
    parameters = recipe.parameters.model_copy(update={"defaults": ()})
    return recipe.model_copy(update={"parameters": parameters})
