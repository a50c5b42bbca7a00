"""GPTailor's own search, as a reference: SMAC3 with Hyperband and ParEGO over its encoding.

What is the paper's (arXiv 2506.20480, and the code that its authors published): the encoding (the indices
of the removed layers, all different; for each kept layer one binary choice per variant and one λ; no
variant is the base's layer, one is selected, several are merged by task arithmetic), its warm starts
(three orders of removal, each with the base and with seven patterns of variants at six λ), one objective
per task, Hyperband with η = 3, in which a candidate that gets a larger budget is scored anew. What is ours:
a task is a domain's KL divergence, its budget a share of the domain's sequences, and removal is open to the
same layers as in our search. The published space also has an output scale per layer, which its code never
applies. SMAC3 and ConfigSpace are dependencies of this benchmark only: pip install smac
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from ConfigSpace import Configuration, ConfigurationSpace
from ConfigSpace.conditions import AndConjunction, NotEqualsCondition
from ConfigSpace.forbidden import ForbiddenAndConjunction, ForbiddenEqualsClause
from ConfigSpace.hyperparameters import (
    CategoricalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from smac import HyperparameterOptimizationFacade, Scenario
from smac.intensifier.hyperband import Hyperband
from smac.multi_objective.parego import ParEGO
from smac.runhistory import TrialValue

from gptailor_merge.calibration.batches import RUNGS
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Operation, Slot
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.session import Session
from gptailor_merge.scoring.evaluator import Evaluator, Outcome
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.search.baselines.subject import base_of
from gptailor_merge.search.outcomes import loss
from gptailor_merge.space import slots
from gptailor_merge.space.space import Space

ETA = 3
MAX_BUDGET = 9.0
"""Of Hyperband, for all sequences; the least is 1, for a ninth of them."""
LAMBDAS = (0.0, 1.0)
WARM_LAMBDAS = (0.3, 0.5, 0.6, 0.7, 0.8, 1.0)
FAILED = 1e3


@dataclass(frozen=True)
class Trial:
    """A recipe that was scored on everything.

    Attributes:
        tokens, seconds: spent when its score was known.
    """

    recipe: Recipe
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Encoding:
    """The paper's, over a space of one size."""

    space: Space

    @property
    def removed(self) -> int:
        """How many layers go."""
        return self.space.depth - self.space.sizes[0]

    @property
    def variants(self) -> range:
        """Numbers of the members that are not the base, from 0."""
        return range(len(self.space.models) - 1)

    def configurations(self, seed: int) -> ConfigurationSpace:
        """SMAC's view of it. An index of removal stands for one of the removable layers."""
        made = ConfigurationSpace(seed=seed)
        places = len(self.space.removable)
        first = self.orders()[-1]
        removals = [
            UniformIntegerHyperparameter(_removal(i), 0, places - 1, default_value=first[i])
            for i in range(self.removed)
        ]
        made.add(removals)
        for one, other in combinations(removals, 2):
            made.add(
                ForbiddenAndConjunction(
                    ForbiddenEqualsClause(one, place), ForbiddenEqualsClause(other, place)
                )
                for place in range(places)
            )
        for layer in range(self.space.depth):
            own: list[Any] = [
                CategoricalHyperparameter(_choice(layer, variant), [0, 1], default_value=int(variant == 0))
                for variant in self.variants
            ]
            own.append(UniformFloatHyperparameter(_lambda(layer), *LAMBDAS, default_value=1.0))
            made.add(own)
            if layer in self.space.removable:
                place = self.space.removable.index(layer)
                for parameter in own:
                    stays = [NotEqualsCondition(parameter, removal, place) for removal in removals]
                    made.add(AndConjunction(*stays) if len(stays) > 1 else stays[0])
        return made

    def warm_starts(self, space: ConfigurationSpace) -> Iterator[Configuration]:
        """The base, and patterns of variants that are the same in all layers, for each order of removal."""
        patterns = [p for p in product((0, 1), repeat=len(self.variants)) if any(p)]
        for order in self.orders():
            yield self._uniform(space, order, (0,) * len(self.variants), 1.0)
            for weight, pattern in product(WARM_LAMBDAS, patterns):
                yield self._uniform(space, order, pattern, weight)

    def orders(self) -> list[list[int]]:
        """Places of removed layers: upper layers first, from the middle outwards, and by turns."""
        rng = random.Random(42)
        count = len(self.space.removable)
        middle = count // 2
        upper, lower = list(range(middle, count)), list(range(middle))
        near = [place for place in range(middle - 3, middle + 4) if 0 <= place < count]
        far = [place for place in range(count) if place not in near]
        turns = [rng.sample(upper, len(upper)), rng.sample(lower, len(lower))]
        alternating = [side[i] for i in range(count) for side in turns if i < len(side)]
        orders = (
            rng.sample(upper, len(upper)) + rng.sample(lower, len(lower)),
            rng.sample(near, len(near)) + rng.sample(far, len(far)),
            alternating,
        )
        return [order[: self.removed] for order in orders]

    def decode(self, chosen: Mapping[str, Any]) -> Recipe:
        """The recipe of a configuration."""
        gone = {self.space.removable[chosen[_removal(i)]] for i in range(self.removed)}
        kept = [layer for layer in range(self.space.depth) if layer not in gone]
        return self.space.recipe(base_of(self.space).plan([self._slot(chosen, layer) for layer in kept]))

    def _slot(self, chosen: Mapping[str, Any], layer: int) -> Slot:
        models = self.space.models
        taken = [models[1 + variant] for variant in self.variants if chosen[_choice(layer, variant)]]
        if len(taken) < 2:
            return slots.select(taken[0] if taken else models[0], layer)
        weight = (("weight", float(chosen[_lambda(layer)])),)
        operation = Operation("task_arithmetic", ((), *(weight for _ in taken)), base=0)
        return Slot(tuple((model, layer) for model in (models[0], *taken)), operation)

    def _uniform(
        self, space: ConfigurationSpace, order: Sequence[int], pattern: Sequence[int], weight: float
    ) -> Configuration:
        values: dict[str, Any] = {_removal(i): place for i, place in enumerate(order)}
        gone = {self.space.removable[place] for place in order}
        for layer in range(self.space.depth):
            if layer not in gone:
                values |= {_choice(layer, variant): taken for variant, taken in enumerate(pattern)}
                values[_lambda(layer)] = weight
        return Configuration(space, values)


