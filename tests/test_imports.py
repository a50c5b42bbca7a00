"""The package's shape: imports point downwards only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptailor_merge"

ORDER = (
    "cli",
    "testing",
    "tracking",
    "hub",
    "checking",
    "report",
    "runs",
    "repair",
    "search",
    "space",
    "scoring",
    "config",
    "objectives",
    "calibration",
    "host",
    "planning",
    "composing",
    "models",
    "methods",
    "recipe",
    "files",
    "digests",
    "extensions",
    "documents",
    "errors",
)
"""From top to bottom; a module imports from its own entry and those below."""


def imports(file: Path) -> set[str]:
    """First names below gptailor_merge that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gptailor_merge."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file: Path) -> None:
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not imports(file)
        return
    assert all(ORDER.index(name) >= ORDER.index(own) for name in imports(file)), imports(file)


def test_no_module_is_longer_than_a_sitting() -> None:
    long = {f.name: n for f in PACKAGE.rglob("*.py") if (n := len(f.read_text().splitlines())) > 500}
    assert not long
