"""Runs a function in another interpreter, where sets of texts have another order, as in a resumed search."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache

_PROGRAM = (
    "import json, pkgutil, sys; "
    "function, arguments = pkgutil.resolve_name(sys.argv[1]), json.loads(sys.argv[2]); "
    "print(json.dumps({name: function(name, *arguments) for name in sys.argv[3:]}))"
)


@lru_cache
def fresh_digests(function: str, names: tuple[str, ...], *arguments: int) -> dict[str, list[str]]:
    """Returns name -> the digests that a function returns for it in a fresh interpreter.

    Args:
        function: MODULE:NAME of a function that takes a name, and then the arguments.
        names: those that share the interpreter, to save time.
    """
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, function, json.dumps(arguments), *names]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    digests: dict[str, list[str]] = json.loads(answer.stdout.splitlines()[-1])
    return digests
