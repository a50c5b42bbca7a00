from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, SearchError
from gptailor_merge.models.devices import pick_device
from gptailor_merge.objectives.scores import Score, with_means
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.racing import Race
from gptailor_merge.search.baselines.best_merge import BestMerge
from gptailor_merge.search.baselines.lazy_greedy import LazyGreedy
from gptailor_merge.search.driver import search
from gptailor_merge.search.front import dominates, front, losses
from gptailor_merge.search.optimizers import registry as optimizers
from gptailor_merge.search.outcomes import loss
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.space.space import Space
from tests.space.test_space import space as family_space

SETTINGS = SearchSettings(
    optimizer="default", budget=66, population=8, seed=7, weights={"kl": 1.0}, fingerprint="f", max_failures=5
)


def space(kept: int | tuple[int, ...] = 5, methods: tuple[str, ...] = ("slerp",)) -> Space:
    """A space whose start is affordable: four members and, but for slerp, their usual merges are scored."""
    return family_space(kept=kept, methods=methods)


class FakeScorer:
    """Scores by a rule: removing layer 3 is worst, members later in the family are better."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        self.scored: list[str] = []
        self.races: list[Race | None] = []
        self._fails = fails

    def value(self, made: Plan) -> float:
        used = [layer for slot in made.slots for layer in slot.layers]
        return 10 + sum(ord(m[-1]) - ord("e") for m, _ in used) / -10 - sum(i == 3 for _, i in used)

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]:
        self.races.append(race)
        outcomes = []
        for made in plans:
            self.scored.append(made.digest)
            if len(self.scored) in self._fails:
                outcomes.append(Outcome({}, "RuntimeError: out of memory", 0.0, 0))
                continue
            value = self.value(made)
            scores = {"kl": {"t": Score(value, 100)}}
            units = {"t": np.full(100, value / 100)} if race else None
            outcomes.append(Outcome(scores, None, 0.0, 128, units))
        return outcomes


class RacingScorer(FakeScorer):
    """Drops all but the best `keep`, incumbents included, after half of the tokens."""

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]:
        outcomes = super().score(plans, race)
        if race is None:
            return outcomes
        losses = [float(units["t"].sum()) for units in race.incumbents]
        losses += [self.value(made) for made in plans]
        worst_kept = sorted(losses)[min(race.keep, len(losses)) - 1]
        return [
            outcome
            if self.value(made) <= worst_kept
            else replace(outcome, tokens=64, units=None, estimate=self.value(made) + 0.01)
            for made, outcome in zip(plans, outcomes, strict=True)
        ]


def rows(journal: Journal) -> list[tuple[Any, ...]]:
    return [
        (c.number, c.digest, c.recipe, c.status, c.loss, c.scores, c.cause, c.original, c.tokens)
        for c in journal.candidates()
    ]


def repairs(journal: Journal) -> list[tuple[Any, ...]]:
    return [(o, c.number, c.digest, c.loss, c.cause, c.tokens) for o, c in journal.repairs().items()]


def test_the_search_finds_better_recipes(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        best = search(space(), FakeScorer(), journal, SETTINGS)
        losses = [c.loss for c in journal.candidates() if c.loss is not None]
        assert journal.counts().candidates == SETTINGS.budget
    assert best.loss == min(losses)
    assert best.loss < min(losses[:8])


def test_duplicates_are_not_scored_twice(tmp_path: Path) -> None:
    tiny = Space(models=("org/base",), depth=4, sizes=(2,), removable=(1, 2, 3), methods=())
    scorer = FakeScorer()
    with Journal(tmp_path / "j.db") as journal:
        search(tiny, scorer, journal, SETTINGS)
        counts = journal.counts()
        duplicates = [c for c in journal.candidates() if c.status == "duplicate"]
        originals = {c.number: c for c in journal.candidates()}
    assert len(scorer.scored) == len(set(scorer.scored)) == 3 + 3  # three probes, three recipes
    assert (counts.candidates, counts.duplicates, counts.tokens) == (66, 60, 6 * 128)
    for candidate in duplicates:
        original = originals[candidate.original]  # type: ignore[index]
        assert (original.digest, original.loss, original.status) == (
            candidate.digest,
            candidate.loss,
            "scored",
        )


def test_the_search_starts_where_removing_costs_least(tmp_path: Path) -> None:
    class Graded(FakeScorer):
        def value(self, made: Plan) -> float:
            removed = float(sum(set(range(8)) - {slot.layers[0][1] for slot in made.slots}))
            average = ["org/base", "org/a", "org/b", "org/c"], {"weight": 0.25}
            (models, settings) = (
                [m for m, _ in made.slots[0].layers],
                dict(made.slots[0].operation.inputs[-1]),
            )
            return removed + ((models, settings) != average)

    with Journal(tmp_path / "j.db") as journal:
        merging = space(methods=("task_arithmetic",))
        search(merging, Graded(), journal, replace(SETTINGS, budget=60))
        candidates = list(journal.candidates())
    assert [c.status for c in candidates[:17]] == ["probe"] * 17
    assert [c.loss for c in candidates[:6]] == [1, 1, 1, 1, 0, 1]  # four members, two merges
    assert [c.loss for c in candidates[6:12]] == [1, 2, 3, 4, 5, 6]
    assert [c.loss for c in candidates[12:17]] == [3, 4, 5, 6, 7]  # without the first
    first = candidates[17].plan
    assert [slot.layers[0][1] for slot in first.slots] == [0, 4, 5, 6, 7]
    assert [model for model, _ in first.slots[0].layers] == ["org/base", "org/a", "org/b", "org/c"]
    assert candidates[17].loss == min(c.loss for c in candidates[17:])  # type: ignore[type-var]


def test_a_probe_that_is_of_the_target_size_can_win(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        one_less = Space(models=("org/base",), depth=4, sizes=(3,), removable=(1, 2, 3), methods=())
        best = search(one_less, FakeScorer(), journal, SETTINGS)
        assert best.loss == min(c.loss for c in journal.candidates() if c.loss is not None)


def test_a_small_budget_is_not_spent_on_probes(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        search(space(), FakeScorer(), journal, SearchSettings(**{**vars(SETTINGS), "budget": 12}))
        assert {c.status for c in journal.candidates()} == {"scored"}
        search(space(), FakeScorer(), journal, SETTINGS)  # goes on as it began
        assert "probe" not in {c.status for c in journal.candidates()}


def test_dropped_candidates_are_recorded_as_such_and_never_the_best(tmp_path: Path) -> None:
    scorer = RacingScorer()
    with Journal(tmp_path / "j.db") as journal:
        best = search(space(), scorer, journal, SETTINGS)
        candidates = list(journal.candidates())
        counts = journal.counts()
    dropped = [c for c in candidates if c.status == "dropped"]
    assert len(dropped) == counts.dropped > 0
    assert best.status == "scored"
    for candidate in dropped:
        assert candidate.tokens == 64
        assert candidate.loss == pytest.approx(scorer.value(candidate.plan) + 0.01)
    assert best.loss == min(scorer.value(c.plan) for c in candidates if c.status != "probe")


def test_a_race_is_against_the_best_so_far(tmp_path: Path) -> None:
    scorer = RacingScorer()
    with Journal(tmp_path / "j.db") as journal:
        search(space(), scorer, journal, SETTINGS)
    races = [race for race in scorer.races if race is not None]
    assert len(races) == len(scorer.races)
    assert [(race.keep, race.incumbents) for race in races[:4]] == [(1, ()), (0, ()), (0, ()), (1, ())]
    assert all((race.keep, len(race.incumbents)) == (2, 2) for race in races[5:])


@pytest.mark.parametrize("budget", [51, 59])
def test_a_resumed_race_ends_as_an_undisturbed_one(tmp_path: Path, budget: int) -> None:
    """The units of incumbents are not in the journal; they are scored again."""
    with Journal(tmp_path / "one.db") as journal:
        search(space(), RacingScorer(), journal, SETTINGS)
        undisturbed = rows(journal)
    with Journal(tmp_path / "two.db") as journal:  # killed after whole generations
        search(space(), RacingScorer(), journal, replace(SETTINGS, budget=budget))
        scorer = RacingScorer()
        search(space(), scorer, journal, SETTINGS)
        assert rows(journal) == undisturbed
    again = [digest for digest in scorer.scored if digest in {row[1] for row in undisturbed[:budget]}]
    assert len(again) <= 2


def test_racing_can_be_switched_off_and_needs_to_know_what_is_kept(tmp_path: Path) -> None:
    for name, changes in (("off", {"racing": False}), ("other", {"optimizer": "DE"})):
        scorer = RacingScorer()
        with Journal(tmp_path / f"{name}.db") as journal:
            search(space(), scorer, journal, replace(SETTINGS, **changes), warm=[])  # type: ignore[arg-type]
            assert journal.counts().dropped == 0
        assert set(scorer.races) == {None}
    with pytest.raises(ConfigError, match=r"search\.racing: it is not known what DE keeps"):
        optimizers.check("DE", racing=True)


class FakeGate:
    """Keeps out what uses a layer of org/c; what uses more than two fails."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    def judge(self, plans: Sequence[Plan]) -> Sequence[Outcome]:
        self.judged += [made.digest for made in plans]
        used = [sum(m == "org/c" for slot in made.slots for m, _ in slot.layers) for made in plans]
        return [
            Outcome({"gate: c": {"t": Score(float(n), 1)}}, "RuntimeError: c" if n > 2 else None, 0.0, 10)
            for n in used
        ]

    def beyond(self, scores: Any) -> str | None:
        return "gate: c is 1, expected at most 0" if scores["gate: c"]["t"].mean > 0 else None


