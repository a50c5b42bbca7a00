"""The baselines that a search starts from are run before its first generation."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.hidden_states import HiddenStates
from gptailor_merge.search.baselines.best_merge import BestMerge
from gptailor_merge.search.baselines.influence import ShortGPT
from gptailor_merge.search.baselines.lazy_greedy import LazyGreedy
from gptailor_merge.search.baselines.protocol import Baseline, PruningProblem
from gptailor_merge.search.baselines.registry import STARTING_GENERATIONS
from gptailor_merge.search.baselines.subject import Subject, base_of
from gptailor_merge.search.ledger import Ledger
from gptailor_merge.search.remembering_runner import RememberingRunner
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.space.space import Space

PROBE_SHARE = 0.6
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
        methods: None merges the family and prunes the best merge: by lazy greedy removal where its probes are
            affordable, and else by block influence.
    """
    # The budget of a baseline does not depend on the search's, which may grow when a run is resumed.
    budget = STARTING_GENERATIONS * settings.population
    problem = pruning_problem(space, runner, settings, budget, hidden=hidden)
    if methods is None:
        methods = _default(space, runner.ledger, settings, budget, hidden)
    plans = [plan for method in methods for plan in method.find(problem)]
    return list({plan.digest: plan for plan in plans}.values())


def _default(
    space: Space, ledger: Ledger, settings: SearchSettings, budget: int, hidden: HiddenStates | None
) -> Sequence[Baseline]:
    """Returns the best start that is affordable; a resumed run does as it did, also under a larger budget."""
    affordable = settings.budget * PROBE_SHARE
    starts = [BestMerge(LazyGreedy()), *([BestMerge(ShortGPT())] if hidden is not None else [])]
    first, after_models = ledger.known(0), ledger.known(starts[0].models_scored(space))
    if after_models is not None and len(after_models.plan.slots) == space.depth - 1:
        return [starts[0]]
    if after_models is not None and len(after_models.plan.slots) == space.depth:
        return [starts[-1]]
    if first is not None and len(first.plan.slots) < space.depth:
        return []
    return [start for start in starts if start.candidates(space, budget) <= affordable][:1]


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
