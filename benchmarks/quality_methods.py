"""Runs the methods that quality.py compares: our search, every baseline, the paper's, and ablations."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from gptailor_merge import Plan, Recipe, Session, Space, Status, Trace, plan, recipe_of
from gptailor_merge.api.engine import MERGES, Point

OURS, NOT_TUNED, PLAIN, PAPER = "default search", "not tuned", "not repaired", "paper"
RIVALS = {"one merge + ShortGPT": "shortgpt", "one merge + SLEB": "sleb", "one merge + EvoPress": "evopress"}
"""Methods that prune the best merge of the family -> the baseline that prunes it."""
EQUAL_SECONDS = " (equal seconds)"
"""The ending of the name of a method that was stopped by our search's seconds, not by its tokens."""
BASELINES = ("one_shot", "shortgpt", "uidl", "laco", "sleb", "evopress", "random")
ABLATION = ("remove (base only)", "remove + select", "remove + merge")
ENDLESS = ("evopress", "random")
"""Baselines that go on as long as they are let."""
ENDLESS_BUDGET = 4
"""A method that is stopped by its tokens may propose this many times our candidates, duplicates included."""
ARMS = (OURS, *RIVALS, *BASELINES, "best member", PAPER, *ABLATION)
"""Every method, in the order in which they are run."""


@dataclass(frozen=True)
class Step:
    """The best recipe so far, when a number of tokens and seconds had been spent."""

    recipe: Recipe
    loss: float
    tokens: int
    seconds: float

    @property
    def plan(self) -> Plan:
        return plan(self.recipe)


@dataclass(frozen=True)
class Spent:
    tokens: int
    seconds: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.tokens + other.tokens, self.seconds + other.seconds)


@dataclass(frozen=True)
class Result:
    """What a method came to.

    Attributes:
        steps: its improvements.
        repaired, tuned: whether the method has repaired and tuned by itself, so that nothing is added.
    """

    steps: Sequence[Step]
    spent: Spent
    repaired: bool = False
    tuned: bool = False


class MergeOnly(Space):
    """A space in which every kept layer is merged."""

    def decode(self, point: Point) -> Any:
        members = len(self.models)
        kind = (members + point["kind"] * (self.kinds - members)) / self.kinds
        return super().decode({**point, "kind": kind})

    def encode(self, start: Any, rng: np.random.RandomState | None = None, *, nearest: bool = False) -> Point:
        """Returns a random point without the same layers: what a search starts from selects."""
        kept = set((start if isinstance(start, Plan) else plan(start)).kept)
        point = self.random(rng or np.random.RandomState(0))
        removal = np.array([float(layer not in kept) for layer in range(self.depth)])
        return {**point, "removal": removal}