def test_what_a_gate_keeps_out_is_not_scored_and_cannot_win(tmp_path: Path) -> None:
    """Members later in the family are better, and org/c is the last."""
    scorer, gate = FakeScorer(), FakeGate()
    with Journal(tmp_path / "j.db") as journal:
        best = search(space(), scorer, journal, replace(SETTINGS, max_failures=9), gate=gate)
        candidates = list(journal.candidates())
        counts = journal.counts()
    gated = [c for c in candidates if c.status == "gated"]
    assert counts.gated == len(gated) > 0
    assert {(c.loss, c.cause, c.tokens, c.failed) for c in gated} == {
        (None, "gate: c is 1, expected at most 0", 10, False)
    }
    assert {c.digest for c in gated}.isdisjoint(scorer.scored)
    assert "org/c" not in best.recipe
    for candidate in candidates:
        if candidate.status == "scored":
            assert candidate.tokens == 128 + 10
            assert set(candidate.scores) == {"gate: c", "kl"}
        if candidate.status == "probe":
            assert candidate.digest not in gate.judged
    assert counts.failures == sum(c.status == "failed" for c in candidates)


class ManyScorer(FakeScorer):
    """Quality by the rule, better with every layer, and size."""

    def value(self, made: Plan) -> float:
        return super().value(made) - 2 * len(made.slots)

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]:
        """Half of the tokens are scored when candidates leave a race."""
        outcomes = [
            outcome
            if outcome.cause
            else replace(
                outcome,
                scores={**outcome.scores, "size": {"model": Score(float(len(made.slots)), 1, "count")}},
            )
            for made, outcome in zip(plans, super().score(plans), strict=True)
        ]
        self.races[-1] = race
        if race is None:
            return outcomes
        totals = {"t": 100, "model": 1}
        units = {
            n: race.units(
                lambda weights, made=made: (
                    {"t": np.full(100, self.value(made) / 100)}
                    if "kl" in weights
                    else {"model": np.array([float(len(made.slots))])}
                )
            )
            for n, made in enumerate(plans)
            if not outcomes[n].cause
        }
        halves = {
            n: {key: v[: max(1, len(v) // 2)] for key, v in whole.items()} for n, whole in units.items()
        }
        leave = race.hopeless(list(halves.values()), totals)
        dropped = {n: halves[n] for n, leaves in zip(halves, leave, strict=True) if leaves}
        for n, by_axis in race.means([units[n] for n in units.keys() - dropped], dropped, totals).items():
            scores = with_means(outcomes[n].scores, by_axis)
            outcomes[n] = replace(outcomes[n], tokens=64, scores=scores, estimate=by_axis["kl"])
        for n in units.keys() - dropped:
            outcomes[n] = replace(outcomes[n], units=units[n])
        return outcomes


FRONT = replace(SETTINGS, axes=("kl", "size"), budget=80, population=16)


def test_a_front_has_a_recipe_of_each_size(tmp_path: Path) -> None:
    made = space(kept=(3, 4, 5, 6))
    with Journal(tmp_path / "j.db") as journal:
        search(made, ManyScorer(fails=(17, 22)), journal, FRONT)
        points = front(journal.finished(), FRONT.axes)
        sizes = [len(c.plan.slots) for c in journal.candidates()]
    start = BestMerge(LazyGreedy()).candidates(made, 0)
    assert sizes[start - 4 : start] == [3, 4, 5, 6]  # the best member, pruned by what the probes say
    assert {point.layers for point in points} == {3, 4, 5, 6}


def test_a_resumed_search_for_a_front_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    made = space(kept=(3, 4, 5, 6))
    with Journal(tmp_path / "one.db") as journal:
        search(made, ManyScorer(), journal, FRONT)
        undisturbed = rows(journal)
        points = front(journal.finished(), FRONT.axes)
        dropped = [c for c in journal.candidates() if c.status == "dropped"]
    assert dropped
    for candidate in dropped:
        own = losses(candidate.scores, FRONT.axes)
        assert any(dominates(point.losses, own) for point in points)
        assert candidate.tokens == 64
    with Journal(tmp_path / "two.db") as journal:
        search(made, ManyScorer(), journal, replace(FRONT, budget=72))
        search(made, ManyScorer(), journal, FRONT)
        assert rows(journal) == undisturbed


def test_a_generation_is_recorded_as_a_whole(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        search(space(), FakeScorer(), journal, replace(SETTINGS, budget=8))
        (candidate, *_) = journal.candidates()
        with pytest.raises(SearchError, match="UNIQUE constraint failed"):
            journal.record([replace(candidate, number=99), candidate])
        assert journal.counts().candidates == 8


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
        assert journal.counts().failures >= 5  # the whole generation is kept


def test_a_larger_budget_continues(tmp_path: Path) -> None:
    with Journal(tmp_path / "short.db") as journal:
        search(space(), FakeScorer(), journal, SearchSettings(**{**vars(SETTINGS), "budget": 55}))
        scorer = FakeScorer()
        search(space(), scorer, journal, SETTINGS)
        continued = rows(journal)
    with Journal(tmp_path / "long.db") as journal:
        search(space(), FakeScorer(), journal, SETTINGS)
        assert rows(journal)[:55] == continued[:55]
    assert len(continued) == SETTINGS.budget
    assert len(scorer.scored) <= SETTINGS.budget - 55 + 2  # the race's incumbents


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        search(space(), FakeScorer(), journal, SETTINGS)
        for change in ({"seed": 8}, {"fingerprint": "g"}):
            with pytest.raises(SearchError, match="the config, the data or the versions of the libraries"):
                search(space(), FakeScorer(), journal, SearchSettings(**{**vars(SETTINGS), **change}))


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_bytes(b"not a database, but long enough to be looked at" * 9)
    with pytest.raises(SearchError, match="cannot be used as a journal"):
        Journal(tmp_path / "j.db")


def test_the_loss_is_the_weighted_sum_over_all_tokens() -> None:
    scores = {"kl": {"a": Score(1.0, 10), "b": Score(4.0, 30)}, "perplexity": {"a": Score(2.0, 10)}}
    assert loss(scores, {"kl": 2.0, "perplexity": 0.5}) == 2 * 3.25 + 0.5 * 2.0


KILLS = 3
"""Twenty are in tests/scoring/test_ray_pool.py, of workers as well."""


def config_of(family: dict[str, str], texts: dict[str, str], budget: int) -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
            "target": {"layers": 3},
            "repair": {"texts": "scored"},
            "tune": {"steps": 0},
            "writes": {"tokens": 0},
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


def _search(config: SearchConfig, run: Run) -> None:
    execute(config, run, pick_device("cpu"), resume=True)


def test_killed_at_some_instants_a_search_ends_as_if_undisturbed(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    config = config_of(family, texts, budget=16)
    undisturbed = Run(tmp_path / "undisturbed")
    disturbed = Run(tmp_path / "disturbed")
    # Children of a server that has imported everything and computed nothing: a fresh interpreter
    # would import for seconds, and a fork of this process would inherit broken thread pools.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    for run in (Run(tmp_path / "warm-up"), undisturbed):
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
        # Kill early enough that the last run still has something to do.
        child.join(timeout=rng.uniform(0.0, alone) if kills < KILLS else 60)
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            kills += 1
        elif kills >= KILLS:
            break
        else:  # it finished: begin again, to have as many real kills, and kill earlier
            shutil.rmtree(disturbed.path)
            alone *= 0.8  # the machine was busier when this was measured
    assert kills == KILLS
    assert child.exitcode == 0
    with Journal(undisturbed.journal) as one, Journal(disturbed.journal) as other:
        assert rows(one) == rows(other)
        assert repairs(one) == repairs(other)
    # But for where the maps are.
    assert plan(Recipe.load(undisturbed.best)) == plan(Recipe.load(disturbed.best))


def test_a_search_over_a_family_on_the_host_is_the_same(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    config = config_of(family, texts, budget=16)
    found = []
    for bank in ("device", "host"):
        run = Run(tmp_path / bank)
        execute(config, run, pick_device("cpu"), bank=bank)  # type: ignore[arg-type]
        with Journal(run.journal) as journal:
            found.append(rows(journal))
    assert found[0] == found[1]
