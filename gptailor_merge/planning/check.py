"""Everything that can be said against a recipe before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from gptailor_merge.errors import KeyPath, Problem, RecipeError, errors_in
from gptailor_merge.models.architecture import shifted, unlike
from gptailor_merge.models.checkpoint import ModelId, depth_on_disk
from gptailor_merge.models.family import Family
from gptailor_merge.planning.edit_problems import map_problems, place_problems
from gptailor_merge.planning.resolve import plan, problems
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe


def check(recipe: Recipe, *, file: Path | str | None = None) -> Plan:
    """Check a recipe without the network and resolve it.

    Layer ranges are checked for models whose config is on this machine; where all models are local
    directories, so is whether they fit together.

    Raises:
        RecipeError, FamilyError: all problems that can be found.
    """
    found = problems(recipe) + list(_missing_directories(recipe)) + depth_problems(recipe, depth_on_disk)
    found = found or list(map_problems(recipe))
    if found:
        raise RecipeError(found, file=file)
    if all(ModelId.parse(model).is_local for model in recipe.models):
        return check_with_family(recipe, file=file)[0]
    return plan(recipe)


def check_with_family(recipe: Recipe, *, file: Path | str | None = None) -> tuple[Plan, Family]:
    """Read configs and tensor headers of every model and check a recipe against those, too.

    Raises:
        RecipeError: layers that are not there, embeddings or heads that do not fit.
        FamilyError: models that cannot be read or do not fit together.
    """
    found = problems(recipe) or list(map_problems(recipe))
    if found:
        raise RecipeError(found, file=file)
    resolved = plan(recipe)
    with errors_in(file):
        family = Family.of_recipe(recipe)
    depths = {member.model: member.depth for member in family.members}
    found = depth_problems(recipe, depths.get) + family.component_problems(resolved)
    found = found or kind_problems(recipe, resolved, family) + dtype_problems(recipe, family)
    found = found or list(place_problems(recipe, family.base.config))
    if found:
        raise RecipeError(found, file=file)
    return resolved, family


def depth_problems(recipe: Recipe, depth_of: Callable[[str], int | None]) -> list[Problem]:
    """Layers that their models do not have.

    Args:
        depth_of: number of layers of a model, or None where that is not known.
    """
    found = []
    for index, part in enumerate(recipe.slices):
        for position, source in enumerate(part.sources):
            depth = depth_of(source.model)
            if depth is not None and source.layer_range[1] > depth:
                found.append(
                    Problem(
                        ("slices", index, "sources", position, "layer_range"),
                        f"layer out of range, found {list(source.layer_range)}; "
                        f"{source.model} has {depth} layers, so at most [0, {depth}] would be right",
                    )
                )
    return found


def kind_problems(recipe: Recipe, resolved: Plan, family: Family) -> list[Problem]:
    """Layers of unlike kinds that are merged, or that the pruned model would have in unlike places."""
    config = family.base.config
    slices = [i for i, part in enumerate(recipe.slices) if part.parameter("op") != "remove"]
    owners = [i for i in slices for _ in range(recipe.slices[i].sources[0].length)]
    found = [
        Problem(("slices", index, "sources"), text)
        for index, slot in zip(owners, resolved.slots, strict=True)
        if (text := unlike(config, slot.layers))
    ]
    if not found and (apart := shifted(config, resolved.kept)):
        slot_index, text = apart
        found.append(Problem(("slices", owners[slot_index]), text))
    return found


def dtype_problems(recipe: Recipe, family: Family) -> list[Problem]:
    """What mergekit would decide without a word where a recipe names no dtype."""
    if recipe.dtype is not None:
        return []
    kept = [part for part in recipe.slices if part.parameter("op") != "remove"]
    used = {source.model for part in kept for source in part.sources}
    merged = {s.model for part in kept if part.parameter("op") == "merge" for s in part.sources}
    for component in (recipe.parameters.embeddings, recipe.parameters.head):
        models = {recipe.resolve(member) for member, _ in component.weights}
        used |= models
        merged |= models if component.method is not None else set()
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
        said = "; ".join(f"{model} {dtypes}" for model, dtypes in stored.items())
        text = f"is missing, and the members are stored in several ({said}); say which one the model gets"
        return [Problem(("out_dtype",), text)]
    return []


def _missing_directories(recipe: Recipe) -> Iterator[Problem]:
    named: list[tuple[KeyPath, str]] = [(("base_model",), recipe.base_model)]
    for index, part in enumerate(recipe.slices):
        named += [
            (("slices", index, "sources", position, "model"), source.model)
            for position, source in enumerate(part.sources)
        ]
    for path, model in named:
        parsed = ModelId.parse(model)
        for named_part in (parsed.model, parsed.adapter):
            if named_part and named_part.is_local and not Path(named_part.path).is_dir():
                yield Problem(path, f"no such directory, found {named_part.path!r}")
