"""A candidate's plan is that of its recipe, whether it was proposed now or read from a journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.journal import Journal
from tests.search.test_ledger import FIRST, scored


def test_a_fresh_candidate_and_the_same_from_the_journal_are_equal(tmp_path: Path) -> None:
    fresh = scored(0, FIRST)
    with Journal(tmp_path / "j.db") as journal:
        journal.record([fresh])
        (read,) = journal.candidates()
    assert read == fresh
    assert read.plan == fresh.plan == FIRST
    assert read.parsed == fresh.parsed


def test_no_recipe_is_read_where_the_plan_is_known_and_once_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = scored(0, FIRST)
    with Journal(tmp_path / "j.db") as journal:
        journal.record([fresh])
        (read,) = journal.candidates()
    texts = []
    original = Recipe.from_mapping
    monkeypatch.setattr(Recipe, "from_mapping", lambda document: texts.append(1) or original(document))
    assert fresh.plan == FIRST
    assert not texts
    assert [read.plan, read.plan] == [FIRST, FIRST]
    assert len(texts) == 1
