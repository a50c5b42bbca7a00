"""Repairs a recipe: a recipe and texts go in, a recipe with maps comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.calibration.texts import check_ids
from gptailor_merge.errors import RecipeError
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.config_types import DataSource
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.planning.check import check_with_family, refuse_healed, with_files
from gptailor_merge.planning.slot_replacement import rewritten
from gptailor_merge.recipe.plan import Edit
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.cuts import cuts_of
from gptailor_merge.repair.fitting import CutRepair, Repairer
from gptailor_merge.scoring.live_models import composer_of

RECIPE = "recipe.yml"
"""The file name of a repaired recipe, beside its maps."""


@dataclass(frozen=True)
class RepairedRecipe:
    """A recipe with its repairs.

    Attributes:
        recipe: the recipe with a map at each cut where one helps.
        cuts: what became of each cut, in the order of the slots.
        tokens: the number of tokens that the maps that were kept are fitted to.
        spent: the number of tokens that went through models, or through a part of one, for it.
    """

    recipe: Recipe
    cuts: tuple[CutRepair, ...]
    tokens: int
    spent: int

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor repair --json` prints."""
        return {"cuts": [asdict(cut) for cut in self.cuts], "tokens": self.tokens}


def repair_recipe(
    recipe: Recipe,
    data: Mapping[str, DataSource],
    out: Path,
    *,
    file: Path | None = None,
    staged: Path | None = None,
    everywhere: bool,
    tokens: int,
    sequence_length: int,
    device: torch.device,
    progress: Callable[[str], None] = lambda step: None,
) -> RepairedRecipe:
    """Fits maps, in the first slot first, and keeps those that help.

    Args:
        data: name -> texts.
        out: the directory of the maps, as the repaired recipe names it.
        file: the recipe's file, for messages.
        staged: the directory that the maps are written to, if it is to be renamed to `out` later.
        everywhere: tries also the places behind slots where no layer is missing.
        tokens: the number of tokens in all, shared evenly by the files.
        progress: told which cut is being repaired.

    Raises:
        RecipeError: there is no cut, or the recipe is repaired already, or healed.
        DataError: too few sequences to choose a ridge on.
    """
    recipe = with_files(recipe, file)
    plan, family = check_with_family(recipe, file=file)
    refuse_healed(plan, file)
    if not cuts_of(plan, family.depth):
        raise RecipeError("no layer is missing behind another; there is nothing to repair", file=file)
    if plan.repaired:
        raise RecipeError("is repaired already; repair the recipe that it was made of", file=file)
    tokenizer = load_tokenizer(family.by_model(plan.tokenizer).directory)
    sets = token_sets(data, tokenizer, tokens, sequence_length)
    check_ids(sets, family.by_model(plan.tokenizer).vocabulary_size, plan.tokenizer)
    composer = composer_of(recipe, family, device)
    repairer = Repairer(composer, family, sets, [plan], everywhere=everywhere)
    repaired, cuts = repairer.repair(plan, staged or out, progress)
    moved = repaired.with_edits(partial(_moved, out=out))
    spent = repairer.tokens + repairer.spent  # through the base, and through the recipe's own layers
    return RepairedRecipe(rewritten(recipe, moved.slots), cuts, repairer.tokens, spent)


def _moved(edit: Edit, out: Path) -> Edit:
    """Returns an edit whose map is in another directory; other edits stay."""
    return replace(edit, file=str(out / Path(edit.file).name)) if edit.is_repair else edit
