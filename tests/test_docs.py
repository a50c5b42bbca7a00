"""Pages for people name only what exists, their links lead somewhere, and their examples are right."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from gptailor_merge import errors
from gptailor_merge.cli.app import app, evolve_app
from gptailor_merge.config import SearchConfig
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from tests.test_imports import ORDER
from tests.zoo import ZOO

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "recipes/README.md"),
    *(str(file.relative_to(ROOT)) for file in sorted(DOCS.rglob("*.md"))),
)
WRITTEN = tuple(page for page in PAGES if not page.startswith("docs/reference/"))
"""The pages without those that are generated, which test_reference.py compares with the code."""

DOCUMENTS = (*WRITTEN, "pyproject.toml")
PATH = re.compile(r"(?<![\w/.-])(?:gptailor_merge|tests|docs|benchmarks|recipes)/[\w./-]*[\w/]")
DOTTED = re.compile(r"(?<![\w/.-])gptailor_merge(?:\.[A-Za-z_]\w*)+")
ROOMS = "|".join(sorted(path.stem for path in (ROOT / "gptailor_merge").iterdir() if path.stem[0] != "_"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(gptailor(?:-evolve)? .*)$", re.MULTILINE)
EVERY_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS)
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
EVERY_WRITTEN_PAGE = pytest.mark.parametrize("page", WRITTEN)


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


@cache
def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return [block for name, block in FENCE.findall(text(document)) if name == language]


def examples(document: str) -> Iterator[str]:
    """Yields the pieces of the Python examples, which blank lines divide."""
    for block in blocks(document, "python"):
        yield from (textwrap.dedent(piece).strip("\n") for piece in re.split(r"\n\s*\n", block))


@cache
def anchors(document: str) -> frozenset[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    prose = FENCE.sub("", text(document))
    names: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        names.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return frozenset(names)


@EVERY_DOCUMENT
def test_paths_are_there(document: str) -> None:
    """Also paths between back quotes that begin with a room."""
    written_by_hatchling = {"gptailor_merge/model_card_template.md", "gptailor_merge/schemas"}
    paths = set(PATH.findall(text(document))) - written_by_hatchling
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []
    in_rooms = re.findall(rf"`((?:{ROOMS})/[\w./-]+\.py)`", text(document))
    assert [path for path in in_rooms if not (ROOT / "gptailor_merge" / path).exists()] == []


@EVERY_DOCUMENT
def test_dotted_names_can_be_imported(document: str) -> None:
    assert sorted(name for name in set(DOTTED.findall(text(document))) if not exists(name)) == []


@EVERY_PAGE
def test_no_link_is_dead(page: str) -> None:
    """Files and headings; addresses elsewhere are not looked up."""
    prose = re.sub(r"`[^`\n]+`", "", FENCE.sub("", text(page)))
    dead = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(str(target.relative_to(ROOT)))):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", [page for page in WRITTEN if page != "docs/runs-elsewhere.md"])
def test_examples_stand_in_a_test_or_a_docstring(page: str) -> None:
    """An example that nobody runs grows old; indentation is not compared.

    What runs-elsewhere.md shows, `make interop` does.
    """
    pieces = {re.sub(r"^ +", "", piece, flags=re.M) for piece in examples(page)}
    assert sorted(piece for piece in pieces if piece not in code()) == []


@cache
def code() -> str:
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "gptailor_merge").rglob("*.py")]
    return "\n".join(re.sub(r"^ +", "", file.read_text(encoding="utf-8"), flags=re.M) for file in files)


@EVERY_PAGE
def test_recipes_and_search_configs_in_a_page_are_read(page: str) -> None:
    """A config without a family is a part of one; files need not be there."""
    for block in blocks(page, "yaml"):
        document = yaml.safe_load(block)
        if "merge_method" in document:
            recipe = Recipe.from_mapping(document)
            assert recipe.merge_method != "tailor" or plan(recipe).slots
        else:
            part = {"family": {"base": "base", "variants": {"math": "math"}}, "target": {"layers": 9}}
            objectives = [{"kind": "parameters"}]
            SearchConfig.model_validate({"objectives": objectives, **part, **document})


@pytest.fixture(scope="module")
def programs() -> dict[str, TyperCommand | TyperGroup]:
    return {"gptailor": get_command(app), "gptailor-evolve": get_command(evolve_app)}


@EVERY_WRITTEN_PAGE
def test_commands_in_a_page_have_the_options_that_it_gives_them(
    programs: dict[str, TyperCommand | TyperGroup], page: str
) -> None:
    for block in blocks(page, ""):
        for line in COMMAND.findall(block.replace("\\\n", " ")):
            program, *words = line.partition("  #")[0].split()
            command = programs[program]
            while isinstance(command, TyperGroup) and not words[0].startswith("--"):
                command = command.commands[words.pop(0)]
            known = {
                name
                for option in command.params
                if isinstance(option, TyperOption)
                for name in (*option.opts, *option.secondary_opts)
            }
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given - known == set(), line


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= 150


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"([\w./-]+\.md)$", navigation, re.MULTILINE)
    pages = [page.removeprefix("docs/") for page in PAGES]
    assert sorted(listed) == sorted(pages)


def test_troubleshooting_names_every_error() -> None:
    names = {name for name, value in inspect.getmembers(errors, inspect.isclass) if name.endswith("Error")}
    raised = {name for name in names if issubclass(getattr(errors, name), errors.TailorError)}
    headings = re.findall(r"^## .*$", text("docs/troubleshooting.md"), re.MULTILINE)
    assert raised - set(re.findall(r"`(\w+Error)`", " ".join(headings))) == set()


def test_the_table_of_architectures_has_a_row_for_each_that_is_tested() -> None:
    """`python benchmarks/architectures.py --page docs/architectures.md` writes it."""
    page = text("docs/architectures.md")
    table = page.split("<!-- architectures:begin -->")[1].split("<!-- architectures:end -->")[0]
    rows = dict(re.findall(r"^\| (\w+) \| .*? \| (\w+) \| .*\|$", table, flags=re.MULTILINE))
    assert rows == dict.fromkeys(ZOO, "right")


def test_every_room_has_a_line_in_the_map() -> None:
    rows = re.findall(r"^\| (`.*?) \|", text("CONTRIBUTING.md").split("## The rooms")[1], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert listed == list(ORDER)
