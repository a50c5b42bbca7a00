"""Everything that can be said against a recipe before a weight is read."""

from __future__ import annotations

from pathlib import Path

from gptailor_merge.errors import RecipeError
from gptailor_merge.recipe.family import Family, ModelId, depth_on_disk
from gptailor_merge.recipe.operations import Plan, depth_problems, plan, problems
from gptailor_merge.recipe.recipe import Recipe


def check(recipe: Recipe, *, file: Path | str | None = None) -> Plan:
    """Check a recipe without the network and resolve it.

    Layer ranges are checked for models whose config is on this machine; where all models are local
    directories, so is whether they fit together.

    Raises:
        RecipeError, FamilyError: all problems that can be found.
    """
    found = problems(recipe) + depth_problems(recipe, depth_on_disk)
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
    found = problems(recipe)
    if found:
        raise RecipeError(found, file=file)
    resolved = plan(recipe)
    family = Family.of_recipe(recipe)
    depths = {member.model: member.depth for member in family.members}
    found = depth_problems(recipe, depths.get) + family.component_problems(resolved)
    if found:
        raise RecipeError(found, file=file)
    return resolved, family
