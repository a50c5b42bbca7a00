"""`gptailor recipe …`: the commands that look at recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptailor_merge.cli import printing
from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.errors import errors_in

recipe_app = typer.Typer(help="Look at recipes.", no_args_is_help=True)


@recipe_app.command()
def lint(recipe: Annotated[Path, typer.Argument(help="A recipe, merge_method: tailor.")]) -> None:
    """Check a recipe without the network and without loading weights."""
    from gptailor_merge.planning.check import check
    from gptailor_merge.recipe.recipe import Recipe

    plan = check(Recipe.load(recipe), file=recipe)
    typer.echo(f"{recipe}: sound; {len(plan.slots)} layers, digest {plan.digest}")


@recipe_app.command(name="show")
def show_recipe(recipe: Annotated[Path, typer.Argument(help="A recipe, merge_method: tailor.")]) -> None:
    """Draw a recipe: slots by models."""
    from gptailor_merge.cli.recipe_table import rows, table
    from gptailor_merge.recipe.recipe import Recipe

    loaded = Recipe.load(recipe)
    with errors_in(recipe):
        drawn = table(rows(loaded), loaded.models, loaded.base_model)
    printing.show(drawn)


@recipe_app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A recipe.")],
    second: Annotated[Path, typer.Argument(help="Another recipe.")],
) -> None:
    """Draw what differs between two recipes."""
    from gptailor_merge.cli.recipe_table import comparison, differences, table
    from gptailor_merge.planning.resolve import plan
    from gptailor_merge.recipe.recipe import Recipe

    one, other = Recipe.load(first), Recipe.load(second)
    digests = set()
    for recipe, file in ((one, first), (other, second)):
        with errors_in(file):
            digests.add(plan(recipe).digest)
    if len(digests) == 1 and one.chat_template == other.chat_template:
        typer.echo(f"the same model, digest {digests.pop()}")
        return
    for line in differences(one, other):
        typer.echo(line)
    models = list(dict.fromkeys((*one.models, *other.models)))
    printing.show(table(comparison(one, other), models, one.base_model, compared=True))


@recipe_app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="A mergekit configuration, or one that the paper published.")],
    out: Annotated[Path, typer.Option(help="The recipe to write.")],
    base: Annotated[str | None, typer.Option(help="The base model; overrides the file's.")] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(help="For the paper's configurations: the models called candidate 0, 1, …"),
    ] = None,
) -> None:
    """Make a recipe of a stack of layers that somebody else wrote."""
    from gptailor_merge.errors import ConfigError
    from gptailor_merge.files import write_beside
    from gptailor_merge.host.importing import load
    from gptailor_merge.planning.resolve import plan

    if out.exists():
        raise ConfigError(f"{out} exists; choose another name or remove it")
    imported = load(file, base=base, candidates=candidates or ())
    write_beside(out, imported.recipe.to_yaml())
    for note in imported.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{out}: {len(plan(imported.recipe).slots)} layers; check it with  gptailor recipe lint {out}")


@recipe_app.command()
def export(
    recipe: Annotated[Path, typer.Argument(help="A recipe, merge_method: tailor.")],
    out: Annotated[Path, typer.Option(help="The directory to make.")],
    plain: Annotated[
        bool, typer.Option("--plain", help="For a mergekit without this package; the only form so far.")
    ] = False,
) -> None:
    """Write the same model as plain mergekit configurations, with what they need beside."""
    from gptailor_merge.errors import ConfigError
    from gptailor_merge.files import refuse_existing, staging
    from gptailor_merge.host.exporting import RECIPE
    from gptailor_merge.host.exporting import export as write
    from gptailor_merge.planning.check import check_with_family
    from gptailor_merge.recipe.recipe import Recipe

    if not plain:
        raise ConfigError("say what to export the recipe as: --plain, for a mergekit without this package")
    quiet_libraries()
    loaded = Recipe.load(recipe)
    resolved, family = check_with_family(loaded, file=recipe)
    refuse_existing(out)
    with staging(out) as directory:
        in_parts = write(resolved, family, directory, chat_template=loaded.chat_template)
    command = (
        f"mergekit-multi {RECIPE} --out-path MODEL --intermediate-dir ./parts"
        if in_parts
        else f"mergekit-yaml {RECIPE} MODEL"
    )
    typer.echo(f"{out}: run  cd {out} && {command}")
