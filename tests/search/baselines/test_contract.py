"""What every baseline keeps to; a new one is tested by being in the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptailor_merge.errors import ConfigError, SearchError
from gptailor_merge.planning.check import check
from gptailor_merge.runs.journal import Journal
from gptailor_merge.scoring.hidden_states import HiddenStates
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.baselines.layer_sets import removed_by
from gptailor_merge.search.baselines.registry import BASELINES, warm_starts
from tests.search.baselines.conftest import Prepare, Prepared, rows

PATTERNED = {"target": {"layers": 6}, "operations": {"protect": {"first": 1, "last": 0}, "merge": ["linear"]}}

pytestmark = pytest.mark.parametrize("name", BASELINES)


@pytest.fixture
def plain(prepared: Prepare, deep: dict[str, str]) -> Prepared:
    return prepared(deep)


def test_the_size_is_right_and_protected_layers_stay(name: str, plain: Prepared, tmp_path: Path) -> None:
    best = plain.run(BASELINES[name], tmp_path / "j.db")
    made = check(best.parsed)
    assert len(made.slots) == 5
    assert removed_by(plain.space, best.plan) <= set(plain.space.removable) == {1, 2, 3, 4, 5, 6}
    with Journal(tmp_path / "j.db") as journal:
        assert journal.best() == best
        for candidate in journal.candidates():
            assert removed_by(plain.space, candidate.plan) <= set(plain.space.removable)


def test_a_fixed_pattern_of_layers_is_kept(
    name: str, prepared: Prepare, patterned: dict[str, str], tmp_path: Path
) -> None:
    """`check` refuses recipes whose layers the architecture would compute otherwise."""
    session = prepared(patterned, **PATTERNED)
    assert session.space.patterns
    if name == "laco":  # no two neighbours are of one kind
        with pytest.raises(SearchError, match="laco cannot collapse 8 layers to 6: it merges neighbours"):
            session.run(BASELINES[name], tmp_path / "j.db")
        return
    best = session.run(BASELINES[name], tmp_path / "j.db")
    assert len(check(best.parsed).slots) == 6
    with Journal(tmp_path / "j.db") as journal:
        for candidate in journal.finished():
            check(candidate.parsed)


def test_the_same_seed_does_the_same(name: str, plain: Prepared, tmp_path: Path) -> None:
    for file in ("one.db", "two.db"):
        plain.run(BASELINES[name], tmp_path / file, seed=3)
    assert rows(tmp_path / "one.db") == rows(tmp_path / "two.db")


def test_every_token_is_counted(
    name: str, plain: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of passes over the dense model, too."""
    measured = []
    original = HiddenStates._measured

    def spy(self, *arguments, **named):  # type: ignore[no-untyped-def]
        outcome = original(self, *arguments, **named)
        measured.append(outcome.tokens)
        return outcome

    monkeypatch.setattr(HiddenStates, "_measured", spy)
    before = plain.tokens
    plain.run(BASELINES[name], tmp_path / "j.db")
    with Journal(tmp_path / "j.db") as journal:
        counts = journal.counts()
        assert counts.tokens == plain.tokens - before + sum(measured) > 0
        whole = plain.workplace.measures.searched.tokens
        assert {c.tokens for c in journal.candidates() if c.status == "scored"} == {whole}
    assert counts.candidates <= BASELINES[name].candidates(plain.space, 24)


def test_interrupted_and_resumed_it_ends_as_undisturbed(name: str, plain: Prepared, tmp_path: Path) -> None:
    """Before its first, a middle and its last call to score."""
    before = plain.calls
    plain.run(BASELINES[name], tmp_path / "undisturbed.db", budget=40)
    calls = plain.calls - before
    for survived in {0, calls // 2, calls - 1}:
        file = tmp_path / f"{survived}.db"
        with plain.interrupted(survived):
            plain.run(BASELINES[name], file, budget=40)
        assert rows(file) != rows(tmp_path / "undisturbed.db")
        plain.run(BASELINES[name], file, budget=40)
        assert rows(file) == rows(tmp_path / "undisturbed.db")


@pytest.mark.parametrize(("member", "merge"), [("math", None), (None, "ties")])
def test_it_prunes_the_model_that_it_is_given(
    name: str, member: str | None, merge: str | None, plain: Prepared, tmp_path: Path
) -> None:
    choice = Choice(name, member, merge)
    given = choice.subject(plain.plans.family, plain.space)
    assert given is not None
    if name == "laco" and merge:
        with pytest.raises(ConfigError, match="laco prunes one model, and ties is a merge of several"):
            plain.run(choice.method, tmp_path / "j.db", subject=given)
        return
    best = plain.run(choice.method, tmp_path / "j.db", subject=given)
    made = best.plan
    assert {model for slot in made.slots for model, _ in slot.layers} == set(given.sources)
    assert made.embeddings[0] == made.head[0] == tuple(given.sources)
    with Journal(tmp_path / "j.db") as journal:
        assert {model for c in journal.candidates() for model in c.parsed.models} <= set(plain.space.models)


def test_every_size_of_a_range_gets_a_recipe(
    name: str, prepared: Prepare, deep: dict[str, str], tmp_path: Path
) -> None:
    session = prepared(deep, target={"layers": [4, 6]}, objectives=_with_parameters(prepared, deep))
    session.run(BASELINES[name], tmp_path / "j.db", budget=48)
    with Journal(tmp_path / "j.db") as journal:
        assert {len(c.plan.slots) for c in journal.finished()} >= {4, 5, 6}


def _with_parameters(prepared: Prepare, deep: dict[str, str]) -> list[object]:
    (kl,) = prepared(deep).plans.config.model_dump(mode="json", exclude_none=True)["objectives"]
    return [kl, {"kind": "parameters"}]


def test_what_a_search_can_start_from_is_in_its_space(name: str, plain: Prepared, tmp_path: Path) -> None:
    if not BASELINES[name].in_space:
        with pytest.raises(ConfigError, match=r"search\.warm_start\[0\]: its recipes are not in the space"):
            warm_starts([name], plain.space, budget=1000, population=4)
        return
    best = plain.run(BASELINES[name], tmp_path / "j.db")
    assert plain.space.decode(plain.space.encode(best.plan)).digest == best.digest
