"""The package's shape: imports point downwards only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptailor_merge"

ORDER = (
    "cli",
    "api",
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


def imports_when_run(file: Path) -> set[str]:
    """Names the libraries that a module's own statements import, those for type checkers left out."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file: Path) -> None:
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not imports_when_run(file) & {"gptailor_merge"}
        return
    assert all(ORDER.index(name) >= ORDER.index(own) for name in imports(file)), imports(file)


def test_no_module_is_longer_than_a_sitting() -> None:
    long = {f.name: n for f in PACKAGE.rglob("*.py") if (n := len(f.read_text().splitlines())) > 500}
    assert not long
