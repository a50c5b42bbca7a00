"""Resolves a recipe to a plan, and finds the mistakes that can be found without looking at any model."""

from __future__ import annotations

from collections.abc import Iterator

from gptailor_merge.documents import suggest
from gptailor_merge.errors import Problem, RecipeError
from gptailor_merge.methods.chat_templates import chat_template_problem
from gptailor_merge.planning.components import component, component_problems, rest_component
from gptailor_merge.planning.edit_problems import outer_edit_problems
from gptailor_merge.planning.operations import OPERATIONS, is_removed, operation_of
from gptailor_merge.planning.parameter_problems import default_problems
from gptailor_merge.recipe.edits import adapter_of, outer_gains
from gptailor_merge.recipe.model_names import with_one_name_each
from gptailor_merge.recipe.plan import SELECT, Plan
from gptailor_merge.recipe.recipe import Recipe, Slice

DTYPES = ("float32", "bfloat16", "float16", "float64")


def plan(recipe: Recipe) -> Plan:
    """Resolves a recipe.

    Raises:
        RecipeError: the recipe has problems, see `problems`.
    """
    recipe = with_one_name_each(recipe)
    mistakes = problems(recipe)
    if mistakes:
        raise RecipeError(mistakes)
    return Plan(
        base_model=recipe.base_model,
        slots=tuple(slot for part in recipe.slices for slot in operation_of(part).slots(recipe, part)),
        embeddings=component(recipe, recipe.parameters.embeddings),
        head=component(recipe, recipe.parameters.head),
        tokenizer=recipe.resolve(recipe.parameters.tokenizer),
        dtype=recipe.dtype,
        out_dtype=recipe.out_dtype,
        gains=outer_gains(recipe),
        rest=rest_component(recipe),
        adapter=adapter_of(recipe),
    )


def problems(recipe: Recipe) -> list[Problem]:
    """Returns every mistake in a recipe that can be found without looking at any model."""
    recipe = with_one_name_each(recipe)
    mistakes = [*_dtype_name_problems(recipe), *_chat_template_problems(recipe)]
    mistakes += default_problems(recipe, {_method(part) for part in recipe.slices})
    if mistakes:
        return mistakes  # slices cannot be resolved with wrong defaults
    for index, part in enumerate(recipe.slices):
        mistakes += [Problem(("slices", index, *p.path), p.message) for p in _slice_problems(recipe, part)]
    mistakes += _removal_problems(recipe)
    mistakes += _repeated_model_problems(recipe)
    mistakes += component_problems(recipe)
    mistakes += outer_edit_problems(recipe)
    if not mistakes and all(map(is_removed, recipe.slices)):
        mistakes.append(Problem(("slices",), "the model would be empty; no slice selects or merges a layer"))
    return mistakes


def _dtype_name_problems(recipe: Recipe) -> Iterator[Problem]:
    for name, dtype in (("dtype", recipe.dtype), ("out_dtype", recipe.out_dtype)):
        if dtype is not None and dtype not in DTYPES:
            yield Problem((name,), f"unknown dtype, found {dtype!r}{suggest(dtype, DTYPES)}")


def _chat_template_problems(recipe: Recipe) -> Iterator[Problem]:
    if recipe.chat_template is not None and (text := chat_template_problem(recipe.chat_template)):
        yield Problem(("chat_template",), text)


def _method(part: Slice) -> object:
    return operation_of(part).method_of(part) if part.parameter("op") in OPERATIONS else SELECT


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
        first, past = source.layer_range
        if not 0 <= first < past:
            yield Problem(
                ("sources", position, "layer_range"),
                f"expected [first, past the last] with 0 <= first < last, found [{first}, {past}]",
            )
    if len({source.length for source in part.sources}) > 1:
        lengths = ", ".join(f"{s.model} {list(s.layer_range)} has {s.length}" for s in part.sources)
        yield Problem(("sources",), f"sources of different length: {lengths} layers; all must be equal")
    operation = operation_of(part)
    if part.base_model is not None and not operation.takes_base_model:
        yield Problem(("base_model",), f"only a merge takes a base_model, this slice is op: {op}")
    yield from operation.problems(recipe, part)


def _removal_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields layer indices that are removed twice, or both removed and used."""
    removed: dict[int, int] = {}
    for index, part in enumerate(recipe.slices):
        if is_removed(part):
            for layer in sorted({layer for s in part.sources for layer in range(*s.layer_range)}):
                if layer in removed:
                    yield Problem(
                        ("slices", index),
                        f"overlapping removal: layer {layer} is already removed by slices[{removed[layer]}]",
                    )
                removed.setdefault(layer, index)
    for index, part in enumerate(recipe.slices):
        if not is_removed(part):
            for position, source in enumerate(part.sources):
                clash = [layer for layer in range(*source.layer_range) if layer in removed]
                if clash:
                    yield Problem(
                        ("slices", index, "sources", position, "layer_range"),
                        f"layer {clash[0]} is used here and removed by slices[{removed[clash[0]]}]; "
                        "a layer is either removed or used",
                    )


def _repeated_model_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields a problem if `chat_template: auto` would count a model once for each of its layers in a slot."""
    repeats = any(len({source.model for source in p.sources}) < len(p.sources) for p in recipe.slices)
    if recipe.chat_template == "auto" and repeats:
        text = "auto takes the commonest, and a model that gives several layers to a slot counts as several"
        yield Problem(("chat_template",), f"{text}; name a template")
