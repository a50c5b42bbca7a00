"""The contract of executors.

A package that offers an executor inherits `ExecutorContract` in a test module of its own and supplies one
fixture:

    class TestMyExecutor(ExecutorContract):
        @pytest.fixture(scope="class")
        @classmethod
        def make_pool(cls): return MyPool
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptailor_merge.composing.editing import load_map
from gptailor_merge.config import SearchConfig
from gptailor_merge.objectives.scores import Score
from gptailor_merge.planning.resolve import plan as resolve
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.finalists import MapFitting
from gptailor_merge.scoring.executor import Executor, Outcome
from gptailor_merge.scoring.executor_pools import Pool, PoolFactory, fitter_of
from gptailor_merge.scoring.finalist_fits import FitTask, LocalFitter
from gptailor_merge.scoring.racing import Race
from gptailor_merge.scoring.workplace import Job, Workplace
from gptailor_merge.testing.tiny_models import DEPTH, write_member

WEIGHTS = {"kl": 1.0}


TEXTS = {"stories": "ONCE UPON A TIME", "sums": "1+2=3; 40*2=80?", "unseen": "A CAT SAT "}
"""Name -> characters; the documents of a text are its rotations."""


class ExecutorContract:
    """Tests that an executor keeps what a run relies on."""

    @pytest.fixture(scope="class")
    @classmethod
    def make_pool(cls) -> PoolFactory:
        """The factory that the entry point names."""
        raise NotImplementedError("a contract suite needs the fixture `make_pool`")

    @pytest.fixture(scope="class")
    @classmethod
    def job(cls, tmp_path_factory: pytest.TempPathFactory) -> Job:
        """A search of a tiny family, with a gate and a held-out set."""
        return tiny_job(tmp_path_factory.mktemp("job"))

    @pytest.fixture(scope="class")
    @classmethod
    def workplace(cls, job: Job) -> Workplace:
        """The live parts of this process."""
        return job.open()

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls, make_pool: PoolFactory, job: Job, workplace: Workplace) -> Iterator[Pool]:
        """The pool under test; it is closed at the end."""
        pool = make_pool(pickle.loads(pickle.dumps(job)), workplace)
        yield pool
        pool.close()

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, pool: Pool) -> Executor:
        """Scores plans on the objectives."""
        return pool.executor("objectives")

    @pytest.fixture(scope="class")
    @classmethod
    def plans(cls, job: Job) -> Sequence[Plan]:
        """Plans that share prefixes, a merge among them."""
        return tiny_plans(job)

    def test_outcomes_stand_in_the_order_of_the_plans(
        self, executor: Executor, plans: Sequence[Plan]
    ) -> None:
        forwards, backwards = executor.score(plans), executor.score(plans[::-1])
        assert scores_of(forwards) == scores_of(backwards)[::-1]
        losses = [loss_of(outcome) for outcome in forwards]
        assert all(loss != following for loss, following in pairwise(losses))

    @pytest.mark.parametrize("section", ["objectives", "gates", "held_out"])
    def test_scores_are_those_of_scoring_one_by_one_in_this_process(
        self, section: Any, pool: Pool, workplace: Workplace, plans: Sequence[Plan]
    ) -> None:
        """The journal is the same whoever computed: to the last bit, units included."""
        evaluator = workplace.evaluator(section)
        for plan, outcome in zip(plans, pool.executor(section).score(plans), strict=True):
            (alone,) = evaluator.score([plan])
            assert (outcome.cause, outcome.tokens, outcome.scores) == (None, alone.tokens, alone.scores)
            assert outcome.measured.keys() == alone.measured.keys()
            for key, parts in alone.measured.items():
                np.testing.assert_array_equal(
                    np.concatenate(outcome.measured[key]), np.concatenate(parts), strict=True
                )

    def test_a_failure_is_an_outcome_with_its_cause(self, executor: Executor, plans: Sequence[Plan]) -> None:
        first, broken, last = executor.score([plans[0], foreign_plan(), plans[1]])
        assert scores_of([first, last]) == scores_of(executor.score(plans[:2]))
        assert broken.cause
        assert (broken.scores, broken.tokens, broken.units, broken.estimate) == ({}, 0, None, None)

    def test_no_plans_have_no_outcomes(self, executor: Executor) -> None:
        assert list(executor.score([])) == []
        assert list(executor.score([], Race(1, WEIGHTS))) == []

    def test_the_same_plan_twice_has_the_same_scores(self, executor: Executor, plans: Sequence[Plan]) -> None:
        first, again, different = scores_of(executor.score([plans[0], plans[0], plans[1]]))
        assert first == again != different

    def test_a_race_drops_no_plan_that_could_be_kept(self, executor: Executor, plans: Sequence[Plan]) -> None:
        """Those that finish have their scores on everything; the estimates of the others are no better."""
        whole = executor.score(plans)
        raced = executor.score(plans, Race(1, WEIGHTS, certainty=1.0))
        finished = [number for number, outcome in enumerate(raced) if outcome.estimate is None]
        best = min(loss_of(raced[number]) for number in finished)
        assert best == min(map(loss_of, whole))
        for number, (outcome, on_everything) in enumerate(zip(raced, whole, strict=True)):
            assert outcome.cause is None
            if number in finished:
                assert (outcome.scores, outcome.tokens) == (on_everything.scores, on_everything.tokens)
                assert outcome.units is not None
                added = sum(values.sum() for values in outcome.units.values())
                assert added == pytest.approx(loss_of(outcome), rel=1e-9)
            else:
                assert outcome.units is None
                assert outcome.estimate is not None
                assert outcome.estimate >= best
                assert outcome.tokens < on_everything.tokens

    def test_a_race_compares_with_incumbents(self, executor: Executor, plans: Sequence[Plan]) -> None:
        """No estimate is better than the incumbent that a plan was dropped for."""
        whole = executor.score(plans, Race(len(plans), WEIGHTS))
        assert scores_of(whole) == scores_of(executor.score(plans))
        best = min(whole, key=loss_of)
        assert best.units is not None
        race = Race(1, WEIGHTS, incumbents=(best.units,), certainty=1.0)
        for outcome in executor.score(plans, pickle.loads(pickle.dumps(race))):
            assert outcome.estimate is None or outcome.estimate >= loss_of(best) - 1e-12

    def test_finalists_are_refined_as_in_this_process(
        self, pool: Pool, workplace: Workplace, plans: Sequence[Plan], tmp_path: Path
    ) -> None:
        """Maps are the same to the last bit, and lie where they are asked for."""
        fitting = MapFitting(workplace.measures.texts, everywhere=False)
        refined = []
        for place, fitter in (
            (tmp_path / "here", LocalFitter(workplace)),
            (tmp_path / "there", fitter_of(pool, workplace)),
        ):
            tasks = [FitTask(plan, place / str(at), f"recipe {at}") for at, plan in enumerate(plans)]
            parts = fitter.fit(fitting, tasks, lambda position: None, lambda step: None)
            fits = [fitted for part in parts for fitted in part]
            refined.append([(fitted.plan, fitted.tokens, fitted.cause) for fitted in fits])
            for at, fitted in enumerate(fits):
                edits = [edit for slot in fitted.plan.slots for edit in slot.edits]
                assert all(load_map(edit.file, str(edit.digest)).isfinite().all() for edit in edits)
                assert {Path(edit.file).parent for edit in edits} <= {place / str(at)}
        assert refined[0] == refined[1]
        assert any(plan.repaired for plan, _, _ in refined[0])

    def test_plans_and_outcomes_can_be_pickled(self, executor: Executor, plans: Sequence[Plan]) -> None:
        copies = pickle.loads(pickle.dumps(list(plans)))
        assert copies == list(plans)
        assert [copy.digest for copy in copies] == [original.digest for original in plans]
        outcomes = executor.score(copies, Race(2, WEIGHTS, certainty=1.0))
        for outcome, copy in zip(outcomes, pickle.loads(pickle.dumps(list(outcomes))), strict=True):
            assert (copy.scores, copy.estimate, copy.tokens) == (
                outcome.scores,
                outcome.estimate,
                outcome.tokens,
            )
            assert (copy.units or {}).keys() == (outcome.units or {}).keys()
            assert copy.measured.keys() == outcome.measured.keys()


def tiny_job(directory: Path) -> Job:
    """Writes a family of two random models and two texts, and returns a job that scores plans on them."""
    base, variant = (str(write_member(directory / name, seed)) for seed, name in enumerate(("base", "math")))
    for name, text in TEXTS.items():
        rows = (json.dumps({"text": text[at:] + text[:at]}) + "\n" for at in range(len(text)))
        (directory / f"{name}.jsonl").write_text("".join(rows))
    data = {name: str(directory / f"{name}.jsonl") for name in ("stories", "sums")}
    texts = {"data": data, "tokens": 256, "sequence_length": 16}
    unseen = {"data": {"unseen": str(directory / "unseen.jsonl")}, "tokens": 96, "sequence_length": 16}
    config = SearchConfig.model_validate(
        {
            "family": {"base": base, "variants": {"math": variant}},
            "target": {"layers": DEPTH - 1},
            "objectives": [{"kind": "kl", **texts}],
            "gates": [{"kind": "perplexity", **texts, "at_most": "10 x base"}],
            "held_out": [{"kind": "kl", **unseen}],
            "writes": {"tokens": 0},
            "out_dtype": "float32",
            "batch_tokens": 64,
        }
    )
    return Job.of(config, torch.device("cpu"))


def tiny_plans(job: Job) -> list[Plan]:
    """Returns plans for the family of a tiny job: each removes a layer, and they share prefixes."""
    base, math = job.config["family"]["base"], job.config["family"]["variants"]["math"]
    removals = [_recipe(base, [_select(base, 0, DEPTH)], removed) for removed in (1, 2, 3)]
    mixed = _recipe(base, [_select(base, 0, 3), _select(math, 3, DEPTH)], 1)
    merge = {
        "sources": [
            {"model": base, "layer_range": [2, 3]},
            {"model": math, "layer_range": [2, 3], "parameters": {"weight": 0.5}},
        ],
        "parameters": {"op": "merge", "method": "task_arithmetic"},
    }
    merged = _recipe(base, [_select(base, 0, 2), merge, _select(base, 3, DEPTH)], 1)
    return [resolve(recipe) for recipe in (*removals, mixed, merged)]


def foreign_plan() -> Plan:
    """Returns a plan over a model that no family has, so that it cannot be scored."""
    return resolve(_recipe("no/such-model", [_select("no/such-model", 0, DEPTH)], 1))


def scores_of(outcomes: Sequence[Outcome]) -> list[Any]:
    """Returns the scores of plans that did not fail."""
    assert [outcome.cause for outcome in outcomes] == [None] * len(outcomes)
    return [outcome.scores for outcome in outcomes]


def loss_of(outcome: Outcome) -> float:
    """Returns the loss of a plan that was scored on everything."""
    return sum(w * Score.total(list(outcome.scores[o].values())).mean for o, w in WEIGHTS.items())


def _select(model: str, first: int, stop: int) -> dict[str, Any]:
    return {"sources": [{"model": model, "layer_range": [first, stop]}], "parameters": {"op": "select"}}


def _recipe(base: str, slices: Sequence[dict[str, Any]], removed: int) -> Recipe:
    """Returns the recipe of slices without the slice, or the part of a slice, that holds a layer."""
    parts: list[dict[str, Any]] = []
    for part in slices:
        first, stop = part["sources"][0]["layer_range"]
        if not first <= removed < stop:
            parts.append(part)
            continue
        model = part["sources"][0]["model"]
        parts += [_select(model, a, b) for a, b in ((first, removed), (removed + 1, stop)) if a < b]
    dtypes = {"dtype": "float32", "out_dtype": "float32"}
    return Recipe.from_mapping({"merge_method": "tailor", "base_model": base, **dtypes, "slices": parts})
