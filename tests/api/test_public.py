"""The public names: what `__all__` promises is there, loaded when it is used, and not hidden by rooms."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import gptailor_merge
from gptailor_merge.api import engine

INIT = Path(gptailor_merge.__file__)


def names_for_type_checkers() -> set[str]:
    """The names that the block under TYPE_CHECKING imports."""
    (block,) = (
        node
        for node in ast.parse(INIT.read_text()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    )
    return {
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "types"
        for alias in node.names
    }


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_all_names_are_there_for_people_and_for_type_checkers() -> None:
    names = set(gptailor_merge.__all__) - {"__version__"}
    assert names == names_for_type_checkers() == set(gptailor_merge._HOMES)
    assert set(dir(gptailor_merge)) >= names
    for name in names:
        value = getattr(gptailor_merge, name)
        assert callable(value), name
        assert value.__doc__, name


def test_public_functions_show_how_they_are_called() -> None:
    functions = [name for name in gptailor_merge.__all__ if name.islower() and name not in ("__version__",)]
    without = [
        name
        for name in functions
        if f"{name}(" not in (getattr(gptailor_merge, name).__doc__ or "")
        and getattr(gptailor_merge, name).__module__.startswith("gptailor_merge.api")
    ]
    assert without == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(gptailor_merge, "prune_everything")


def test_importing_the_package_imports_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import gptailor_merge; "
        "print(sorted(set(sys.modules) - before))"
    )
    assert run(code) == "['gptailor_merge']"


def test_functions_are_not_hidden_by_rooms_of_their_names() -> None:
    for room in ("search.candidates", "repair", "report.palette"):
        importlib.import_module(f"gptailor_merge.{room}")
    assert all(callable(getattr(gptailor_merge, name)) for name in ("search", "repair", "report"))


def test_the_engine_lists_what_it_holds() -> None:
    imported = {
        alias.name
        for node in ast.parse(Path(engine.__file__).read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert imported == set(engine.__all__)


def test_the_commands_stand_on_the_api() -> None:
    """Beside it they know errors, the words that recipes are drawn with, and how text is shown safely."""
    allowed = (
        "gptailor_merge.api.",
        "gptailor_merge.cli",
        "gptailor_merge.errors",
        "gptailor_merge.recipe.",
        "gptailor_merge.host.names_and_commands",
        "gptailor_merge.documents",
        "gptailor_merge.time_left",
        "gptailor_merge.visible_text",
    )
    for file in (INIT.parent / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("gptailor_merge."):
                assert module.startswith(allowed), (file.name, module)
