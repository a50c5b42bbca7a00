"""Says after Ctrl-C how a search goes on."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from gptailor_merge.cli import terminal

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C has ended, as shells know it."""


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Ends the program at Ctrl-C with the command that continues the run.

    Args:
        out: the run directory.
    """
    try:
        yield
    except KeyboardInterrupt:
        message = f"\nStopped. {out} keeps what was scored; go on with\n  {resume_command()}"
        terminal.notice(message)
        raise typer.Exit(INTERRUPTED) from None


def resume_command() -> str:
    """Returns the command that is running, with --resume."""
    program = Path(sys.argv[0]).name
    options = [option for option in sys.argv[1:] if option != "--resume"]
    return shlex.join([program, *options, "--resume"])
