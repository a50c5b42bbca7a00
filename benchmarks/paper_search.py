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

from gptailor_merge import Recipe, Session, Space, plan
from gptailor_merge.api.engine import RUNGS, Evaluator, Outcome, Passes

ETA = 3
MAX_BUDGET = 9.0
"""Hyperband's budget for all sequences; the least budget is 1, for a ninth of them."""
LAMBDAS = (0.0, 1.0)
WARM_LAMBDAS = (0.3, 0.5, 0.6, 0.7, 0.8, 1.0)
FAILED = 1e3


@dataclass(frozen=True)
class Trial:
    """A recipe that was scored on everything.

    Attributes:
        tokens, seconds: what had been spent when its score was known.
    """

    recipe: Recipe
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Encoding:
    """The paper's encoding of a space of one size."""

    space: Space

    @property
    def removed(self) -> int:
        """Counts the layers that go."""
        return self.space.depth - self.space.sizes[0]

    @property
    def variants(self) -> range:
        """Numbers the members that are not the base, from 0."""
        return range(len(self.space.models) - 1)

    def configurations(self, seed: int) -> ConfigurationSpace:
        """Returns SMAC's view of the encoding; an index of removal stands for one of the removable layers."""
        configurations = ConfigurationSpace(seed=seed)
        places = len(self.space.removable)
        first = self.orders()[-1]
        removals = [
            UniformIntegerHyperparameter(_removal(i), 0, places - 1, default_value=first[i])
            for i in range(self.removed)
        ]
        configurations.add(removals)
        for removal, other in combinations(removals, 2):
            configurations.add(
                ForbiddenAndConjunction(
                    ForbiddenEqualsClause(removal, place), ForbiddenEqualsClause(other, place)
                )
                for place in range(places)
            )
        for layer in range(self.space.depth):
            parameters: list[Any] = [
                CategoricalHyperparameter(_choice(layer, variant), [0, 1], default_value=int(variant == 0))
                for variant in self.variants
            ]
            parameters.append(UniformFloatHyperparameter(_lambda(layer), *LAMBDAS, default_value=1.0))
            configurations.add(parameters)
            if layer in self.space.removable:
                place = self.space.removable.index(layer)
                for parameter in parameters:
                    stays = [NotEqualsCondition(parameter, removal, place) for removal in removals]
                    configurations.add(AndConjunction(*stays) if len(stays) > 1 else stays[0])
        return configurations

    def warm_starts(self, space: ConfigurationSpace) -> Iterator[Configuration]:
        """Yields for each order of removal the base, and patterns of variants, equal in all layers."""
        patterns = [p for p in product((0, 1), repeat=len(self.variants)) if any(p)]
        for order in self.orders():
            yield self._uniform(space, order, (0,) * len(self.variants), 1.0)
            for weight, pattern in product(WARM_LAMBDAS, patterns):
                yield self._uniform(space, order, pattern, weight)

    def orders(self) -> list[list[int]]:
        """Lists places of removed layers: upper layers first, from the middle outwards, and by turns."""
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
        """Returns the recipe of a configuration."""
        space = self.space
        gone = {space.removable[chosen[_removal(i)]] for i in range(self.removed)}
        document = {
            "merge_method": "tailor",
            "base_model": space.models[0],
            "slices": [self._slice(chosen, layer) for layer in range(space.depth) if layer not in gone],
            "dtype": space.dtype,
            "out_dtype": space.out_dtype,
        }
        return Recipe.from_mapping(document)

    def _slice(self, chosen: Mapping[str, Any], layer: int) -> dict[str, Any]:
        """Returns the slice of one kept layer."""
        models, layers = self.space.models, {"layer_range": [layer, layer + 1]}
        taken = [models[1 + variant] for variant in self.variants if chosen[_choice(layer, variant)]]
        if len(taken) < 2:
            model = taken[0] if taken else models[0]
            return {"sources": [{"model": model, **layers}], "parameters": {"op": "select"}}
        weight = {"weight": float(chosen[_lambda(layer)])}
        variants = [{"model": model, **layers, "parameters": weight} for model in taken]
        return {
            "sources": [{"model": models[0], **layers}, *variants],
            "parameters": {"op": "merge", "method": "task_arithmetic"},
            "base_model": models[0],
        }

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
            self._evaluators[share] = Evaluator(session.composer, part)

    def score(self, recipe: Recipe, budget: float) -> Outcome:
        """Scores on the least share of sequences that is at least the budget's share of the largest."""
        share = next(share for share in RUNGS if share >= min(1.0, budget / MAX_BUDGET) - 1e-6)
        (outcome,) = self._evaluators[share].score([plan(recipe)])
        self.tokens += outcome.tokens
        return outcome


def search(space: Space, session: Session, seed: int, tokens: int) -> list[Trial]:
    """Searches until that many tokens are scored, and returns what was scored on everything, in order."""
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
                    loss = session.loss(outcome.scores)
                    trials.append(Trial(recipe, loss, budgets.tokens, time.perf_counter() - begun))
            smac.tell(asked, TrialValue(cost=costs))
    return trials


def _removal(number: int) -> str:
    return f"removed_{number}"


def _choice(layer: int, variant: int) -> str:
    return f"layer_{layer}_variant_{variant}"


def _lambda(layer: int) -> str:
    return f"layer_{layer}_lambda"
