"""Writes to the terminal and to logs; the commands write by no other way.

Names of tensors, models, tasks and files may come from strangers. They are shown as they are: no markup is
read in them, and characters that would act on the terminal are escaped.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from gptailor_merge.visible_text import visible_line, visible_lines

FILE_WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


class PlainConsole(Console):
    """A console on which only rich itself moves the cursor, and texts are texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible_lines(segment.text), segment.style)


class PlainTable(Table):
    """A table whose headings and cells are texts, each on one line until it is too long for its column."""

    def add_column(self, header: RenderableType = "", *arguments: Any, **options: Any) -> None:
        super().add_column(_plain(header) or "", *arguments, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*map(_plain, cells), **options)


def line(text: str = "") -> None:
    """Prints a line of a result."""
    typer.echo(visible_line(text))


def show(drawing: RenderableType, *, apart: bool = False) -> None:
    """Prints a table to the terminal; a file has room for all of it.

    Args:
        apart: prints it apart from the results.
    """
    stream = sys.stderr if apart else sys.stdout
    PlainConsole(stderr=apart, width=None if stream.isatty() else FILE_WIDTH).print(drawing)


def say(step: str) -> None:
    """Prints a step of the work to the terminal, apart from the results."""
    PlainConsole(stderr=True).print(visible_line(step))


def notice(text: str) -> None:
    """Prints lines to the terminal that shells may copy from, apart from the results."""
    typer.echo(visible_lines(text), err=True)


def error(text: str) -> None:
    """Prints what went wrong."""
    PlainConsole(stderr=True).print(f"Error: {text}", style="red", soft_wrap=True)


class VisibleRecord(logging.LogRecord):
    """A record whose message has no control characters, whichever handler writes it."""

    def getMessage(self) -> str:  # noqa: N802 - the name that logging calls
        """Returns the message."""
        return visible_lines(super().getMessage())


def guard_logs() -> None:
    """Escapes control characters in everything that this process logs, and in its warnings."""
    logging.setLogRecordFactory(VisibleRecord)
    warnings.formatwarning = _format_warning


_library_format = warnings.formatwarning


def _format_warning(*arguments: Any, **options: Any) -> str:
    return visible_lines(_library_format(*arguments, **options))


def _plain(cell: RenderableType | None) -> RenderableType | None:
    return Text(visible_line(cell)) if isinstance(cell, str) else cell
