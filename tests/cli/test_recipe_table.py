from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gptailor_merge.cli.recipe_table import comparison, differences, rows, short_names, table
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = {"base": "org/base", "math": "org/math", "code": "other/math"}


def recipe(**top: object) -> Recipe:
    return Recipe.from_mapping(recipe_of(NAMES, **top))


def drawn(found: object, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(found)
    return [line.strip() for line in captured.get().splitlines() if line.strip()]


def characters(lines: list[str]) -> list[str]:
    """All that is drawn, in no order: cells that take several lines stand side by side."""
    return sorted("".join(lines).replace("─", "").replace(" ", ""))


def test_slots_removed_layers_embeddings_and_head_are_rows() -> None:
    found = rows(recipe(parameters={"head": "org/math", "tokenizer": "org/math"}))
    assert [(row.label, row.how) for row in found] == [
        ("embeddings", "select"),
        ("0", "select"),
        ("", "removed"),
        ("1", "task_arithmetic"),
        ("2", "task_arithmetic"),
        ("3", "select"),
        ("head", "select"),
        ("tokenizer", "select"),
    ]
    assert found[2].cells == {"org/base": "1"}
    assert found[3].cells == {"org/base": "2 as base", "org/math": "2 × 0.6", "other/math": "2 × 0.2"}
    assert found[4].cells["other/math"] == "3 × 0.4"  # the gradient's other end


def test_neighbours_that_are_made_alike_are_one_row() -> None:
    whole = {"sources": [{"model": "org/math", "layer_range": [1, 4]}], "parameters": {"op": "select"}}
    document = recipe_of(NAMES, whole)
    del document["slices"][1]  # type: ignore[attr-defined]
    found = rows(Recipe.from_mapping(document))
    assert [(row.label, dict(row.cells)) for row in found[1:-1]] == [
        ("0-3", {"org/math": "0-3"}),
        ("4", {"org/base": "4"}),
    ]


def test_filters_and_shared_parameters_are_told() -> None:
    density = [{"filter": "mlp", "value": 0.6}, {"value": 0.4}]
    merge = {
        "sources": [
            {"model": model, "layer_range": [2, 4], "parameters": {"weight": 1}}
            for model in ("org/math", "other/math")
        ],
        "parameters": {"op": "merge", "method": "ties", "density": density, "normalize": True},
    }
    merged = rows(Recipe.from_mapping(recipe_of(NAMES, merge)))[3]
    assert merged.label == "1-2"
    assert merged.how == "ties normalize=True"
    assert "density=0.4 (0.6 in mlp)" in merged.cells["org/math"]


def test_columns_are_told_apart_and_fit_a_terminal() -> None:
    assert list(short_names(["org/base", "org/math", "other/math"]).values()) == [
        "base",
        "org/math",
        "other/math",
    ]
    made = recipe()
    lines = drawn(table(rows(made), made.models, made.base_model))
    assert lines[0].split() == ["slots", "base", "org/math", "other/math", "how"]
    assert lines[3].split() == ["0", "0", "select"]
    assert max(map(len, lines)) <= 80


def test_a_narrow_terminal_breaks_text_and_never_cuts_it() -> None:
    names = {"base": "Qwen/Qwen2.5-1.5B", "math": "Qwen/Qwen2.5-1.5B-Math", "code": "Qwen/Qwen2.5-1.5B-Coder"}
    merge = {
        "sources": [
            {"model": names[name], "layer_range": [2, 4], "parameters": {"weight": 0.1234}}
            for name in ("math", "code")
        ],
        "parameters": {
            "op": "merge",
            "method": "ties",
            "density": [{"filter": "[/self_attn.q_proj]", "value": 0.6}, {"value": 0.4}],
            "normalize": True,
        },
    }
    made = Recipe.from_mapping(recipe_of(names, merge))
    for compared, found in ((False, rows(made)), (True, comparison(made, made))):
        shown = table(found, made.models, made.base_model, compared=compared)
        narrow, wide = drawn(shown), drawn(shown, width=300)
        assert max(map(len, narrow)) <= 80
        assert characters(narrow) == characters(wide)
        assert "density=0.4 (0.6 in [/self_attn.q_proj])" in "\n".join(wide)  # no markup of rich
    published = Recipe.load(RECIPES / "llama-2-13b-gptailor-2.yml")
    lines = drawn(table(rows(published), published.models, published.base_model))
    assert max(map(len, lines)) <= 80
    assert "1           1 as base    1 × 0.6381" in "\n".join(lines)
    assert sum("task_arithmetic" in line for line in lines) == 10


def test_a_comparison_marks_what_only_one_has() -> None:
    first = recipe()
    document = recipe_of(NAMES)
    document["slices"][0]["sources"][0]["model"] = "other/math"  # type: ignore[index]
    second = Recipe.from_mapping({**document, "dtype": "bfloat16", "parameters": {"head": "org/math"}})
    found = comparison(first, second)
    assert [(row.mark, row.label, row.other) for row in found] == [
        ("-", "0", ""),
        ("+", "", "0"),
        (" ", "1", "1"),
        (" ", "2", "2"),
        (" ", "3", "3"),
    ]
    assert differences(first, second) == [
        "dtype: float32 -> bfloat16",
        "head: select of org/base all -> select of org/math all",
    ]
    lines = drawn(table(found, first.models, first.base_model, compared=True))
    assert lines[0].split()[:2] == ["first", "second"]
    assert comparison(first, first) == [row for row in comparison(first, first) if row.mark == " "]
