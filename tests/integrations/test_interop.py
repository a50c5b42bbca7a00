"""The comparison with llama.cpp knows what agrees, and what the check has foretold; `make interop` runs it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptailor_merge import plan

FOLDER = Path(__file__).parents[2] / "integrations"


def loaded(file: Path) -> Any:
    """Returns a module that is on no path."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


interop = loaded(FOLDER / "interop.py")

SAME = interop.Compared("llama", "8 to 5", "f32", 3.0, 3.001, same_text=True, same_tokens=True, told="")


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        ({}, True),
        ({"llama_cpp": 3.01}, False),
        ({"same_text": False}, False),
        ({"llama_cpp": None, "cause": "no such architecture"}, False),
        # Half precision is rounded at other places, which may change a text, and the loss a little.
        ({"weights": "auto", "llama_cpp": 3.01, "same_text": False}, True),
        ({"weights": "auto", "llama_cpp": 3.1}, False),
    ],
)
def test_models_agree_by_loss_and_text(change: dict[str, object], agrees: bool) -> None:
    row = replace(SAME, **change)  # type: ignore[arg-type]
    assert row.agrees is agrees
    assert row.expected is agrees
    assert replace(row, told="layer_types: as the wrong kind").expected is not agrees


@pytest.mark.parametrize("case", interop.CASES, ids=lambda case: f"{case.kind}, {case.change}")
def test_every_case_is_of_the_depth_that_it_says(case: Any) -> None:
    depth, kept = (int(number) for number in case.change.replace(",", "").split()[0:3:2])
    recipe = interop.recipe(case, ["base", "variant"])
    assert (case.depth, len(plan(recipe).slots)) == (depth, kept)


def test_the_table_says_why_a_model_does_not_run() -> None:
    rows = [
        SAME,
        replace(SAME, llama_cpp=None, same_text=False, cause="unknown", told="layer_types: wrong", vllm=3.1),
    ]
    lines = interop.table(rows).splitlines()
    assert lines[2] == "| llama | 8 to 5 | f32 | 3.00000 | 3.00100 | same | nothing to say |  |  |"
    assert (
        lines[3] == "| llama | 8 to 5 | f32 | 3.00000 | unknown | differs | layer_types | 3.10000 | differs |"
    )
