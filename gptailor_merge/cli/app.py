"""Runs the programs `gptailor` and `gptailor-evolve`."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated

import typer

from gptailor_merge import __version__
from gptailor_merge.cli import drafts, hub, models, reports, searches, terminal
from gptailor_merge.cli.lists import spread
from gptailor_merge.cli.recipes import recipe_app
from gptailor_merge.errors import RunError, TailorError

app = typer.Typer(
    help="Prune a family of language models by removing, selecting and merging their layers. "
    "A search itself is run by gptailor-evolve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(recipe_app, name="recipe")
for commands in (drafts, models, searches, hub, reports):
    commands.register(app)

evolve_app = typer.Typer(pretty_exceptions_enable=False)
evolve_app.command()(searches.evolve)


def main() -> None:
    """Runs `gptailor`."""
    _run(app)


def evolve_main() -> None:
    """Runs `gptailor-evolve`."""
    _run(evolve_app)


def _run(command: typer.Typer) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # for lm-eval's bars; read when tqdm is imported
    terminal.guard_logs()
    sys.argv[1:] = spread(command, [at_home(argument) for argument in sys.argv[1:]])
    try:
        command()
    except TailorError as error:
        terminal.error(str(error))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        terminal.error(f"{what}{error.strerror or error}")
        raise SystemExit(RunError.exit_code) from None


def at_home(argument: str) -> str:
    """Returns an argument with its `~` replaced; shells do so at the beginning of an argument only.

    >>> at_home("--out=~/run").endswith("~/run")
    False
    >>> at_home("stories.txt~")
    'stories.txt~'
    """
    parts = re.split(r"(?<=[=+])", argument)
    return "".join(os.path.expanduser(part) for part in parts)


def _print_version(asked: bool) -> None:
    if asked:
        terminal.line(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...