class Budgets:
    """Scores a recipe on a share of the sequences, and counts the tokens."""

    def __init__(self, session: Session) -> None:
        whole = session.evaluator.passes
        self.tokens = 0
        self._evaluators = {}
        for count, share in enumerate(RUNGS, start=1):
            part = Passes(whole.objectives, whole.rungs[:count], RUNGS[:count])
            self._evaluators[share] = Evaluator(session.evaluator.composer, part)

    def score(self, recipe: Recipe, budget: float) -> Outcome:
        """On the least share of the sequences that is no less than a budget's of the largest."""
        share = next(share for share in RUNGS if share >= min(1.0, budget / MAX_BUDGET) - 1e-6)
        (outcome,) = self._evaluators[share].score([plan(recipe)])
        self.tokens += outcome.tokens
        return outcome


def search(space: Space, session: Session, seed: int, tokens: int) -> list[Trial]:
    """Search until so many tokens have been scored; what was scored on everything, in order."""
    logging.getLogger("smac").setLevel(logging.ERROR)
    encoding, budgets = Encoding(space), Budgets(session)
    configurations = encoding.configurations(seed)
    starts = list(encoding.warm_starts(configurations))
    names = [s.name for s in session.evaluator.passes.objectives[0].sets]
    trials: list[Trial] = []
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        scenario = Scenario(
            configurations,
            output_directory=Path(directory),
            deterministic=True,
            n_trials=100_000,
            objectives=names,
            min_budget=1.0,
            max_budget=MAX_BUDGET,
            seed=seed,
        )
        smac = HyperparameterOptimizationFacade(
            scenario,
            lambda config, seed, budget: 0.0,  # trials are asked for and told
            initial_design=HyperparameterOptimizationFacade.get_initial_design(
                scenario, n_configs=0, additional_configs=starts
            ),
            intensifier=Hyperband(scenario, eta=ETA, incumbent_selection="highest_budget", seed=seed),
            multi_objective_algorithm=ParEGO(scenario),
            logging_level=False,
            overwrite=True,
        )
        while budgets.tokens < tokens:
            asked = smac.ask()
            recipe = encoding.decode(dict(asked.config))
            outcome = budgets.score(recipe, asked.budget)
            costs = [FAILED] * len(names)
            if outcome.cause is None:
                (by_set,) = outcome.scores.values()
                costs = [by_set[name].mean for name in names]
                if asked.budget == MAX_BUDGET and budgets.tokens <= tokens:
                    found = loss(outcome.scores, session.settings.weights)
                    trials.append(Trial(recipe, found, budgets.tokens, time.perf_counter() - begun))
            smac.tell(asked, TrialValue(cost=costs))
    return trials


def _removal(number: int) -> str:
    return f"removed_{number}"


def _choice(layer: int, variant: int) -> str:
    return f"layer_{layer}_variant_{variant}"


def _lambda(layer: int) -> str:
    return f"layer_{layer}_lambda"


def best(trials: Sequence[Trial]) -> Trial:
    """The one with the lowest loss; the first of several."""
    return trials[int(np.argmin([trial.loss for trial in trials]))]
