"""Repairs recipes: linear maps make up for removed layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptailor_merge.api.arguments import AnyPath, ignore, path_of, read_recipe
from gptailor_merge.files import refuse_existing, staging
from gptailor_merge.models.devices import pick_device
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.repaired_recipe import RECIPE as RECIPE
from gptailor_merge.repair.repaired_recipe import RepairedRecipe, repair_recipe
from gptailor_merge.runs.lock import locked_around
from gptailor_merge.scoring.text_scores import named_files


def repair(
    recipe: AnyPath | Recipe,
    data: Sequence[str],
    out: AnyPath,
    *,
    column: str = "text",
    everywhere: bool = True,
    tokens: int = 65536,
    sequence_length: int = 512,
    device: str = "auto",
    on_step: Callable[[str], None] = ignore,
) -> RepairedRecipe:
    """Fits linear maps in the layers of a pruned model, which make up for the layers removed; no training.

        repaired = repair("runs/first/best.yml", ["calibration/stories.jsonl"], "repaired")
        print([(cut.slot, cut.before, cut.after) for cut in repaired.cuts])

    Args:
        recipe: a recipe, or its file.
        data: files or directories of texts to fit to, each PATH or NAME=PATH.
        column: field or column that holds the text or messages; `text` also stands for those that chat
            data usually have.
        out: the directory to make, with recipe.yml and the maps; it appears whole or not at all.
        everywhere: fits maps behind slots where no layer is missing, too; takes about three times as long.
        tokens: total number of tokens, shared evenly by the files.
        sequence_length: tokens in a sequence.
        device: auto, cpu, cuda, cuda:N or mps.
        on_step: called with a sentence on what is being done.

    Raises:
        RecipeError: there is no cut, or the recipe is repaired already.
        DataError: too few sequences to choose a ridge on.
        ConfigError: `out` exists and is not an empty directory.
    """
    directory = path_of(out)
    refuse_existing(directory)
    whole, file = read_recipe(recipe)
    with locked_around(directory), staging(directory) as staged:
        result = repair_recipe(
            whole,
            named_files(data, column),
            directory,
            file=file,
            staged=staged,
            everywhere=everywhere,
            tokens=tokens,
            sequence_length=sequence_length,
            device=pick_device(device),
            progress=on_step,
        )
        (staged / RECIPE).write_text(result.recipe.to_yaml(), encoding="utf-8")
    return result
