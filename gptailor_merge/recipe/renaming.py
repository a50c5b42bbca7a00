"""Gives the models of a recipe, and the files of its edits, other names."""

from __future__ import annotations

from collections.abc import Mapping

from gptailor_merge.recipe.fields import Origin, Parameters
from gptailor_merge.recipe.recipe import BASE, GAINS, REPAIR, GlobalParameters, Recipe, Slice


def renamed(recipe: Recipe, models: Mapping[str, str], files: Mapping[str, str]) -> Recipe:
    """Returns a recipe with other names for its models and the files of its edits.

    Args:
        models: model -> its new name; all others stay.
        files: file of a map or of gains -> its new name; all others stay.
    """

    def model(name: str) -> str:
        return models.get(name, name)

    def member(name: str) -> str:
        return BASE if name == BASE else model(name)

    def origin(old: Origin) -> Origin:
        weights = tuple((member(name), weight) for name, weight in old.weights)
        base = None if old.base_model is None else member(old.base_model)
        return old.model_copy(update={"weights": weights, "base_model": base})

    def parameters(old: Parameters) -> Parameters:
        return tuple(
            (name, files.get(value, value) if name in (REPAIR, GAINS) else value) for name, value in old
        )

    def part(old: Slice) -> Slice:
        sources = tuple(source.model_copy(update={"model": model(source.model)}) for source in old.sources)
        base = None if old.base_model is None else model(old.base_model)
        update = {"sources": sources, "base_model": base, "parameters": parameters(old.parameters)}
        return old.model_copy(update=update)

    gains = recipe.parameters.gains
    outer: GlobalParameters = recipe.parameters.model_copy(
        update={
            "embeddings": origin(recipe.parameters.embeddings),
            "head": origin(recipe.parameters.head),
            "tokenizer": member(recipe.parameters.tokenizer),
            "gains": gains if gains is None else files.get(gains, gains),
        }
    )
    slices = tuple(map(part, recipe.slices))
    return recipe.model_copy(
        update={"base_model": model(recipe.base_model), "parameters": outer, "slices": slices}
    )
