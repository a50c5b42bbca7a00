"""Documents name only what exists, and their examples stand in the code."""

from __future__ import annotations

import importlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_imports import ORDER

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", "benchmarks/README.md"),
    *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "docs").glob("*.md"))),
)
PATH = re.compile(r"(?<![\w/.-])(?:gptailor_merge|tests|docs|benchmarks|recipes)/[\w./-]*[\w/]")
DOTTED = re.compile(r"(?<![\w/.-])gptailor_merge(?:\.[A-Za-z_]\w*)+")
EVERY_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS)


def exists(dotted: str) -> bool:
    """Tells whether a dotted name is a module, an attribute in one, or a group of entry points."""
    if re.search(rf"^#   {dotted} ", text("pyproject.toml"), re.MULTILINE):
        return True
    module, *attributes = dotted.split(".")
    value: object = importlib.import_module(module)
    for attribute in attributes:
        module = f"{module}.{attribute}"
        try:
            value = importlib.import_module(module)
        except ModuleNotFoundError:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
    return True


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def examples(document: str) -> Iterator[str]:
    """Yields the pieces of the Python examples, which blank lines divide."""
    for block in re.findall(r"```python\n(.*?)```", text(document), re.DOTALL):
        yield from (textwrap.dedent(piece).strip("\n") for piece in re.split(r"\n\s*\n", block))


@EVERY_DOCUMENT
def test_paths_are_there(document: str) -> None:
    written_by_hatchling = {"gptailor_merge/model_card_template.md", "gptailor_merge/schemas"}
    paths = set(PATH.findall(text(document))) - written_by_hatchling
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


@EVERY_DOCUMENT
def test_dotted_names_can_be_imported(document: str) -> None:
    assert sorted(name for name in set(DOTTED.findall(text(document))) if not exists(name)) == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_examples_stand_in_a_test_or_a_docstring(document: str) -> None:
    """An example that nobody runs grows old; indentation is not compared."""
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "gptailor_merge").rglob("*.py")]
    code = "\n".join(re.sub(r"^ +", "", file.read_text(encoding="utf-8"), flags=re.M) for file in files)
    pieces = {re.sub(r"^ +", "", piece, flags=re.M) for piece in examples(document)}
    assert sorted(piece for piece in pieces if piece not in code) == []


def test_every_room_has_a_line_in_the_map() -> None:
    rows = re.findall(r"^\| (`.*?) \|", text("CONTRIBUTING.md").split("## The rooms")[1], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert listed == list(ORDER)
