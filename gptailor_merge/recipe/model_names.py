"""The names of models in a recipe: several spellings of one directory are one model."""

from __future__ import annotations

import os
from collections.abc import Callable

from gptailor_merge.recipe.fields import Origin
from gptailor_merge.recipe.recipe import Recipe, Slice


def with_one_name_each(recipe: Recipe) -> Recipe:
    """Returns the recipe with one name for each model: `base/`, `base` and `./base` are one directory.

    The name that comes first stands for all; a slash at its end is left out.
    """
    first: dict[str, str] = {}
    names = {model: first.setdefault(identity(model), tidy(model)) for model in recipe.models}
    if all(model == name for model, name in names.items()):
        return recipe
    return renamed(recipe, lambda model: names.get(model, model))


def renamed(recipe: Recipe, name_of: Callable[[str], str]) -> Recipe:
    """Returns a recipe with other names for its models.

    Args:
        name_of: model -> its new name; it is also asked for `base`, which stands for the base_model.
    """

    def of_origin(origin: Origin) -> Origin:
        base = None if origin.base_model is None else name_of(origin.base_model)
        weights = tuple((name_of(member), weight) for member, weight in origin.weights)
        return origin.model_copy(update={"weights": weights, "base_model": base})

    def of_slice(part: Slice) -> Slice:
        base = None if part.base_model is None else name_of(part.base_model)
        sources = tuple(source.model_copy(update={"model": name_of(source.model)}) for source in part.sources)
        return part.model_copy(update={"sources": sources, "base_model": base})

    parameters = recipe.parameters
    outer = {
        "embeddings": of_origin(parameters.embeddings),
        "head": of_origin(parameters.head),
        "tokenizer": name_of(parameters.tokenizer),
    }
    return recipe.model_copy(
        update={
            "base_model": name_of(recipe.base_model),
            "parameters": parameters.model_copy(update=outer),
            "slices": tuple(map(of_slice, recipe.slices)),
        }
    )


def tidy(model: str) -> str:
    """Returns a name without slashes and dots that say nothing; `./` at its start says that it is a path.

    >>> tidy("./models//base/"), tidy("org/model@main"), tidy("base/+adapter/")
    ('./models/base', 'org/model@main', 'base+adapter')
    """
    if "+" in model and not os.path.exists(model):
        return "+".join(map(tidy, model.split("+")))
    start = next((prefix for prefix in ("./", "/") if model.startswith(prefix)), "")
    steps = [step for step in model.split("/") if step not in ("", ".")]
    return start + "/".join(steps) if steps else model


def identity(model: str) -> str:
    """Returns what is equal for the names of one model."""
    if os.path.exists(model):
        return os.path.realpath(model)
    return "+".join(map(identity, model.split("+"))) if "+" in model else tidy(model)
