"""The contract of baselines.

A package that offers a baseline inherits `BaselineContract` in a test module of its own and supplies one
fixture, the name by which `gptailor baseline` asks for it:

    class TestMyBaseline(BaselineContract):
        @pytest.fixture
        def name(self): return "my_baseline"

The package must be installed, since the name is looked up among the entry points. No model is loaded: plans
are scored, and hidden states measured, by rules.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptailor_merge.errors import SearchError
from gptailor_merge.objectives.scores import Score
from gptailor_merge.planning.resolve import plan, problems
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.journal import Journal
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.hidden_states import DISTANCE, INFLUENCE, SIMILARITY, HiddenStates, block_name
from gptailor_merge.scoring.racing import Race
from gptailor_merge.search.baselines.layer_sets import removed_by
from gptailor_merge.search.baselines.protocol import Baseline
from gptailor_merge.search.baselines.registry import baseline
from gptailor_merge.search.baselines.subject import Subject, base_of
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.driver import prune
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.space.space import Space
from gptailor_merge.testing.fresh_interpreter import fresh_digests

SPACE = Space(("org/base", "org/a"), 8, (5,), tuple(range(1, 7)), ("linear",), "float32")
RANGE = replace(SPACE, sizes=(4, 5, 6))
KINDS = tuple("dsdsdsds")
PATTERNED = replace(SPACE, sizes=(6,), layer_kinds=KINDS, patterns={6: KINDS[:6]})
"""A space whose architecture computes dense and sparse layers in turn, by their index."""


SETTINGS = SearchSettings(
    optimizer="default", budget=40, population=4, seed=0, weights={"rule": 1.0}, fingerprint="rule"
)


class RuleExecutor:
    """Scores plans by a rule: a number between 0 and 1 that follows from the plan's digest.

    Attributes:
        scored: digests in the order in which they were scored.
        calls: calls to `score` so far.
        last_call: the call that is interrupted; None interrupts none.
    """

    def __init__(self, *, fails: bool = False) -> None:
        self.scored: list[str] = []
        self.calls = 0
        self.last_call: int | None = None
        self._fails = fails

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> list[Outcome]:
        """Returns the outcomes; a race drops all but the best `keep`, incumbents included, half-way."""
        if self.calls == self.last_call:
            raise KeyboardInterrupt
        self.calls += 1
        self.scored += [plan.digest for plan in plans]
        if self._fails:
            return [Outcome({}, "RuntimeError: no plan can be scored", 0.0, 0) for _ in plans]
        losses = [rule(plan.digest) for plan in plans]
        limit = float("inf")
        if race is not None:
            incumbents = [float(units["set"].sum()) for units in race.incumbents]
            rivals = sorted([*losses, *incumbents])
            limit = rivals[min(race.keep, len(rivals)) - 1]
        return [self._outcome(loss, limit) for loss in losses]

    def _outcome(self, loss: float, limit: float) -> Outcome:
        scores = {"rule": {"set": Score(loss, 100)}}
        if loss <= limit:
            return Outcome(scores, None, 0.0, 100, units={"set": np.full(100, loss / 100)})
        return Outcome(scores, None, 0.0, 50, estimate=loss)


class RuleStates(HiddenStates):
    """Measures hidden states by a rule.

    Attributes:
        measured: measurements so far.
    """

    def __init__(self) -> None:
        self.measured = 0

    def block_influence(self, plan: Plan) -> Outcome:
        return self._outcome(INFLUENCE, [str(layer) for layer in range(len(plan.slots))])

    def angular_distances(self, plan: Plan, lengths: Collection[int]) -> Outcome:
        depth = len(plan.slots)
        blocks = [(at, at + n) for n in sorted(lengths) for at in range(depth - n + 1)]
        return self._outcome(DISTANCE, [block_name(block) for block in blocks])

    def similarity(self, plan: Plan, reference: Plan) -> Outcome:
        self.measured += 1
        return Outcome({SIMILARITY: {"last layer": Score(rule(plan.digest), 1)}}, None, 0.0, 10)

    def _outcome(self, name: str, keys: Sequence[str]) -> Outcome:
        self.measured += 1
        return Outcome({name: {key: Score(rule(key), 1) for key in keys}}, None, 0.0, 10)


def rule(text: str) -> float:
    """Returns a number between 0 and 1 that follows from a text."""
    return zlib.crc32(text.encode()) / 2**32


class BaselineContract:
    """Tests that a baseline keeps what a run relies on."""

    @pytest.fixture
    def name(self) -> str:
        """The name that users give."""
        raise NotImplementedError("a contract suite needs the fixture `name`")

    @pytest.fixture
    def method(self, name: str) -> Baseline:
        """The baseline of the name."""
        return baseline(name)

    def test_the_size_is_right_and_protected_layers_stay(self, method: Baseline, tmp_path: Path) -> None:
        """Every candidate is a sound recipe, and the best is of the size that is sought."""
        best = run(method, tmp_path / "j.db")
        assert len(best.plan.slots) == 5
        for candidate in candidates_in(tmp_path / "j.db"):
            assert problems(candidate.parsed) == []
            assert plan(candidate.parsed).digest == candidate.digest
            assert removed_by(SPACE, candidate.plan) <= set(SPACE.removable)

    def test_every_size_of_a_range_gets_a_recipe(self, method: Baseline, tmp_path: Path) -> None:
        run(method, tmp_path / "j.db", RANGE)
        with Journal(tmp_path / "j.db") as journal:
            assert {len(candidate.plan.slots) for candidate in journal.finished()} >= {4, 5, 6}

    def test_a_fixed_pattern_is_kept_or_it_says_that_it_cannot(
        self, method: Baseline, tmp_path: Path
    ) -> None:
        """Layers of the pruned model must have the kinds that the architecture computes at their places."""
        try:
            run(method, tmp_path / "j.db", PATTERNED)
        except SearchError:
            return
        with Journal(tmp_path / "j.db") as journal:
            for candidate in journal.finished():
                assert [KINDS[layer] for layer in candidate.plan.kept] == list(KINDS[:6])

    def test_it_takes_no_more_candidates_than_it_says(self, method: Baseline, tmp_path: Path) -> None:
        """All that is scored or measured is a candidate, so that it can be resumed and is paid for."""
        executor, states = RuleExecutor(), RuleStates()
        run(method, tmp_path / "j.db", executor=executor, states=states)
        remembered = candidates_in(tmp_path / "j.db")
        assert len(remembered) <= method.candidates(SPACE, SETTINGS.budget)
        assert sum(candidate.tokens > 0 for candidate in remembered) == len(executor.scored) + states.measured

    def test_the_same_seed_does_the_same(self, method: Baseline, tmp_path: Path) -> None:
        for file in ("first.db", "second.db"):
            run(method, tmp_path / file)
        assert candidates_in(tmp_path / "first.db") == candidates_in(tmp_path / "second.db")

    @pytest.fixture
    def in_one_interpreter(self, name: str) -> tuple[str, ...]:
        """The names that may share a fresh interpreter, this one among them, to save time."""
        return (name,)

    def test_a_fresh_interpreter_does_the_same(self, name: str, in_one_interpreter: tuple[str, ...]) -> None:
        """A resumed run relies on it; a set of texts, for one, has another order there."""
        fresh = fresh_digests(f"{__name__}:proposals", in_one_interpreter)
        assert fresh[name] == proposals(name)

    def test_interrupted_and_resumed_it_ends_as_undisturbed(self, method: Baseline, tmp_path: Path) -> None:
        """The interruptions come before its first, a middle and its last call to score."""
        executor = RuleExecutor()
        run(method, tmp_path / "undisturbed.db", executor=executor)
        undisturbed = candidates_in(tmp_path / "undisturbed.db")
        for survived in {0, executor.calls // 2, executor.calls - 1}:
            file = tmp_path / f"{survived}.db"
            interrupted = RuleExecutor()
            interrupted.last_call = survived
            with pytest.raises(KeyboardInterrupt):
                run(method, file, executor=interrupted)
            assert candidates_in(file) != undisturbed
            run(method, file)
            assert candidates_in(file) == undisturbed

    def test_it_prunes_the_model_that_it_is_given(self, method: Baseline, tmp_path: Path) -> None:
        member = replace(base_of(SPACE), name="a", sources=("org/a",))
        best = run(method, tmp_path / "j.db", subject=member)
        assert {model for slot in best.plan.slots for model, _ in slot.layers} == {"org/a"}

    def test_a_search_can_start_from_it_if_it_says_so(self, method: Baseline, tmp_path: Path) -> None:
        best = run(method, tmp_path / "j.db")
        if method.in_space:
            assert SPACE.decode(SPACE.encode(best.plan)).digest == best.digest

    def test_where_nothing_can_be_scored_it_stops(self, method: Baseline, tmp_path: Path) -> None:
        with pytest.raises(SearchError):
            run(method, tmp_path / "j.db", executor=RuleExecutor(fails=True))


def run(
    method: Baseline,
    file: Path,
    space: Space = SPACE,
    *,
    executor: RuleExecutor | None = None,
    states: RuleStates | None = None,
    subject: Subject | None = None,
) -> Candidate:
    """Runs a baseline by the rules, and returns the best candidate.

    Args:
        file: of the journal.
    """
    with Journal(file) as journal:
        return prune(
            space,
            executor or RuleExecutor(),
            journal,
            SETTINGS,
            method,
            subject=subject,
            hidden=states or RuleStates(),
        )


def candidates_in(file: Path) -> list[Candidate]:
    """Returns all of a journal but the seconds."""
    with Journal(file) as journal:
        return [replace(candidate, seconds=0.0) for candidate in journal.candidates()]


def proposals(name: str) -> list[str]:
    """Returns the digests of all candidates of a baseline, in order."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "journal"
        run(baseline(name), file)
        return [candidate.digest for candidate in candidates_in(file)]
