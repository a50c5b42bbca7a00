"""Opens a search config for people who measure: its family, its space, and the evaluators of plans.

A session has all that a search works with but the run directory: points become plans, plans become scores
or live models, and whole searches and baselines run in a scratch journal under other settings.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gptailor_merge.api.arguments import AnyPath, ignore, read_config
from gptailor_merge.composing.bank import Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import errors_in
from gptailor_merge.healing.finalists import check_healing, heal_finalists
from gptailor_merge.models.devices import compute_dtype, pick_device
from gptailor_merge.models.family import Family
from gptailor_merge.models.stored_values import differences_told
from gptailor_merge.objectives.scores import Score, Scores, Weights
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.finalists import repair_finalists
from gptailor_merge.repair.refining import FinalistJudge
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.held_out import measure_members
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.executor import Executor, Outcome
from gptailor_merge.scoring.finalist_fits import LocalFitter
from gptailor_merge.scoring.racing import Race
from gptailor_merge.scoring.workplace import BankMode, Workplace, open_workplace
from gptailor_merge.search import driver
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.baselines.protocol import Baseline
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.driver import OnCandidate
from gptailor_merge.search.optimizers.protocol import OptimizerFactory
from gptailor_merge.search.outcomes import loss
from gptailor_merge.search.settings import SearchSettings, settings_for
from gptailor_merge.space.points import Point
from gptailor_merge.space.space import Space
from gptailor_merge.tuning.finalists import tune_finalists


class _SpentError(Exception):
    """The search has scored as many tokens as it may."""


@dataclass(frozen=True)
class Trace:
    """The candidates that a search in a session proposed.

    Attributes:
        candidates: in the order of proposal; repaired and tuned ones come last.
        finished: digests of those that were scored on everything.
        stamps: for each candidate, the seconds from the beginning until its score was known.
    """

    candidates: tuple[Candidate, ...]
    finished: frozenset[str]
    stamps: tuple[float, ...]

    @property
    def tokens(self) -> list[int]:
        """Lists for each candidate the tokens that were scored until its score was known."""
        totals: list[int] = np.cumsum([candidate.tokens for candidate in self.candidates]).tolist()
        return totals

    def affordable(self, tokens: int | None) -> list[Candidate]:
        """Returns the first candidates, as many as that number of tokens pays for; None pays for all."""
        return [
            candidate
            for candidate, spent in zip(self.candidates, self.tokens, strict=True)
            if tokens is None or spent <= tokens
        ]


@dataclass(frozen=True)
class Session:
    """The live parts of a search.

    Attributes:
        config: the search config.
        device: where models run.
        family: the members, by their configs and headers.
        space: what recipes may be; see Space.
        workplace: what is measured, and what composes models.
        settings: those that a run would search with.
        executor: scores plans on the calibration set.
        warm: the baselines that searches start from, where the config names them.
    """

    config: SearchConfig
    device: torch.device
    family: Family
    space: Space
    workplace: Workplace
    settings: SearchSettings
    executor: Executor
    warm: Sequence[Baseline] | None

    @property
    def weights(self) -> Weights:
        """Maps the objectives to their weights in the loss."""
        return self.settings.weights

    @property
    def axes(self) -> tuple[str, ...]:
        """Names the objectives of which a front is sought; empty where the loss is minimised."""
        return self.settings.axes

    @property
    def evaluator(self) -> Evaluator:
        """Scores plans on the calibration set."""
        return self.workplace.evaluator("objectives")

    @property
    def held_out_evaluator(self) -> Evaluator:
        """Scores plans on the held-out set.

        Raises:
            ValueError: the config has no held-out set.
        """
        if not self.workplace.measures.held_out.objectives:
            raise ValueError("the config has no held_out section")
        return self.workplace.evaluator("held_out")

    @property
    def composer(self) -> Composer:
        """Makes live models of plans."""
        return self.workplace.composer

    @property
    def precision(self) -> Precision:
        """The dtypes that merges are calculated, written and run in."""
        out_dtype = str(self.space.out_dtype)
        return Precision.of(self.space.dtype, out_dtype, compute_dtype(self.device, out_dtype))

    @cached_property
    def tokens(self) -> int:
        """Counts the calibration tokens that go through a model to score it once."""
        return self.workplace.measures.searched.tokens

    def decode(self, point: Point, space: Space | None = None) -> Plan:
        """Returns the plan of a point of the session's space, or of another one."""
        return plan_of((space or self.space).decode(point))

    def encode(self, plan: Plan, rng: np.random.RandomState | None = None) -> Point:
        """Returns a point that decodes to a plan.

        Args:
            rng: draws the entries that the plan leaves open; default 1/2 everywhere.
        """
        return self.space.encode(plan, rng)

    def select(self, member: int, removed: set[int]) -> Plan:
        """Returns the plan of one member without some of its layers."""
        return plan_of(self.space.select(member, removed))

    def recipe(self, plan: Plan) -> Recipe:
        """Returns a plan as a recipe."""
        return self.space.recipe(plan)

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> list[Outcome]:
        """Scores plans together on the calibration set and returns their outcomes in order.

        Args:
            race: drops plans that cannot win before they are scored on everything.
        """
        return list(self.executor.score(plans, race))

    def loss(self, scores: Scores) -> float:
        """Returns the number that the search minimises."""
        return loss(scores, self.weights)

    def losses(self, plans: Sequence[Plan]) -> list[float]:
        """Returns the losses of plans on the calibration set, in order."""
        return [self.loss(outcome.scores) for outcome in self.score(plans)]

    def held_out(self, plans: Sequence[Plan]) -> list[Scores]:
        """Returns the scores of plans on the held-out set, in order."""
        return [outcome.scores for outcome in self.held_out_evaluator.score(plans)]

    def members(self) -> dict[str, Scores]:
        """Returns the held-out scores of the whole members by name, the base first."""
        passes = self.held_out_evaluator.passes
        return {name: passes.scores(units) for name, units in measure_members(self.workplace).items()}

    def compose(self, plan: Plan) -> PreTrainedModel:
        """Returns the live model of a plan; it shares its tensors with other models, so do not train it."""
        return self.composer.compose(plan)

    def search(
        self,
        *,
        space: Space | None = None,
        optimizer: str | None = None,
        population: int | None = None,
        make_optimizer: OptimizerFactory | None = None,
        budget: int | None = None,
        seed: int | None = None,
        tokens: int | None = None,
        finalists: bool = False,
        on_candidate: OnCandidate = lambda candidate: None,
    ) -> Trace:
        """Searches with the session's objectives, without gates and given starts, in a scratch journal.

        Args:
            space: another space over the same family.
            optimizer, population, budget, seed: replace those of the config.
            make_optimizer: makes the optimiser, instead of the one that is named.
            tokens: ends the search when that many tokens have been scored.
            finalists: repairs and tunes the best recipes afterwards, as the config says.
        """
        changed = {"optimizer": optimizer, "population": population, "budget": budget, "seed": seed}
        settings = self._settings(**changed)

        def work(journal: Journal, directory: Path, listen: OnCandidate) -> None:
            whole = space or self.space
            if finalists:
                check_healing(self.workplace)
            driver.search(
                whole,
                self.executor,
                journal,
                settings,
                make_optimizer=make_optimizer,
                warm=self.warm,
                hidden=self.workplace.hidden,
                on_candidate=listen,
            )
            if finalists:
                workplace = self.workplace
                gates = workplace.gates(workplace.evaluator("gates")) if self.config.gates else None
                judge, fitter = FinalistJudge(self.executor, gates, self.settings), LocalFitter(workplace)
                repair_finalists(workplace, fitter, judge, journal, directory)
                tune_finalists(workplace, fitter, judge, journal, directory)
                heal_finalists(workplace, judge, journal, directory)

        return self._traced(work, tokens, on_candidate)

    def prune(
        self,
        name: str,
        *,
        member: str | None = None,
        merge: str | None = None,
        budget: int | None = None,
        tokens: int | None = None,
    ) -> Trace:
        """Prunes by a baseline with the session's objectives, in a scratch journal.

        Args:
            member, merge: see `gptailor_merge.baseline`.
            budget: replaces that of the config.
            tokens: ends it when that many tokens have been scored.
        """
        choice, settings = Choice(name, member, merge), self._settings(budget=budget)

        def work(journal: Journal, directory: Path, listen: OnCandidate) -> None:
            driver.prune(
                self.space,
                self.executor,
                journal,
                settings,
                choice.method,
                subject=choice.subject(self.family, self.space),
                hidden=self.workplace.hidden,
                on_candidate=listen,
            )

        return self._traced(work, tokens, lambda candidate: None)

    def _settings(self, **changed: Any) -> SearchSettings:
        return replace(self.settings, **{k: v for k, v in changed.items() if v is not None})

    def _traced(
        self,
        work: Callable[[Journal, Path, OnCandidate], None],
        tokens: int | None,
        on_candidate: OnCandidate,
    ) -> Trace:
        """Runs a search, and stops it when it has scored that many tokens."""
        spent, stamps, begun = 0, list[float](), time.perf_counter()

        def listen(candidate: Candidate) -> None:
            nonlocal spent
            spent += candidate.tokens
            stamps.append(time.perf_counter() - begun)
            on_candidate(candidate)
            if tokens is not None and spent >= tokens:
                raise _SpentError

        # The maps of repaired recipes stay as long as the process: recipes of the trace name them.
        directory = Path(tempfile.mkdtemp(prefix="gptailor-session-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        with Journal(Directory(directory).journal) as journal:
            with suppress(_SpentError):
                work(journal, directory / "repair", listen)
            candidates = list(journal.candidates())[: len(stamps)]
            finished = frozenset(candidate.digest for candidate in journal.finished())
            for refined in (
                *journal.repairs().values(),
                *journal.tunings().values(),
                *journal.healings().values(),
            ):
                candidates.append(refined)
                stamps.append(stamps[-1] + refined.seconds)
        return Trace(tuple(candidates), finished, tuple(stamps))


def open_session(
    config: AnyPath | SearchConfig,
    *,
    device: str = "auto",
    bank: BankMode = "auto",
    on_step: Callable[[str], None] = ignore,
) -> Session:
    """Loads a search config's family and data, and returns the live parts of its search.

        session = open_session("recipes/demo/search.yml", device="cpu")
        base_without_a_layer = session.select(0, {5})
        print(session.losses([base_without_a_layer]))

    Args:
        config: the search config, or its file.
        device: auto, cpu, cuda, cuda:N or mps.
        bank: where the family's weights live; auto keeps them on the device if they fit.
        on_step: called with a sentence on what is being done.

    Raises:
        InputError: the config, the data or the models are wrong.
    """
    whole, file = read_config(config)
    torch_device = pick_device(device)
    with errors_in(file):
        prepared = prepare(whole)
        family, space = prepared.family, prepared.space
        differences_told(family, on_step)
        workplace = open_workplace(whole, family, torch_device, bank=bank, progress=on_step)
        settings = settings_for(workplace, space.sizes)
        executor = workplace.evaluator("objectives")
    return Session(whole, torch_device, family, space, workplace, settings, executor, prepared.warm)


def space_of(config: AnyPath | SearchConfig) -> Space:
    """Returns the search space of a config; reads the family's configs and headers, and no weights.

        print(space_of("recipes/demo/search.yml").sizes)

    Raises:
        ConfigError, FamilyError: a target, operations or models that do not fit together.
    """
    whole, file = read_config(config)
    with errors_in(file):
        return prepare(whole).space


def plan_of(recipe: Plan | Recipe) -> Plan:
    """Returns a plan as it is, and of a recipe its plan."""
    return recipe if isinstance(recipe, Plan) else plan(recipe)


def point_of(space: Space, recipe: Recipe, rng: np.random.RandomState | None = None) -> Point:
    """Returns a point of a space that decodes to a recipe; see Session.encode."""
    return space.encode(plan(recipe), rng)


def recipe_of(candidate: Candidate) -> Recipe:
    """Returns the recipe of a candidate.

    trace = session.search(budget=32)
    print(recipe_of(trace.candidates[-1]).to_yaml())
    """
    return candidate.parsed


def means_of(by_set: Mapping[str, Score]) -> dict[str, float]:
    """Returns an objective's mean on each set, and over all of them as "mean"."""
    return {name: score.mean for name, score in by_set.items()} | {
        "mean": Score.total(list(by_set.values())).mean
    }
