"""The package's shape: imports point downwards, every idea and every name has one place."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptailor_merge"
NAME = PACKAGE.name

ORDER = (
    "testing",
    "__main__",
    "cli",
    "api",
    "tracking",
    "hub",
    "checking",
    "report",
    "runs",
    "forecast",
    "healing",
    "tuning",
    "repair",
    "search",
    "space",
    "scoring",
    "drafting",
    "json_schemas",
    "config",
    "heal_config",
    "tune_config",
    "writes_config",
    "search_section",
    "repair_config",
    "target_config",
    "versions",
    "objectives",
    "calibration",
    "host",
    "planning",
    "composing",
    "models",
    "methods",
    "recipe",
    "files",
    "extensions",
    "digests",
    "documents",
    "errors",
    "yaml_nodes",
    "bounded_files",
    "time_left",
    "visible_text",
)
"""The rooms from top to bottom; a module imports from its own room and those below."""

FILES = {str(file.relative_to(PACKAGE)): file for file in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text()) for name, file in FILES.items()}
EVERY_FILE = pytest.mark.parametrize("file", FILES)

FRAGMENT = re.compile(r"(Of|By|From|With|Where|What|Whether|That|Than|To|In|On|For|So many)\b")
"""Words that begin a fragment, not a sentence."""


def module_name(file: str) -> str:
    parts = (NAME, *Path(file).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imported_modules(nodes: Iterator[ast.AST]) -> set[str]:
    """The modules of this package that statements import."""
    imported = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NAME:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                imported.add(whole if whole in MODULES else node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name.split(".")[0] == NAME}
    return imported


def prose(tree: ast.Module) -> Iterator[str]:
    """Docstrings, and the texts that stand below the names that they describe."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def code_texts(tree: ast.Module) -> Iterator[str]:
    """Names, imports and strings of a module, without its docstrings."""
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def room(file: str) -> str:
    return Path(file).parts[0].removesuffix(".py")


@EVERY_FILE
def test_imports_point_downwards_between_rooms(file: str) -> None:
    """Also imports inside functions; only the lazy face of the package may look up, inside functions."""
    if file == "__init__.py":
        assert not imported_modules(iter(TREES[file].body))
        return
    rooms = {name.split(".")[1] for name in imported_modules(ast.walk(TREES[file])) if "." in name}
    assert all(ORDER.index(name) >= ORDER.index(room(file)) for name in rooms), rooms


def test_imports_point_downwards_inside_rooms() -> None:
    """No module imports one that imports it, be it through others or inside functions."""
    graph = {
        name: imported_modules(ast.walk(TREES[file])) - {NAME}
        for name, file in MODULES.items()
        if file != "__init__.py"
    }
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(file) for file in FILES} - {"__init__"} <= set(ORDER)


def test_no_name_of_a_class_or_type_is_used_twice() -> None:
    names: list[str] = []
    for tree in TREES.values():
        classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        aliases = [
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z][A-Za-z]*[a-z][A-Za-z]*", target.id)
        ]
        names += {*classes, *aliases}
    assert sorted(name for name, count in Counter(names).items() if count > 1) == []


@EVERY_FILE
def test_only_methods_and_host_know_mergekit(file: str) -> None:
    if room(file) not in ("methods", "host"):
        assert [text for text in code_texts(TREES[file]) if "mergekit" in text] == []


@EVERY_FILE
def test_only_runs_knows_the_files_of_a_run(file: str) -> None:
    if room(file) != "runs":
        texts = list(code_texts(TREES[file]))
        assert [text for text in texts if re.search(r"(?<!\w)(config\.yml|journal\.db)", text)] == []


@EVERY_FILE
def test_docstrings_are_sentences(file: str) -> None:
    assert [text.splitlines()[0] for text in prose(TREES[file]) if FRAGMENT.match(text)] == []


@EVERY_FILE
def test_no_module_is_longer_than_a_sitting(file: str) -> None:
    assert len(FILES[file].read_text().splitlines()) <= 400
