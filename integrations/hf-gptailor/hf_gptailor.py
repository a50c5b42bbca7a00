"""`hf gptailor`: hands check, push and reproduce over to the gptailor command of the user's environment.

The client installs an extension into an environment of its own, which holds this file and nothing else.
gptailor-merge itself, with torch, is where the user has installed it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "check": "says whether a model directory is sound",
    "push": "publishes the model of a run, with its card and its recipe",
    "reproduce": "builds a published model again and compares every tensor",
}

USAGE = "\n".join(
    (
        "usage: hf gptailor COMMAND ...",
        "",
        *(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items()),
        "",
        "`hf gptailor COMMAND --help` says more; the command gptailor has all others.",
    )
)

MISSING = (
    "hf gptailor runs the command gptailor, which was not found on PATH, nor beside hf, nor in GPTAILOR; "
    "install it with `pip install gptailor-merge` and activate that environment, or set GPTAILOR to the "
    "command's path"
)


def find_command() -> str | None:
    """Returns the path of gptailor: that of $GPTAILOR, the one on PATH, or the one beside hf."""
    named = os.environ.get("GPTAILOR")
    if named:
        return shutil.which(named)
    beside = shutil.which("hf")
    places = [None] if beside is None else [None, str(Path(beside).resolve().parent)]
    return next(filter(None, (shutil.which("gptailor", path=place) for place in places)), None)


def main() -> int:
    """Runs the command that the arguments name, and returns its exit code; 2 where there is none."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        expected = ", ".join(COMMANDS)
        print(f"hf gptailor: expected one of {expected}, found {arguments[0]!r}", file=sys.stderr)
        return 2
    command = find_command()
    if command is None:
        print(MISSING, file=sys.stderr)
        return 2
    try:
        return subprocess.call([command, *arguments])
    except KeyboardInterrupt:  # the command has been told, too
        return 130
