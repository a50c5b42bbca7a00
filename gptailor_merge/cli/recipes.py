"""`gptailor recipe …`: the commands that look at recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptailor_merge.cli import printing, terminal
from gptailor_merge.cli.options import RecipeFile
from gptailor_merge.errors import ConfigError
from gptailor_merge.host.names_and_commands import FOREIGN, PLAIN

recipe_app = typer.Typer(help="Check, draw, compare, import and export recipes.", no_args_is_help=True)


@recipe_app.command()
def lint(recipe: RecipeFile) -> None:
    """Check a recipe without the network and without loading weights."""
    from gptailor_merge.api.recipes import lint as check

    plan = check(recipe, on_warning=printing.warning)
    terminal.line(f"{recipe}: sound; {len(plan.slots)} layers, digest {plan.digest}")


@recipe_app.command(name="show")
def show_recipe(recipe: RecipeFile) -> None:
    """Draw a recipe as a table of slots and models."""
    from gptailor_merge.cli.recipe_table import of_file

    terminal.show(of_file(recipe))


@recipe_app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")],
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="The recipe file to compare it with.")],
) -> None:
    """Draw what differs between two recipes."""
    from gptailor_merge.cli.recipe_table import compare_files

    lines, table = compare_files(first, second)
    for line in lines:
        terminal.line(line)
    if table is not None:
        terminal.show(table)


@recipe_app.command(name="import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help=FOREIGN),
    ],
    out: Annotated[Path, typer.Option(help="The recipe file to write.")],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The base model; replaces the one in the file.")
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL...",
            help="For the paper's configurations: the models that they call candidate 0, 1, …",
        ),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Where the embeddings come from, if not as the file says."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Where final norm and head come from, if not as the file says."),
    ] = None,
) -> None:
    """Make a recipe of a merge or a stack of layers that somebody else wrote."""
    from gptailor_merge import plan
    from gptailor_merge.api.recipes import import_recipe

    imported = import_recipe(
        file, out, base=base, candidates=candidates or (), embeddings=embeddings, head=head
    )
    for note in imported.notes:
        terminal.line(f"note: {note}")
    layers = len(plan(imported.recipe).slots)
    terminal.line(f"{out}: {layers} layers; check it with  gptailor recipe lint {out}")


@recipe_app.command()
def export(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(help="The directory to make.")],
    plain: Annotated[
        bool,
        typer.Option("--plain", help=f"Write it for {PLAIN}; required so far."),
    ] = False,
) -> None:
    """Write the same model as plain mergekit configurations, with the files that they need."""
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.recipes import export_recipe

    if not plain:
        raise ConfigError(f"say what to export the recipe as: --plain, for {PLAIN}")
    quiet_libraries()
    exported = export_recipe(recipe, out)
    terminal.line(f"{out}: run  cd {out} && {exported.command}")
