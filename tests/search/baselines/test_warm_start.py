"""What a search starts from, where its config says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.search.baselines.best_merge import BestMerge
from gptailor_merge.search.baselines.influence import ShortGPT
from gptailor_merge.search.baselines.layer_sets import removed_by
from gptailor_merge.search.baselines.registry import BASELINES, warm_starts
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.driver import search
from gptailor_merge.search.first_generation import first_generation
from tests.search.baselines.conftest import Prepare, Prepared, config_of, rows
from tests.space.test_space import space

POPULATION = 6


def searched(session: Prepared, file: Path, warm: list[str] | None, budget: int = 60) -> Candidate:
    settings = replace(session.settings, budget=budget, population=POPULATION)
    methods = None if warm is None else [BASELINES[name] for name in warm]
    with Journal(file) as journal:
        return search(
            session.space, session, journal, settings, warm=methods, hidden=session.workplace.hidden
        )


@pytest.fixture
def plain(prepared: Prepare, deep: dict[str, str]) -> Prepared:
    return prepared(deep)


def test_the_first_generation_takes_what_was_found_to_every_member() -> None:
    made, rng = space(), np.random.RandomState(0)
    found = [made.select(0, {1, 2, 3}), made.select(0, {4, 5, 6})]
    points = first_generation(made, found, 12, rng)
    starts = [made.decode(point).digest for point in points]
    merges = [plan for gone in ({1, 2, 3}, {4, 5, 6}) for plan in made.merges(gone)]
    members = [made.select(m, gone) for m in range(4) for gone in ({1, 2, 3}, {4, 5, 6})]
    assert starts[:2] == [pruned.digest for pruned in found]
    assert set(starts[2:12]) <= {pruned.digest for pruned in merges}
    everything = first_generation(made, found, 30, rng)
    digests = {made.decode(point).digest for point in everything}
    assert {pruned.digest for pruned in (*merges, *members)} <= digests
    assert len(points) == 12
    assert len(first_generation(made, found, 5, rng)) == 5
    given = made.select(2, {1, 3, 5})
    (one, two, *_) = first_generation(made, found, 5, rng, start=[given])
    assert [made.decode(p).digest for p in (one, two)] == [given.digest, starts[0]]


@pytest.mark.parametrize("warm", [["shortgpt", "uidl"], ["sleb", "shortgpt"]])
def test_what_baselines_come_to_is_proposed_first(warm: list[str], plain: Prepared, tmp_path: Path) -> None:
    expected = [plain.run(BASELINES[name], tmp_path / f"{name}.db").digest for name in warm]
    searched(plain, tmp_path / "j.db", warm)
    made = rows(tmp_path / "j.db")
    before = sum(len(rows(tmp_path / f"{name}.db")) - (name != "sleb") for name in warm)
    first = made[before : before + POPULATION]
    distinct = list(dict.fromkeys(expected))
    assert [c.digest for c in first[: len(distinct)]] == distinct
    others = first[len(distinct) : 2 * len(distinct)]
    assert [removed_by(plain.space, c.plan) for c in others] == [
        removed_by(plain.space, c.plan) for c in first[: len(distinct)]
    ]
    assert len(made) == 60


def test_the_tokens_of_warm_starts_are_counted(plain: Prepared, tmp_path: Path) -> None:
    before = plain.tokens
    searched(plain, tmp_path / "j.db", ["shortgpt", "evopress"])
    made = rows(tmp_path / "j.db")
    assert (made[0].status, made[0].tokens) == ("probe", 256)
    # The best are scored again for the first race, as they are when a run is resumed.
    again = 2 * plain.workplace.measures.searched.tokens
    counted = sum(c.tokens for c in made) - 256
    assert plain.tokens - before - again <= counted <= plain.tokens - before


@pytest.mark.parametrize(
    ("warm", "candidates"), [(["shortgpt", "sleb"], 16), (["random", "uidl"], 25), (["evopress"], 20)]
)
def test_a_resumed_search_ends_as_an_undisturbed_one(
    warm: list[str], candidates: int, plain: Prepared, tmp_path: Path
) -> None:
    """Killed while it warms up, and after; also with a budget that has grown."""
    before, budget = plain.calls, candidates + 4 * POPULATION
    searched(plain, tmp_path / "undisturbed.db", warm, budget)
    undisturbed, calls = rows(tmp_path / "undisturbed.db"), plain.calls - before
    for survived in (1, calls // 2, calls - 1):
        file = tmp_path / f"{survived}.db"
        with plain.interrupted(survived):
            searched(plain, file, warm, budget)
        searched(plain, file, warm, budget)
        assert rows(file) == undisturbed
    searched(plain, tmp_path / "grown.db", warm, budget - 2 * POPULATION)
    searched(plain, tmp_path / "grown.db", warm, budget)
    assert rows(tmp_path / "grown.db") == undisturbed


def test_by_default_it_is_the_best_merge_as_far_as_that_is_affordable(
    plain: Prepared, tmp_path: Path
) -> None:
    searched(plain, tmp_path / "default.db", None)
    searched(plain, tmp_path / "named.db", ["best_merge"])
    assert rows(tmp_path / "default.db") == rows(tmp_path / "named.db")
    searched(plain, tmp_path / "smaller.db", None, budget=24)
    layers = [len(c.plan.slots) for c in rows(tmp_path / "smaller.db")]
    whole = BestMerge(ShortGPT()).models_scored(plain.space) + 1  # the influence is measured on one of them
    assert layers == [plain.space.depth] * whole + [plain.space.sizes[0]] * (24 - whole)
    searched(plain, tmp_path / "small.db", None, budget=10)
    searched(plain, tmp_path / "none.db", [], budget=10)
    assert rows(tmp_path / "small.db") == rows(tmp_path / "none.db")
    assert "probe" not in {c.status for c in rows(tmp_path / "none.db")}


@pytest.mark.parametrize("budget", [24, 60])
def test_a_resumed_search_starts_as_it_did_under_a_larger_budget(
    budget: int, plain: Prepared, tmp_path: Path
) -> None:
    searched(plain, tmp_path / "j.db", None, budget)
    before = rows(tmp_path / "j.db")
    searched(plain, tmp_path / "j.db", None, 2 * budget)
    assert rows(tmp_path / "j.db")[:budget] == before


def test_a_search_is_never_worse_than_what_it_starts_from(plain: Prepared, tmp_path: Path) -> None:
    alone = [plain.run(BASELINES[name], tmp_path / f"{name}.db").loss for name in ("shortgpt", "sleb")]
    best = searched(plain, tmp_path / "j.db", ["shortgpt", "sleb"])
    assert best.loss is not None
    assert best.loss <= min(loss for loss in alone if loss is not None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["sleb", "slebb"],
            r"search.warm_start\[1\]: unknown baseline, found 'slebb'; did you mean 'sleb'\?",
        ),
        (["sleb", "sleb"], r"search.warm_start\[1\]: is there twice, found 'sleb'"),
        (
            ["sleb", "uidl"],
            "search.warm_start: sleb, uidl take 17 candidates, which leaves no generation of 8 of a budget of 24",
        ),
    ],
)
def test_impossible_warm_starts_are_refused_before_anything_is_loaded(
    names: list[str], message: str, deep: dict[str, str], texts: dict[str, str]
) -> None:
    config = config_of(deep, texts, search={"budget": 24, "population": 8, "warm_start": names})
    with pytest.raises(ConfigError, match=message):
        prepare(config)


def test_a_run_remembers_its_warm_start(deep: dict[str, str], texts: dict[str, str], tmp_path: Path) -> None:
    config = config_of(deep, texts, search={"budget": 60, "warm_start": ["sleb", "random"]})
    (tmp_path / "config.yml").write_text(config.to_yaml())
    again = SearchConfig.load(tmp_path / "config.yml")
    assert again.search.warm_start == ("sleb", "random")
    assert again.differences(config_of(deep, texts, search={"budget": 60})) == ["search"]
    made = prepare(config.override(budget=100))
    assert made.warm == tuple(warm_starts(["sleb", "random"], made.space, budget=100, population=16))
