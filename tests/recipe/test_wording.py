"""Operations, sources and components in words."""

from __future__ import annotations

import pytest

from gptailor_merge.recipe.plan import SELECT, Component, Edit, Operation
from gptailor_merge.recipe.wording import (
    component_text,
    edit_text,
    operation_text,
    range_text,
    source_text,
    value_text,
)

MERGE = Operation("ties", ((), (("weight", 0.60004),)), (("normalize", False),), base=0)


@pytest.mark.parametrize(("first", "past", "text"), [(3, 4, "3"), (3, 6, "3-5"), (0, 2, "0-1")])
def test_ranges(first: int, past: int, text: str) -> None:
    assert range_text(first, past) == text


def test_numbers_have_four_digits_and_filters_their_names() -> None:
    assert value_text(0.123456) == "0.1235"
    assert value_text(True) == "True"
    assert value_text((("mlp.", 0.5), (None, 1.0))) == "1 (0.5 in mlp)"


def test_an_operation_is_its_method_its_settings_and_its_edits() -> None:
    assert operation_text(Operation(SELECT, ((),))) == "select"
    assert operation_text(MERGE) == "ties normalize=False"
    assert operation_text(MERGE, [Edit("mlp")]) == "ties normalize=False, without mlp"
    assert edit_text(Edit("mlp", "0123")) == "repaired"
    assert edit_text(Edit("norms", "0123")) == "with fitted norms"


def test_a_source_is_its_name_its_weight_and_a_mark_if_it_is_the_base() -> None:
    assert source_text("base 1", MERGE, 0) == "base 1 as base"
    assert source_text("math 1", MERGE, 1) == "math 1 × 0.6"
    scaled = Operation(SELECT, ((("scale", 0.5),),))
    assert source_text("all", scaled, 0) == "all scale=0.5"


def test_a_component_names_its_members() -> None:
    assert component_text(Component(("org/base",), Operation(SELECT, ((),))), str.upper) == "ORG/BASE"
    merged = "ties normalize=False of a as base, b × 0.6"
    assert component_text(Component(("a", "b"), MERGE)) == merged
    edits = [Edit("norms", "0123")]
    assert component_text(Component(("a", "b"), MERGE), str, edits) == f"{merged}, with fitted norms"
