"""The reference in docs/reference is what the commands, the models and the API are now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("commands.md", "search-config.md", "recipe.md", "api.md")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "site" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(reference: ModuleType) -> dict[str, str]:
    pages: dict[str, str] = reference.pages()
    return pages


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_current(pages: dict[str, str], page: str) -> None:
    """`python docs/site/reference.py` writes them."""
    assert (DOCS / "reference" / page).read_text(encoding="utf-8") == pages[page]


def test_every_page_is_written(pages: dict[str, str]) -> None:
    assert sorted(pages) == sorted(PAGES)
    assert sorted(file.name for file in (DOCS / "reference").iterdir()) == sorted(PAGES)


def test_every_command_and_option_is_there_and_explained(
    reference: ModuleType, pages: dict[str, str]
) -> None:
    for name, command in reference.commands():
        pattern = rf"^## {name}\n(.*?)(?=^## |\Z)"
        (section,) = re.findall(pattern, pages["commands.md"], re.DOTALL | re.MULTILINE)
        for option in reference.options_of(command):
            assert re.search(rf"^\| `{option.opts[0]}[ /`].*[^ |] \|$", section, re.MULTILINE), option.name


def test_every_key_of_a_search_config_is_there_and_explained(
    reference: ModuleType, pages: dict[str, str]
) -> None:
    models = [reference.SearchConfig, *reference.BUILT_IN.values()]
    models += [model for _, model in reference.sections_of(reference.SearchConfig)]
    for model in models:
        for name, *_, meaning in reference.fields_of(model):
            assert meaning or name == "kind", (model, name)
            assert f"| `{name}` |" in pages["search-config.md"] or name == "kind"


def test_every_key_of_a_recipe_is_explained(reference: ModuleType) -> None:
    """Those of a slice's parameters by examples, on the page on recipes."""
    models = (reference.Recipe, reference.GlobalParameters, reference.Slice, reference.Source)
    assert [(m, row[0]) for m in models for row in reference.fields_of(m) if not row[-1]] == []
    recipes = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert [key for key in reference.OWN if not re.search(rf"`{key}\b", recipes)] == []
