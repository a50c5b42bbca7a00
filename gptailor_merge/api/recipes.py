"""Checks recipes, imports them from foreign configurations, and exports them as plain mergekit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptailor_merge.api.arguments import AnyPath, path_of, read_recipe
from gptailor_merge.composing.adapting import adapter_words as adapter_words
from gptailor_merge.errors import ConfigError, log_warning
from gptailor_merge.files import refuse_existing, staging, write_beside
from gptailor_merge.host.exporting import RECIPE, export
from gptailor_merge.host.imported_recipe import Imported
from gptailor_merge.host.importing import load
from gptailor_merge.host.names_and_commands import plain_command
from gptailor_merge.planning.check import OnWarning, check, check_with_family
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.lock import locked_around


@dataclass(frozen=True)
class ExportedRecipe:
    """Plain mergekit configurations on disk.

    Attributes:
        directory: holds the configurations, and skeletons and maps that they name.
        command: makes the model when run in that directory.
    """

    directory: Path
    command: str


def lint(recipe: AnyPath | Recipe, *, on_warning: OnWarning = log_warning) -> Plan:
    """Checks a recipe without the network and without loading weights, and returns its plan.

        print(lint("runs/first/best.yml").digest)

    Args:
        on_warning: is told what differs between its models where all are local; logs it by default.

    Raises:
        RecipeError, FamilyError: everything that can be said against it.
    """
    whole, file = read_recipe(recipe)
    return check(whole, file=file, on_warning=on_warning)


def import_recipe(
    file: AnyPath,
    out: AnyPath | None = None,
    *,
    base: str | None = None,
    candidates: Sequence[str] = (),
    embeddings: str | None = None,
    head: str | None = None,
) -> Imported:
    """Reads a mergekit configuration, or one that the paper's authors published, as a recipe.

        imported = import_recipe("mergekit.yml", "recipe.yml")
        print(imported.notes)

    Args:
        out: the recipe file to write, if any.
        base: the base model; overrides the file's.
        candidates: the models that the paper's configurations call candidates 0, 1, …
        embeddings, head: members to take these from, instead of what the file says.

    Raises:
        RecipeError: what cannot be said in a recipe, with its key.
        ConfigError: `out` exists.
    """
    if out is not None and path_of(out).exists():
        raise ConfigError(f"{out} exists; choose another name or remove it")
    imported = load(path_of(file), base=base, candidates=candidates, embeddings=embeddings, head=head)
    if out is not None:
        with locked_around(path_of(out)):
            write_beside(path_of(out), imported.recipe.to_yaml())
    return imported


def export_recipe(recipe: AnyPath | Recipe, out: AnyPath) -> ExportedRecipe:
    """Writes plain configurations of the same model, for a mergekit without this package.

        exported = export_recipe("runs/first/best.yml", "plain")
        print(f"cd {exported.directory} && {exported.command}")

    Args:
        out: the directory to make.

    Raises:
        RecipeError: stock mergekit cannot make this model; says why.
        ConfigError: `out` exists and is not an empty directory.
    """
    whole, file = read_recipe(recipe)
    resolved, family = check_with_family(whole, file=file)
    directory = path_of(out)
    refuse_existing(directory)
    with locked_around(directory), staging(directory) as staged:
        in_parts = export(resolved, family, staged, chat_template=whole.chat_template)
    command = plain_command(RECIPE, in_parts=in_parts)
    return ExportedRecipe(directory, command)
