"""Reads the recipe of a published model, which a stranger may have written.

Of this machine it may name nothing: a member is one of the Hub's, or called ./NAME and given by the user,
and the file of an edit, or an adapter, is one of the repository. A Hub id is one even where a directory of
that name exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from gptailor_merge.bounded_files import refuse_special
from gptailor_merge.composing.adapting import CONFIG_FILE, WEIGHTS_FILE
from gptailor_merge.errors import ConfigError, RecipeError
from gptailor_merge.host.names_and_commands import RECIPE
from gptailor_merge.hub.parents import LOCAL
from gptailor_merge.hub.release import ADAPTER, GAINS, MAPS
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.directories import directory_of
from gptailor_merge.planning.resolve import problems
from gptailor_merge.recipe.edit_names import with_files
from gptailor_merge.recipe.edits import edit_files
from gptailor_merge.recipe.model_names import renamed
from gptailor_merge.recipe.recipe import BASE, Recipe

_FILE = re.compile(rf"({MAPS}|{GAINS})/[^/\\\0.][^/\\\0]*")


_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")


def with_places(published: Path, members: Mapping[str, str]) -> Recipe:
    """Returns a published recipe with the places of its local members and files on this machine.

    Args:
        published: the snapshot of the repository, as the Hub's client lays it out.
        members: name -> directory of each member that is not on the Hub.

    Raises:
        RecipeError: the recipe is wrong, or names a path.
        ConfigError: `members` lacks a local member, or has one that the recipe does not name.
        FamilyError: a member cannot be downloaded.
    """
    recipe = Recipe.load(published / RECIPE)
    parts = {model: _parts(model) for model in recipe.models}
    _check_members(members, [part for of_model in parts.values() for part in of_model])
    if mistakes := problems(recipe):
        raise RecipeError(mistakes, file=published / RECIPE)
    files = {name: str(_file(published, name)) for name in edit_files(recipe)}
    if (adapter := recipe.parameters.adapter) is not None:
        files[adapter] = str(_adapter(published, adapter))
    models = {model: _place(model, parts[model], members) for model in parts}
    return with_files(renamed(recipe, lambda name: name if name == BASE else models[name]), files)


def _parts(model: str) -> list[str]:
    """Returns a model and its adapter, as a published recipe may name them.

    Raises:
        RecipeError: the recipe names something else, e.g. a path.
    """
    parts = model.split("+")
    if len(parts) > 2 or not all(_is_public(part) for part in parts):
        raise RecipeError(
            f"the published recipe names the member {model!r}; expected one on the Hub, USER/NAME or "
            f"USER/NAME@REVISION, or {LOCAL}NAME for one that is given with --member"
        )
    return parts


def _is_public(part: str) -> bool:
    if part.startswith(LOCAL):
        name = part.removeprefix(LOCAL)
        return name not in ("", ".", "..") and not set(name) & set("/\\\0")
    repo, at, revision = part.partition("@")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return not at or (_REVISION.fullmatch(revision) is not None and ".." not in revision)


def _check_members(members: Mapping[str, str], parts: list[str]) -> None:
    local = list(dict.fromkeys(part.removeprefix(LOCAL) for part in parts if part.startswith(LOCAL)))
    missing = [name for name in local if name not in members]
    if missing:
        options = " ".join(f"--member {name}=PATH" for name in missing)
        raise ConfigError(f"{', '.join(missing)}: members that are on no Hub; say where they are: {options}")
    unknown = [name for name in members if name not in local]
    if unknown:
        known = f"expected one of {', '.join(local)}" if local else "it needs none"
        raise ConfigError(f"--member {unknown[0]}: the recipe names no such local member; {known}")


def _place(model: str, parts: list[str], members: Mapping[str, str]) -> str:
    """Returns the name by which this machine finds a model: a Hub id, or directories."""
    names = [
        str(Path(members[part.removeprefix(LOCAL)]).resolve()) if part.startswith(LOCAL) else part
        for part in parts
    ]
    on_hub = [part for part in parts if not part.startswith(LOCAL)]
    candidates = {model, *on_hub, *(part.split("@")[0] for part in on_hub)}
    if any(map(os.path.lexists, candidates)):
        # Here a path has the name of a Hub model, and a path comes first wherever a model is looked for.
        names = [
            str(directory_of(ModelId(part, part, is_local=False))) if part in on_hub else name
            for part, name in zip(parts, names, strict=True)
        ]
    return "+".join(names)


def _file(published: Path, name: str) -> Path:
    """Returns the file of an edit in a snapshot, whose files are links to those of its own storage.

    Raises:
        RecipeError: the repository has no such file.
    """
    if _FILE.fullmatch(name) is None:
        text = f"expected a file of the repository, {MAPS}/NAME or {GAINS}/NAME"
        raise RecipeError(f"the published recipe names the file {name!r}; {text}")
    return _stored(published, name)


def _adapter(published: Path, name: str) -> Path:
    """Returns the directory of the adapter in a snapshot.

    Raises:
        RecipeError: the recipe names another directory, or the repository lacks its files.
    """
    if name != ADAPTER:
        text = f"expected the directory of the repository, {ADAPTER}"
        raise RecipeError(f"the published recipe names the adapter {name!r}; {text}")
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        _stored(published, f"{ADAPTER}/{file}")
    return published / ADAPTER


def _stored(published: Path, name: str) -> Path:
    """Returns a file of a snapshot.

    Raises:
        RecipeError: there is none of that name, or it is a link that leaves the snapshot and its storage.
    """
    file = published / name
    try:
        refuse_special(file)
    except OSError:
        raise RecipeError(f"the published model lacks {name}, or it is no file") from None
    storage = (published.resolve(), published.resolve().parents[1] / "blobs")
    if not any(file.resolve().is_relative_to(place) for place in storage):
        raise RecipeError(f"{name} is a link that leaves the published model")
    return file
