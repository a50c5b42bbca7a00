"""Each method against its paper, computed independently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptailor_merge.errors import SearchError
from gptailor_merge.objectives.scores import Score
from gptailor_merge.recipe.plan import SELECT, Plan
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.hidden_states import DISTANCE, INFLUENCE, block_name
from gptailor_merge.scoring.racing import Race, Selection
from gptailor_merge.search.baselines.evopress import EvoPress, _mutants
from gptailor_merge.search.baselines.greedy import SLEB
from gptailor_merge.search.baselines.influence import UIDL, ShortGPT
from gptailor_merge.search.baselines.layer_sets import extends, nearest, removed_by
from gptailor_merge.search.baselines.lazy_greedy import LazyGreedy
from gptailor_merge.search.baselines.one_shot import OneShot
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.search.baselines.random_search import RandomSearch
from gptailor_merge.search.baselines.subject import base_of
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.outcomes import loss
from gptailor_merge.space.space import Space
from tests.search.baselines.conftest import Prepare, rows

KINDS = "dsdsdsds"
PATTERNS = {6: tuple(KINDS[:6])}


def space_of(size: int | tuple[int, ...] = 5, **more: Any) -> Space:
    sizes = size if isinstance(size, tuple) else (size,)
    return Space(("org/base", "org/a"), 8, sizes, tuple(range(1, 7)), (), **more)


class Rule:
    """A runner by which a set of removed layers costs what a function says, or fails where it is None."""

    def __init__(self, space: Space, cost: Callable[[frozenset[int]], float | None] = lambda _: 0.0) -> None:
        self.space, self._cost = space, cost
        self.rounds: list[tuple[list[frozenset[int]], str, Any]] = []
        self.known: dict[str, Candidate] = {}

    def score(
        self, plans: Sequence[Plan], *, status: str = Status.SCORED, keep: int | Race | None = None
    ) -> list[Candidate]:
        sets = [removed_by(self.space, proposed) for proposed in plans]
        self.rounds.append((sets, status, keep))
        losses = [self._cost(removed) for removed in sets]
        kept = sorted(x for x in losses if x is not None)[: keep.keep if isinstance(keep, Race) else None]
        made = []
        for proposed, value in zip(plans, losses, strict=True):
            dropped = value is not None and value > max(kept, default=-np.inf)
            made.append(
                Candidate(
                    number=len(self.known),
                    digest=proposed.digest,
                    recipe=self.space.recipe(proposed).to_yaml(),
                    status=Status.DROPPED
                    if dropped and status != Status.PROBE
                    else "failed"
                    if value is None
                    else status,
                    loss=value,
                    scores={},
                    fingerprint="f",
                    cause="RuntimeError: no" if value is None else None,
                )
            )
            self.known.setdefault(proposed.digest, made[-1])
        return made

    def measure(self, plan: Plan, take: Callable[[Plan], Outcome]) -> Candidate:
        text = self.space.recipe(plan).to_yaml()
        return Candidate(0, plan.digest, text, Status.PROBE, None, take(plan).scores, "f")

    def original(self, digest: str) -> Candidate | None:
        return self.known.get(digest)


class States:
    """Hidden states that say what they are told."""

    def __init__(self, influence: Sequence[float] = (), distances: Any = None) -> None:
        self._influence, self._distances = influence, distances

    def block_influence(self, made: Plan) -> Outcome:
        by_layer = {str(layer): Score(one, 1) for layer, one in enumerate(self._influence)}
        return Outcome({INFLUENCE: by_layer}, None, 0.0, 1)

    def angular_distances(self, made: Plan, lengths: Sequence[int]) -> Outcome:
        blocks = [(at, at + n) for n in lengths for at in range(8 - n + 1)]
        by_block = {block_name(block): Score(self._distances(block), 1) for block in blocks}
        return Outcome({DISTANCE: by_block}, None, 0.0, 1)


def problem(runner: Rule, states: Any = None, **more: Any) -> PruningProblem:
    parts = {"budget": 100, "seed": 0, "weights": {"kl": 1.0}, **more}
    return PruningProblem(
        space=runner.space, runner=runner, base=base_of(runner.space), hidden=states, **parts
    )


def found(method: Any, runner: Rule, states: Any = None, **more: Any) -> list[list[int]]:
    made = method.find(problem(runner, states, **more))
    return [sorted(removed_by(runner.space, pruned)) for pruned in made]


# The cost of a set: no sum of its layers', so that the order of removal matters.
PAIRS = np.random.RandomState(5).uniform(-1, 1, size=(8, 8))


def cost(removed: frozenset[int]) -> float:
    return float(sum(PAIRS[a, b] for a in removed for b in removed))


def test_shortgpt_removes_what_has_the_least_influence() -> None:
    states = States([0.0, 0.5, 0.1, 0.7, 0.2, 0.9, 0.3, 0.0])
    assert found(ShortGPT(), Rule(space_of((4, 5))), states) == [[1, 2, 4, 6], [2, 4, 6]]


def test_shortgpt_keeps_the_most_influence_that_a_pattern_allows() -> None:
    """Two neighbours must go, dense and sparse."""
    states = States([0.0, 0.5, 0.9, 0.1, 0.2, 0.9, 0.05, 0.0])
    runner = Rule(space_of(6, layer_kinds=tuple(KINDS), patterns=PATTERNS))
    sums = {
        pair: sum(states._influence[layer] for layer in range(8) if layer not in pair)
        for pair in [(a, b) for a in range(1, 7) for b in range(a + 1, 7)]
        if [KINDS[layer] for layer in range(8) if layer not in pair] == list(KINDS[:6])
    }
    assert found(ShortGPT(), runner, states) == [sorted(max(sums, key=sums.__getitem__))]


def test_uidl_removes_the_block_that_turns_its_input_least() -> None:
    def distance(block: tuple[int, int]) -> float:
        return {(0, 3): 0.0, (5, 8): 0.01, (4, 7): 0.2, (2, 5): 0.1}.get(block, 0.5)

    # The first two hold a protected layer.
    assert found(UIDL(), Rule(space_of(5)), States(distances=distance)) == [[2, 3, 4]]


def test_uidl_takes_what_it_may_of_the_best_block() -> None:
    space = Space(("org/base",), 8, (5,), (1, 3, 4, 6), ())
    runner = Rule(space)
    assert found(UIDL(), runner, States(distances=lambda block: abs(block[0] - 2))) == [[1, 3, 4]]


def greedy(size: int) -> list[int]:
    """By brute force: try every layer, keep the best, again."""
    removed: list[int] = []
    while len(removed) < 8 - size:
        left = [layer for layer in range(1, 7) if layer not in removed]
        removed.append(min(left, key=lambda layer: cost(frozenset({*removed, layer}))))
    return sorted(removed)


def test_sleb_is_greedy_and_its_order_is_not_that_of_single_layers() -> None:
    runner = Rule(space_of((3, 5)), cost)
    assert found(SLEB(), runner) == [greedy(3), greedy(5)]
    assert [status for _, status, _ in runner.rounds] == [
        Status.PROBE,
        Status.PROBE,
        Status.SCORED,
        Status.PROBE,
        Status.SCORED,
    ]
    assert found(OneShot(), Rule(space_of((3, 5)), cost)) != [greedy(3), greedy(5)]


def test_one_shot_removes_what_costs_least_alone() -> None:
    alone = sorted(range(1, 7), key=lambda layer: cost(frozenset({layer})))
    assert found(OneShot(), Rule(space_of(5), cost)) == [sorted(alone[:3])]


def test_lazy_greedy_measures_the_cheapest_again() -> None:
    """With six layers, of which five are measured again, it misses what SLEB does not only by chance."""
    space = space_of((5, 6))
    runner = Rule(space, cost)
    greedy = found(SLEB(), Rule(space, cost))
    assert found(LazyGreedy(), runner) == greedy
    assert [(len(sets), status, keep.keep) for sets, status, keep in runner.rounds] == [
        (6, Status.PROBE, 0),
        (5, Status.SCORED, 1),
        (4, Status.SCORED, 1),
    ]
    assert sum(len(sets) for sets, *_ in runner.rounds) + 2 == LazyGreedy().candidates(space, 0)


def test_lazy_greedy_looks_again_at_what_others_made_dearer() -> None:
    """Layers 1 and 2 do the same: each can go, but not both."""

    def twins(removed: frozenset[int]) -> float:
        return float(sum(removed)) + 50 * (removed >= {1, 2})

    space = Space(("org/base",), 20, (18,), tuple(range(1, 19)), ())
    runner = Rule(space, twins)
    assert found(LazyGreedy(), runner) == [[1, 3]]
    assert [len(sets) for sets, *_ in runner.rounds] == [18, 5]


def test_sleb_equals_brute_force_on_a_model(prepared: Prepare, deep: dict[str, str], tmp_path: Path) -> None:
    """Every recipe scored by itself, as `gptailor score` would."""
    session = prepared(deep)
    best = session.run(SLEB(), tmp_path / "j.db")
    executor, weights = session.executor, session.settings.weights
    removed: set[int] = set()
    while len(removed) < 3:
        losses = {}
        for layer in set(range(1, 7)) - removed:
            (outcome,) = executor.score([session.space.select(0, {*removed, layer})])
            losses[layer] = loss(outcome.scores, weights)
        removed.add(min(losses, key=losses.__getitem__))
    assert removed_by(session.space, best.plan) == removed
    assert best.loss == min(losses.values())


def test_shortgpt_runs_the_dense_model_once(prepared: Prepare, deep: dict[str, str], tmp_path: Path) -> None:
    session = prepared(deep)
    best = session.run(ShortGPT(), tmp_path / "j.db")
    passed, scored = rows(tmp_path / "j.db")
    assert (passed.status, passed.loss, passed.tokens, scored.digest) == ("probe", None, 256, best.digest)
    influence = [passed.scores[INFLUENCE][str(layer)].mean for layer in range(8)]
    least = sorted(range(1, 7), key=influence.__getitem__)[:3]
    assert removed_by(session.space, best.plan) == set(least)


def test_what_cannot_be_scored_is_never_chosen() -> None:
    def fails(removed: frozenset[int]) -> float | None:
        return None if 2 in removed else cost(removed)

    for method in (SLEB(), OneShot(), LazyGreedy(), EvoPress(), RandomSearch()):
        runner = Rule(space_of(5), fails)
        assert all(2 not in removed for removed in found(method, runner))
    for method in (SLEB(), EvoPress(), RandomSearch()):
        with pytest.raises(SearchError, match="could be scored; the last: RuntimeError: no"):
            found(method, Rule(space_of(5), lambda _: None))


def test_evopress_selects_as_its_paper_says() -> None:
    """64 random sets, the best is the parent; generations of 32 new sets, two survivors, elitist."""
    space = Space(("org/base",), 20, (13,), tuple(range(1, 19)), ())
    weights = np.random.RandomState(0).uniform(size=20)
    runner = Rule(space, lambda removed: float(sum(weights[layer] for layer in removed)))
    (best,) = found(EvoPress(), runner, budget=64 + 6 * 32)
    sizes = [(len(sets), keep.keep) for sets, _, keep in runner.rounds]
    assert sizes == [(64, 1)] + [(32, 2)] * 6
    proposed = [removed for sets, _, _ in runner.rounds for removed in sets]
    assert len(set(proposed)) == len(proposed)
    parents = []
    for number, (sets, _, _) in enumerate(runner.rounds):
        parents.append(min([*parents[-1:], *sets], key=lambda removed: sum(weights[i] for i in removed)))
        if number:
            assert all(1 <= len(child - parents[-2]) <= 3 for child in sets)
    assert best == sorted(parents[-1])


def test_evopress_draws_the_number_of_exchanges_as_the_paper_does() -> None:
    """min(a, b) with a, b uniform in {1, 2, 3}: 5/9, 3/9, 1/9. An exchange may undo another."""
    space = Space(("org/base",), 400, (200,), tuple(range(400)), ())
    parent = frozenset(range(200))
    drawn = _mutants(space, parent, 200, np.random.RandomState(0))
    counts = np.bincount([len(next(drawn) - parent) for _ in range(1800)], minlength=4)
    assert counts[0] == 0
    assert counts[1:] / 1800 == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.04)


def test_evopress_stops_when_everything_has_been_proposed() -> None:
    space = Space(("org/base",), 5, (3,), (1, 2, 3), ())
    runner = Rule(space, cost)
    (best,) = found(EvoPress(), runner)
    assert {removed for sets, _, _ in runner.rounds for removed in sets} == {
        frozenset(pair) for pair in ((1, 2), (1, 3), (2, 3))
    }
    assert best == min(([1, 2], [1, 3], [2, 3]), key=lambda pair: cost(frozenset(pair)))
    none_stays = Space(("org/base",), 5, (2,), (1, 2, 3), ())
    assert found(EvoPress(), Rule(none_stays, cost)) == [[1, 2, 3]]


def test_evopress_keeps_a_pattern() -> None:
    space = space_of(6, layer_kinds=tuple(KINDS), patterns=PATTERNS)
    runner = Rule(space, cost)
    found(EvoPress(), runner)
    for sets, _, _ in runner.rounds:
        for removed in sets:
            assert [KINDS[i] for i in range(8) if i not in removed] == list(KINDS[:6])


def test_only_so_many_go_on_after_the_first_rung() -> None:
    """Certain or not, and what is no number last."""
    totals = {"t": 80}
    units = [{"t": np.full(8, value)} for value in (3.0, 1.0, np.nan, 2.0)]
    assert Selection(2, {}).hopeless(units, totals) == [True, False, True, False]
    assert Selection(4, {}).hopeless(units, totals) == [False] * 4


def test_few_tokens_decide_most_of_evopress(prepared: Prepare, deep: dict[str, str], tmp_path: Path) -> None:
    session = prepared(deep)
    session.run(EvoPress(initial=6, offspring=4), tmp_path / "j.db", budget=32)
    first_rung = sum(b.ids.numel() for b in session.workplace.measures.searched.rungs[0])
    made = rows(tmp_path / "j.db")
    assert {c.tokens for c in made if c.status == "dropped"} == {first_rung}
    # Six to begin with, of which one, and four at a time, of which two.
    scored = [number for number, c in enumerate(made) if c.status == "scored"]
    assert sum(number < 6 for number in scored) == 1
    assert [sum(at <= number < at + 4 for number in scored) for at in (6, 10, 14)] == [2, 2, 2]


def test_random_search_draws_from_the_whole_space_and_returns_the_best() -> None:
    space = Space(("org/base", "org/a"), 8, (5,), tuple(range(1, 7)), ("linear",))
    runner = Rule(space, cost)
    (best,) = RandomSearch().find(problem(runner, budget=40))
    assert [(len(sets), keep) for sets, _, keep in runner.rounds] == [(32, 1), (8, 1)]
    sets = [removed for some, _, _ in runner.rounds for removed in some]
    assert cost(removed_by(space, best)) == min(map(cost, sets))
    made = [slot for candidate in runner.known.values() for slot in candidate.plan.slots]
    assert {slot.operation.method for slot in made} == {SELECT, "linear"}
    assert {model for slot in made for model, _ in slot.layers} == set(space.models)
    runner = Rule(space, cost)
    RandomSearch().find(problem(runner, budget=40, racing=False))
    assert {keep for _, _, keep in runner.rounds} == {None}


def test_what_still_leads_to_a_size_of_a_pattern() -> None:
    space = space_of(6, layer_kinds=tuple(KINDS), patterns=PATTERNS)
    assert extends(space, {2}, 6)
    assert extends(space, {2, 3}, 6)
    assert not extends(space, {2, 4}, 6)
    assert nearest(space, {2, 4}, 6) in ({1, 2}, {2, 3}, {3, 4}, {4, 5})
    assert extends(space_of(5), {2, 4}, 5)
