"""Everything that can be said against a recipe before a weight is read."""

from __future__ import annotations

from pathlib import Path

from gptailor_merge.errors import RecipeError
from gptailor_merge.recipe.family import Family, depth_on_disk
from gptailor_merge.recipe.operations import Plan, depth_problems, plan, problems
from gptailor_merge.recipe.recipe import Recipe


def check(recipe: Recipe, *, file: Path | str | None = None) -> Plan:
    """Check a recipe without the network and resolve it.

    Raises:
        RecipeError: all problems that can be found; layer ranges are checked for models whose
            config is on this machine.
    """
    found = problems(recipe) + depth_problems(recipe, depth_on_disk)
    if found:
        raise RecipeError(found, file=file)
    return plan(recipe)


def check_with_family(recipe: Recipe, *, file: Path | str | None = None) -> tuple[Plan, Family]:
    """`check`, then read configs and tensor headers of every model and check against those.

    Raises:
        RecipeError: what `check` finds, and embeddings or heads that do not fit.
        FamilyError: models that cannot be read or do not fit together.
    """
    checked = check(recipe, file=file)
    family = Family.of_recipe(recipe)
    depths = {member.model: member.depth for member in family.members}
    found = depth_problems(recipe, depths.get) + family.component_problems(checked)
    if found:
        raise RecipeError(found, file=file)
    return checked, family
