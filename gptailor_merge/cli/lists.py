"""Spreads options that take several values: `--data a b` means `--data a --data b`.

Click takes one value for an option. An option of a list type whose metavar ends with "..." takes all values
that follow it; the command itself is asked which those are.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

SEVERAL = "..."
"""The end of the metavar of an option that takes several values."""


def spread(app: typer.Typer, arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with the name of a list option before each of its values.

    >>> app = typer.Typer()
    >>> @app.command()
    ... def score(model: str, data: list[str] = typer.Option([], metavar="FILE...")) -> None: ...
    >>> spread(app, ["model", "--data", "a", "b"])
    ['model', '--data', 'a', '--data', 'b']

    Args:
        app: the command that will read them, or the group of commands.
        arguments: the command line without the program's name.
    """
    command = get_command(app)
    lists = _list_options(command)
    written: list[str] = []
    option = None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in lists else None
        elif option is not None:
            if written[-1] != option:
                written.append(option)
        elif isinstance(command, TyperGroup) and argument in command.commands:
            command = command.commands[argument]
            lists = _list_options(command)
        written.append(argument)
    return written


def _list_options(command: object) -> set[str]:
    """Returns the names of a command's options that take several values."""
    if not isinstance(command, (TyperCommand, TyperGroup)):
        return set()
    return {
        name
        for parameter in command.params
        if isinstance(parameter, TyperOption)
        and parameter.multiple
        and (parameter.metavar or "").endswith(SEVERAL)
        for name in parameter.opts
    }
