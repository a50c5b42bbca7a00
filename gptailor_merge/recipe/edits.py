"""Reads the edits that a recipe names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath

from gptailor_merge.recipe.plan import LORA, MLP, NORMS, Edit
from gptailor_merge.recipe.recipe import (
    GAINS,
    GAINS_DIGEST,
    REPAIR,
    REPAIR_DIGEST,
    WITHOUT,
    Recipe,
    Slice,
)

MOVED_PARTS = (3, 2, 1)
"""How much of a path may tell which file is meant where the path is gone; `repair/DIGEST/FILE` in a run."""


def edits_of(part: Slice) -> tuple[Edit, ...]:
    """Returns the edits of a slice that has no problems; those of norms are last."""
    edits = []
    if (without := part.parameter(WITHOUT)) is not None:
        edits.append(Edit(without))
    if (file := part.parameter(REPAIR)) is not None:
        edits.append(Edit(MLP, part.parameter(REPAIR_DIGEST), file))
    if (file := part.parameter(GAINS)) is not None:
        edits.append(Edit(NORMS, part.parameter(GAINS_DIGEST), file))
    return tuple(edits)


def outer_gains(recipe: Recipe) -> Edit | None:
    """Returns the edit of the norms outside the layers, or None; the recipe has no problems."""
    parameters = recipe.parameters
    if parameters.gains is None:
        return None
    return Edit(NORMS, parameters.gains_digest, parameters.gains)


def adapter_of(recipe: Recipe) -> Edit | None:
    """Returns the adapter of a recipe that has no problems, or None."""
    parameters = recipe.parameters
    if parameters.adapter is None:
        return None
    return Edit(LORA, parameters.adapter_digest, parameters.adapter)


def without_adapter(recipe: Recipe) -> Recipe:
    """Returns the recipe with no adapter."""
    parameters = recipe.parameters.model_copy(update={"adapter": None, "adapter_digest": None})
    return recipe.model_copy(update={"parameters": parameters})


def map_files(recipe: Recipe) -> list[str]:
    """Returns the files of all repair maps of a recipe."""
    edits = (edit for part in recipe.slices for edit in edits_of(part))
    return [edit.file for edit in edits if edit.is_repair]


def gains_files(recipe: Recipe) -> list[str]:
    """Returns the files of all gains of norms of a recipe, each once."""
    edits = [edit for part in recipe.slices for edit in edits_of(part) if edit.part == NORMS]
    outer = outer_gains(recipe)
    return list(dict.fromkeys(edit.file for edit in (*edits, *([outer] if outer else []))))


def edit_files(recipe: Recipe) -> list[str]:
    """Returns every file that the edits of a recipe name: repair maps and gains of norms.

    An adapter is a directory, `recipe.parameters.adapter`.
    """
    return [*map_files(recipe), *gains_files(recipe)]


def with_whole_paths(recipe: Recipe, directory: Path) -> Recipe:
    """Returns a recipe that names the files of its edits and its adapter by paths that hold from everywhere.

    A relative file is looked for in the directory, and in the one above it: a run has recipes in itself and
    one level deeper, and maps in one place. A file that is gone is looked for by the end of its path, so that
    a run can be moved. The digest of a file tells whether it is the right one.

    Args:
        directory: the one that the recipe was read from.
    """
    slices = tuple(_with_whole_path(part, directory) for part in recipe.slices)
    parameters = recipe.parameters
    if parameters.gains is not None:
        parameters = parameters.model_copy(update={"gains": _where(parameters.gains, directory)})
    if parameters.adapter is not None:
        adapter = _where(parameters.adapter, directory, Path.is_dir)
        parameters = parameters.model_copy(update={"adapter": adapter})
    if (slices, parameters) == (recipe.slices, recipe.parameters):
        return recipe
    return recipe.model_copy(update={"slices": slices, "parameters": parameters})


def _with_whole_path(part: Slice, directory: Path) -> Slice:
    parameters = tuple(
        (name, _where(value, directory) if name in (REPAIR, GAINS) and isinstance(value, str) else value)
        for name, value in part.parameters
    )
    return part if parameters == part.parameters else part.model_copy(update={"parameters": parameters})


def _where(file: str, directory: Path, is_there: Callable[[Path], bool] = Path.is_file) -> str:
    """Returns the whole path of a file that a recipe names, or the name where there is no such file."""
    parts = PurePath(file).parts
    if PurePath(file).is_absolute():
        ends = [] if Path(file).exists() else [parts[1:][-length:] for length in MOVED_PARTS]
    else:
        ends = [parts]
    places = (above.joinpath(*end) for end in ends for above in (directory, directory.parent))
    return next((str(place.absolute()) for place in places if is_there(place)), file)