class Methods:
    """The methods of one size and seed, on the same session.

    Args:
        seed: of the paper's search.
        tiny: the merge rivals and the best member have one model to choose from.

    Attributes:
        limit: what our search has spent; it is run first.
        searching: what it had spent before it repaired anything.
    """

    def __init__(self, session: Session, seed: int, *, tiny: bool = False) -> None:
        self.session, self.config, self.seed, self.tiny = session, session.config, seed, tiny
        self.limit = self.searching = Spent(0, 0.0)

    def results(self, name: str) -> Iterator[tuple[str, Result]]:
        """Runs one method; yields what it came to, twice where it is stopped by tokens and by seconds."""
        if name == OURS:
            yield from self.ours()
        elif name == PAPER:
            yield name, self.as_in_the_paper()
        elif name in ABLATION:
            budget = ENDLESS_BUDGET * self.config.search.budget
            trace = self.session.search(
                space=self.smaller_space(name), budget=budget, tokens=self.limit.tokens
            )
            yield name, traced(trace, tokens=self.limit.tokens)
        elif name == "best member":
            yield name, self.best_member
        elif RIVALS.get(name) == "shortgpt":
            yield name, self.best_merge[1]
        elif name in RIVALS:
            merge, chosen = self.best_merge
            for ending, result in self.baseline(RIVALS[name], merge=merge):
                yield f"{name}{ending}", replace(result, spent=chosen.spent + result.spent)
        else:
            for ending, result in self.baseline(name):
                yield f"{name}{ending}", result

    def ours(self) -> Iterator[tuple[str, Result]]:
        """Yields our search, as it was before it tuned, and as it was before it repaired anything."""
        trace = self.session.search(finalists=True)
        repairs, tunes = self.config.repair.finalists > 0, self.config.tuned > 0
        whole, plain = traced(trace), traced(trace, without=(Status.TUNED, Status.REPAIRED))
        self.limit, self.searching = whole.spent, plain.spent
        yield OURS, replace(whole, repaired=repairs, tuned=tunes)
        if tunes:
            yield NOT_TUNED, replace(traced(trace, without=(Status.TUNED,)), repaired=repairs)
        if repairs or tunes:
            yield PLAIN, plain

    def baseline(self, name: str, **subject: Any) -> Iterator[tuple[str, Result]]:
        """Prunes by a baseline; yields ending -> result, two of them where it does not end by itself."""
        if name not in ENDLESS:
            yield "", traced(self.session.prune(name, **subject))
            return
        # The rate of our search, before it repairs, tells how many tokens its seconds are worth.
        rate = self.searching.tokens / max(self.searching.seconds, 1e-9)
        tokens = round(max(self.limit.tokens, 1.25 * rate * self.limit.seconds))
        budget = round(ENDLESS_BUDGET * self.config.search.budget * tokens / self.limit.tokens)
        trace = self.session.prune(name, budget=budget, tokens=tokens, **subject)
        yield "", traced(trace, tokens=self.limit.tokens)
        yield EQUAL_SECONDS, traced(trace, seconds=self.limit.seconds)

    @cached_property
    def best_merge(self) -> tuple[str, Result]:
        """The merge that is best on the calibration set, pruned by ShortGPT; all merges are paid for."""
        return self._best_of("merge", list(MERGES))

    @cached_property
    def best_member(self) -> Result:
        """The variant that is best on the calibration set, pruned by ShortGPT; all variants are paid for."""
        return self._best_of("member", list(self.config.family.variants))[1]

    def _best_of(self, kind: str, names: Sequence[str]) -> tuple[str, Result]:
        results = {}
        for name in names[:1] if self.tiny else names:
            subject: dict[str, Any] = {kind: name}
            results[name] = traced(self.session.prune("shortgpt", **subject))
        best = min(results, key=lambda name: results[name].steps[-1].loss)
        spent = Spent(0, 0.0)
        for result in results.values():
            spent += result.spent
        last = replace(results[best].steps[-1], tokens=spent.tokens, seconds=spent.seconds)
        return best, Result([last], spent)

    def as_in_the_paper(self) -> Result:
        from paper_search import search as search_as_in_the_paper

        begun = time.perf_counter()
        limit = self.limit.tokens
        trials = search_as_in_the_paper(self.session.space, self.session, self.seed, limit)
        steps = improvements(Step(t.recipe, t.loss, t.tokens, t.seconds) for t in trials)
        return Result(steps, Spent(limit, time.perf_counter() - begun))

    def smaller_space(self, name: str) -> Space:
        """Returns the space of a name of ABLATION."""
        space = self.session.space
        if name == "remove + merge":
            return MergeOnly(**{field.name: getattr(space, field.name) for field in fields(space)})
        return replace(space, models=space.models[:1] if "base only" in name else space.models, methods=())


def traced(
    trace: Trace,
    *,
    tokens: int | None = None,
    seconds: float | None = None,
    without: Sequence[Status] = (),
) -> Result:
    """Returns the improvements in a search up to a number of tokens or seconds, and what was spent.

    Args:
        without: what came of repairs or tuning, and what that took, is left out.
    """
    spent = [
        (candidate, Spent(total, stamp))
        for candidate, total, stamp in zip(trace.candidates, trace.tokens, trace.stamps, strict=True)
        if candidate.status not in without
    ]
    within = [
        (candidate, cost)
        for candidate, cost in spent
        if (tokens is None or cost.tokens <= tokens) and (seconds is None or cost.seconds <= seconds)
    ]
    for affordable in (within, spent):  # a limit below the first generation allows that one
        steps = [
            Step(recipe_of(candidate), candidate.loss, cost.tokens, cost.seconds)
            for candidate, cost in affordable
            if candidate.digest in trace.finished and candidate.loss is not None
        ]
        if steps:
            return Result(improvements(steps), affordable[-1][1])
    raise ValueError("the search has scored no candidate on everything")


def improvements(steps: Iterable[Step]) -> list[Step]:
    """Returns the steps that are better than all before."""
    better: list[Step] = []
    for step in steps:
        if not better or step.loss < better[-1].loss:
            better.append(step)
    return better
