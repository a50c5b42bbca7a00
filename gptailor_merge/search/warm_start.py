"""The baselines that a search starts from are run before its first generation."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.hidden_states import HiddenStates
from gptailor_merge.search.baselines.one_shot import OneShot
from gptailor_merge.search.baselines.protocol import Baseline, PruningProblem
from gptailor_merge.search.baselines.registry import STARTING_GENERATIONS
from gptailor_merge.search.baselines.subject import Subject, base_of
from gptailor_merge.search.remembering_runner import RememberingRunner
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.space.space import Space

PROBE_SHARE = 0.25
"""The start is probed where that takes no more than this share of the budget."""


def warm_start(
    space: Space,
    runner: RememberingRunner,
    settings: SearchSettings,
    methods: Sequence[Baseline] | None,
    hidden: HiddenStates | None,
) -> list[Plan]:
    """Runs the baselines and returns their plans, each once.

    Args:
        methods: None runs one-shot removal, where its probes are affordable.
    """
    # The budget of a baseline does not depend on the search's, which may grow when a run is resumed.
    budget = STARTING_GENERATIONS * settings.population
    problem = pruning_problem(space, runner, settings, budget, hidden=hidden)
    if methods is None:
        probes = OneShot().probes(space, problem.base)
        is_affordable = len(probes) <= settings.budget * PROBE_SHARE
        first = runner.ledger.first_known
        if first is not None:  # a resumed run does as it did, also under a larger budget
            is_affordable = first.digest == probes[0].digest
        methods = [OneShot()] if is_affordable else []
    plans = [plan for method in methods for plan in method.find(problem)]
    return list({plan.digest: plan for plan in plans}.values())


def pruning_problem(
    space: Space,
    runner: RememberingRunner,
    settings: SearchSettings,
    budget: int,
    *,
    subject: Subject | None = None,
    hidden: HiddenStates | None = None,
) -> PruningProblem:
    """Returns the problem that a baseline is given under the settings of a search.

    Args:
        subject: the one model to prune; None leaves the choice to the baseline.
    """
    return PruningProblem(
        space=space,
        runner=runner,
        base=base_of(space),
        budget=budget,
        seed=settings.seed,
        weights=settings.weights,
        racing=settings.racing is not False and not settings.axes,
        model=subject,
        hidden=hidden,
    )
