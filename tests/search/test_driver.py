from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import SearchError
from gptailor_merge.recipe.operations import Plan, plan
from gptailor_merge.scoring.evaluator import Outcome
from gptailor_merge.scoring.objectives import Score
from gptailor_merge.search.driver import Settings, loss, search
from gptailor_merge.search.journal import Journal
from gptailor_merge.search.run import RunDirectory, execute
from gptailor_merge.search.session import pick_device
from gptailor_merge.search.space import Space
from tests.search.test_space import space

SETTINGS = Settings(
    optimizer="default", budget=40, population=8, seed=7, weights={"kl": 1.0}, fingerprint="f", max_failures=5
)


class FakeScorer:
    """Scores by a rule: removing layer 3 is worst, members later in the family are better."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        self.scored: list[str] = []
        self._fails = fails

    def score(self, plans: Sequence[Plan]) -> Iterator[Outcome]:
        for made in plans:
            self.scored.append(made.digest)
            if len(self.scored) in self._fails:
                yield Outcome({}, "RuntimeError: out of memory", 0.0, 0)
                continue
            used = [layer for slot in made.slots for layer in slot.layers]
            value = sum(ord(model[-1]) - ord("e") for model, _ in used) / -10 - sum(i == 3 for _, i in used)
            yield Outcome({"kl": {"t": Score(10 + value, 100)}}, None, 0.0, 128)


def rows(journal: Journal) -> list[tuple[Any, ...]]:
    return [
        (c.number, c.digest, c.recipe, c.status, c.loss, c.scores, c.cause, c.original, c.tokens)
        for c in journal.candidates()
    ]


def test_the_search_finds_better_recipes(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        best = search(space(), FakeScorer(), journal, SETTINGS)
        losses = [c.loss for c in journal.candidates() if c.loss is not None]
        assert journal.counts().candidates == 40
    assert best.loss == min(losses)
    assert best.loss < min(losses[:8])


def test_duplicates_are_not_scored_twice(tmp_path: Path) -> None:
    tiny = Space(models=("org/base",), depth=4, kept=2, removable=(1, 2, 3), methods=())
    scorer = FakeScorer()
    with Journal(tmp_path / "j.db") as journal:
        search(tiny, scorer, journal, SETTINGS)
        counts = journal.counts()
        duplicates = [c for c in journal.candidates() if c.status == "duplicate"]
        originals = {c.number: c for c in journal.candidates()}
    assert len(scorer.scored) == len(set(scorer.scored)) == 3 + 3  # three probes, three recipes
    assert (counts.candidates, counts.duplicates, counts.tokens) == (40, 34, 6 * 128)
    for candidate in duplicates:
        original = originals[candidate.original]  # type: ignore[index]
        assert (original.digest, original.loss, original.status) == (
            candidate.digest,
            candidate.loss,
            "scored",
        )


def test_the_search_starts_where_removing_costs_least(tmp_path: Path) -> None:
    class Graded(FakeScorer):
        def score(self, plans: Sequence[Plan]) -> Iterator[Outcome]:
            for made in plans:
                gone = set(range(8)) - {slot.layers[0][1] for slot in made.slots}
                self.scored.append(made.digest)
                yield Outcome({"kl": {"t": Score(float(sum(gone)), 100)}}, None, 0.0, 128)

    with Journal(tmp_path / "j.db") as journal:
        search(space(), Graded(), journal, SETTINGS)
        candidates = list(journal.candidates())
    assert [c.status for c in candidates[:6]] == ["probe"] * 6
    assert [c.loss for c in candidates[:6]] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    first = plan(candidates[6].parsed)
    assert [slot.layers for slot in first.slots] == [(("org/base", i),) for i in (0, 4, 5, 6, 7)]
    assert candidates[6].loss == min(c.loss for c in candidates[6:])  # type: ignore[type-var]


def test_a_probe_that_is_of_the_target_size_can_win(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        one_less = Space(models=("org/base",), depth=4, kept=3, removable=(1, 2, 3), methods=())
        best = search(one_less, FakeScorer(), journal, SETTINGS)
        assert best.loss == min(c.loss for c in journal.candidates() if c.loss is not None)


def test_a_small_budget_is_not_spent_on_probes(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        search(space(), FakeScorer(), journal, Settings(**{**vars(SETTINGS), "budget": 12}))
        assert {c.status for c in journal.candidates()} == {"scored"}
        search(space(), FakeScorer(), journal, SETTINGS)  # goes on as it began
        assert "probe" not in {c.status for c in journal.candidates()}


def test_failures_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        search(space(), FakeScorer(fails=(2, 3, 12)), journal, SETTINGS)
        failed = [c for c in journal.candidates() if c.status == "failed"]
        assert journal.counts().failures == len(failed) == 3
    assert {(c.cause, c.loss) for c in failed} == {("RuntimeError: out of memory", None)}


def test_many_failures_in_a_row_stop_the_search_with_the_cause(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        with pytest.raises(SearchError, match="5 candidates in a row failed; the last: RuntimeError: out of"):
            search(space(), FakeScorer(fails=range(4, 99)), journal, SETTINGS)
        assert journal.counts().failures == 5


def test_a_larger_budget_continues(tmp_path: Path) -> None:
    with Journal(tmp_path / "short.db") as journal:
        search(space(), FakeScorer(), journal, Settings(**{**vars(SETTINGS), "budget": 29}))
        scorer = FakeScorer()
        search(space(), scorer, journal, SETTINGS)
        continued = rows(journal)
    with Journal(tmp_path / "long.db") as journal:
        search(space(), FakeScorer(), journal, SETTINGS)
        assert rows(journal)[:29] == continued[:29]
    assert len(continued) == 40
    assert len(scorer.scored) <= 11


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        search(space(), FakeScorer(), journal, SETTINGS)
        for change in ({"seed": 8}, {"fingerprint": "g"}):
            with pytest.raises(SearchError, match="the config, the data or the versions of the libraries"):
                search(space(), FakeScorer(), journal, Settings(**{**vars(SETTINGS), **change}))


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_bytes(b"not a database, but long enough to be looked at" * 9)
    with pytest.raises(SearchError, match="cannot be used as a journal"):
        Journal(tmp_path / "j.db")


def test_the_loss_is_the_weighted_sum_over_all_tokens() -> None:
    scores = {"kl": {"a": Score(1.0, 10), "b": Score(4.0, 30)}, "perplexity": {"a": Score(2.0, 10)}}
    assert loss(scores, {"kl": 2.0, "perplexity": 0.5}) == 2 * 3.25 + 0.5 * 2.0


def config_of(family: dict[str, str], texts: dict[str, str], budget: int) -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
            "target": {"layers": 3},
            "objectives": [
                {
                    "kind": "kl",
                    "data": texts,
                    "teacher": {"sums": "math"},
                    "tokens": 128,
                    "sequence_length": 16,
                }
            ],
            "search": {"budget": budget, "population": 8},
        }
    )


def _search(config: SearchConfig, run: RunDirectory) -> None:
    execute(config, run, pick_device("cpu"), resume=True)


def test_killed_at_twenty_instants_a_search_ends_as_if_undisturbed(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    config = config_of(family, texts, budget=48)
    undisturbed = RunDirectory(tmp_path / "undisturbed")
    disturbed = RunDirectory(tmp_path / "disturbed")
    # Children of a server that has imported everything and computed nothing: a fresh interpreter
    # would import for seconds, and a fork of this process would inherit broken thread pools.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    for run in (RunDirectory(tmp_path / "warm-up"), undisturbed):
        begun = time.monotonic()
        child = server.Process(target=_search, args=(config, run))
        child.start()
        child.join()
        alone = time.monotonic() - begun
    rng = random.Random(0)
    kills = 0
    for _ in range(200):
        child = server.Process(target=_search, args=(config, disturbed))
        child.start()
        # Kill early enough that the twenty-first run still has something to do.
        child.join(timeout=rng.uniform(0.0, alone) if kills < 20 else 60)
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            kills += 1
        elif kills >= 20:
            break
        else:  # it finished: begin again, to have twenty real kills
            for file in disturbed.path.iterdir():
                file.unlink()
    assert kills == 20
    assert child.exitcode == 0
    with Journal(undisturbed.journal) as one, Journal(disturbed.journal) as other:
        assert rows(one) == rows(other)
    assert undisturbed.best.read_text() == disturbed.best.read_text()
