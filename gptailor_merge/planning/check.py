"""Checks a recipe as far as that is possible before a weight is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gptailor_merge.errors import KeyPath, Problem, RecipeError, errors_in, log_warning
from gptailor_merge.models.architecture import shifted, unlike
from gptailor_merge.models.checkpoint import ModelId, depth_on_disk
from gptailor_merge.models.family import Family
from gptailor_merge.planning.edit_problems import file_problems, place_problems
from gptailor_merge.planning.operations import is_removed, merges
from gptailor_merge.planning.resolve import plan, problems
from gptailor_merge.recipe.edits import with_whole_paths
from gptailor_merge.recipe.model_names import with_one_name_each
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe

OnWarning = Callable[[str], None]
"""Is told each sentence about what differs between members."""


def check(recipe: Recipe, *, file: Path | str | None = None, on_warning: OnWarning = log_warning) -> Plan:
    """Checks a recipe without the network, and resolves it.

    Layer ranges are checked for models whose config is on this machine. If all models are local
    directories, it is also checked that they fit together.

    Args:
        file: the recipe's file; errors then name its lines.
        on_warning: is told what differs between local models.

    Raises:
        RecipeError, FamilyError: the recipe or its models have problems.
    """
    recipe = with_one_name_each(with_files(recipe, file))
    mistakes = problems(recipe) + list(_missing_directories(recipe)) + depth_problems(recipe, depth_on_disk)
    mistakes = mistakes or list(file_problems(recipe))
    if mistakes:
        raise RecipeError(mistakes, file=file)
    if is_local(recipe):
        return check_with_family(recipe, file=file, on_warning=on_warning)[0]
    return plan(recipe)


def is_local(recipe: Recipe) -> bool:
    """Tells whether all models of a recipe are directories on this machine."""
    return all(ModelId.parse(model).is_local for model in recipe.models)


def check_with_family(
    recipe: Recipe, *, file: Path | str | None = None, on_warning: OnWarning = log_warning
) -> tuple[Plan, Family]:
    """Checks a recipe against the configs and tensor headers of all its models, and resolves it.

    Args:
        on_warning: is told what differs between the models, and what the result takes.

    Raises:
        RecipeError: the recipe has problems, e.g. layers that do not exist or a head that does not fit.
        FamilyError: models cannot be read or do not fit together.
    """
    recipe = with_one_name_each(with_files(recipe, file))
    mistakes = problems(recipe) or list(file_problems(recipe))
    if mistakes:
        raise RecipeError(mistakes, file=file)
    resolved = plan(recipe)
    with errors_in(file):
        family = Family.of_recipe(recipe)
    depths = {member.model: member.depth for member in family.members}
    mistakes = depth_problems(recipe, depths.get) + fit_problems(resolved, family)
    mistakes = mistakes or kind_problems(recipe, resolved, family) + dtype_problems(recipe, family)
    mistakes = mistakes or list(place_problems(recipe, family.base.config, resolved.kept))
    if mistakes:
        raise RecipeError(mistakes, file=file)
    for sentence in family.warnings_with(family.by_model(resolved.tokenizer)):
        on_warning(sentence)
    return resolved, family


def refuse_healed(resolved: Plan, file: Path | str | None) -> None:
    """Refuses a recipe with an adapter, which fits no other layers than those that it was trained on.

    Raises:
        RecipeError: it has one.
    """
    if resolved.adapter is not None:
        text = "the recipe is healed, which comes last; take the one that it was made of, without an adapter"
        raise RecipeError(Problem(("parameters", "adapter"), text), file=file)


def with_files(recipe: Recipe, file: Path | str | None) -> Recipe:
    """Returns a recipe that names its files by paths that hold from everywhere, see with_whole_paths."""
    return recipe if file is None else with_whole_paths(recipe, Path(file).parent)


def depth_problems(recipe: Recipe, depth_of: Callable[[str], int | None]) -> list[Problem]:
    """Returns layer ranges that exceed their models.

    Args:
        depth_of: model -> its number of layers, or None if that is unknown.
    """
    mistakes = []
    for index, part in enumerate(recipe.slices):
        for position, source in enumerate(part.sources):
            depth = depth_of(source.model)
            if depth is not None and source.layer_range[1] > depth:
                mistakes.append(
                    Problem(
                        ("slices", index, "sources", position, "layer_range"),
                        f"layer out of range, found {list(source.layer_range)}; "
                        f"{source.model} has {depth} layers, so at most [0, {depth}] would be right",
                    )
                )
    return mistakes


def fit_problems(resolved: Plan, family: Family) -> list[Problem]:
    """Returns components whose tokens do not fit the tokenizer, whose head is tied and must not be, or whose
    tensors no member has.
    """
    mistakes = []
    tokenizer = family.by_model(resolved.tokenizer)
    for key, component in (("embeddings", resolved.embeddings), ("head", resolved.head)):
        for model in component.models:
            text = family.outer_problem(family.by_model(model), tokenizer, of_head=key == "head")
            if text is not None:
                mistakes.append(Problem(("parameters", key), text))
    if family.tied and resolved.embeddings != resolved.head:
        mistakes.append(
            Problem(
                ("parameters", "head"),
                "differs from embeddings, but this architecture's head is its embedding matrix "
                "(tie_word_embeddings); give both the same value",
            )
        )
    if resolved.rest is not None and not family.base.architecture.rest:
        text = f"{family.base.config['model_type']} has nothing beside its language model; leave it out"
        mistakes.append(Problem(("parameters", "rest"), text))
    return mistakes


def kind_problems(recipe: Recipe, resolved: Plan, family: Family) -> list[Problem]:
    """Returns merges of layers of unlike kinds, or the first layer whose slot would change its kind."""
    config = family.base.config
    slices = [i for i, part in enumerate(recipe.slices) if not is_removed(part)]
    owners = [i for i in slices for _ in range(recipe.slices[i].sources[0].length)]
    mistakes = [
        Problem(("slices", index, "sources"), text)
        for index, slot in zip(owners, resolved.slots, strict=True)
        if (text := unlike(config, slot.layers))
    ]
    if not mistakes and (misplaced := shifted(config, resolved.kept)):
        position, text = misplaced
        mistakes.append(Problem(("slices", owners[position]), text))
    return mistakes


def dtype_problems(recipe: Recipe, family: Family) -> list[Problem]:
    """Returns dtypes that the recipe must name, since mergekit would choose them without a word."""
    if recipe.dtype is not None:
        return []
    kept = [part for part in recipe.slices if not is_removed(part)]
    used = {source.model for part in kept for source in part.sources}
    merged = {source.model for part in kept if merges(part) for source in part.sources}
    for origin in (recipe.parameters.embeddings, recipe.parameters.head, recipe.parameters.rest):
        models = {recipe.resolve(member) for member, _ in origin.weights}
        used |= models
        merged |= models if origin.method is not None else set()
    narrow = {d for model in merged for d in family.by_model(model).dtypes} & {"BF16", "F16"}
    if narrow:
        name = "bfloat16" if "BF16" in narrow else "float16"
        text = (
            f"is missing, and merges would be calculated in {name}, as the models are stored; write dtype: "
            f"float32 with out_dtype: {name}, which is more accurate, or dtype: {name} if it is meant"
        )
        return [Problem(("dtype",), text)]
    stored = {model: ", ".join(sorted(family.by_model(model).dtypes)) for model in sorted(used)}
    if recipe.out_dtype is None and len(set(stored.values())) > 1:
        listed = "; ".join(f"{model} {dtypes}" for model, dtypes in stored.items())
        text = f"is missing, and the members are stored in several ({listed}); say which one the model gets"
        return [Problem(("out_dtype",), text)]
    return []


def _missing_directories(recipe: Recipe) -> Iterator[Problem]:
    models: list[tuple[KeyPath, str]] = [(("base_model",), recipe.base_model)]
    for index, part in enumerate(recipe.slices):
        models += [
            (("slices", index, "sources", position, "model"), source.model)
            for position, source in enumerate(part.sources)
        ]
    for path, model in models:
        parsed = ModelId.parse(model)
        for part_id in (parsed.model, parsed.adapter):
            if part_id and part_id.is_local and not os.path.isdir(part_id.path):
                yield Problem(path, f"no such directory, found {part_id.path!r}")
