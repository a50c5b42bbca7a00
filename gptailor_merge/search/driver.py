"""The search loop: ask for a generation, score what is new, remember it, tell the optimiser.

Resuming replays: the optimiser is made from its seed and asked again, and candidates that the journal knows
are answered from it. Where one process scores, a resumed search therefore ends where an undisturbed one
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from gptailor_merge.errors import SearchError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.executor import Executor
from gptailor_merge.scoring.hidden_states import HiddenStates
from gptailor_merge.search.baselines.protocol import Baseline
from gptailor_merge.search.baselines.subject import Subject
from gptailor_merge.search.candidates import Candidate, Log, Status
from gptailor_merge.search.first_generation import first_generation
from gptailor_merge.search.front import losses
from gptailor_merge.search.judging import Gate, Judge
from gptailor_merge.search.ledger import Ledger
from gptailor_merge.search.optimizers.protocol import Optimizer, OptimizerFactory, Proposal
from gptailor_merge.search.optimizers.registry import cannot_race, create
from gptailor_merge.search.remembering_runner import RememberingRunner
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.search.warm_start import pruning_problem, warm_start
from gptailor_merge.space.space import Space

FAILED_LOSS = 1e6
"""The loss that the optimiser is told of a candidate that failed or is gated: worse than any real one."""


OnCandidate = Callable[[Candidate], None]


def search(
    space: Space,
    executor: Executor,
    journal: Log,
    settings: SearchSettings,
    *,
    make_optimizer: OptimizerFactory | None = None,
    gate: Gate | None = None,
    start: Sequence[Plan] = (),
    warm: Sequence[Baseline] | None = None,
    hidden: HiddenStates | None = None,
    on_candidate: OnCandidate = lambda candidate: None,
) -> Candidate:
    """Proposes and scores `settings.budget` candidates and returns the best.

    Args:
        make_optimizer: makes the optimiser, instead of the one that the settings name.
        gate: keeps candidates out; probes of other sizes are not judged.
        start: plans that the first generation begins with, no more than it has candidates.
        warm: baselines whose plans come next; None probes the layers where that is affordable.
        hidden: for baselines that look at hidden states.
        on_candidate: called for every candidate in order, also for those that the journal knew.

    Raises:
        SearchError: too many failures in a row, nothing scored, or a journal of another search.
        ConfigError: the optimiser cannot search like this.
    """
    runner = _runner(space, executor, journal, settings, gate, on_candidate)
    ledger = runner.ledger
    make = partial(create, settings.optimizer) if make_optimizer is None else make_optimizer
    optimizer = make(
        space,
        budget=settings.budget,
        population=settings.population,
        seed=settings.seed,
        axes=settings.axes,
    )
    if settings.racing and optimizer.keeps is None:
        raise cannot_race(settings.optimizer)
    keep = None if settings.racing is False else optimizer.keeps
    warm_plans = warm_start(space, runner, settings, warm, hidden)
    rng = np.random.RandomState(settings.seed)
    optimizer.suggest(first_generation(space, warm_plans, settings.population, rng, start))
    while ledger.count < settings.budget:
        proposals = _ask(optimizer, settings, min(settings.population, settings.budget - ledger.count))
        plans = [space.decode(proposal.point) for proposal in proposals]
        for proposal, candidate in zip(proposals, runner.score(plans, keep=keep), strict=True):
            optimizer.tell(proposal, _losses(candidate, settings.axes))
    return _best(journal)


def prune(
    space: Space,
    executor: Executor,
    journal: Log,
    settings: SearchSettings,
    method: Baseline,
    *,
    subject: Subject | None = None,
    hidden: HiddenStates | None = None,
    gate: Gate | None = None,
    on_candidate: OnCandidate = lambda candidate: None,
) -> Candidate:
    """Runs a baseline instead of a search, scores what it comes to, and returns the best candidate.

    Args:
        subject: the one model to prune; see PruningProblem.

    Raises:
        SearchError, ConfigError: see Baseline.find and `search`.
    """
    runner = _runner(space, executor, journal, settings, gate, on_candidate)
    plans = method.find(
        pruning_problem(space, runner, settings, settings.budget, subject=subject, hidden=hidden)
    )
    unscored = [plan for plan in plans if not _is_scored(runner.original(plan.digest))]
    if unscored:
        runner.score(unscored)
    return _best(journal)


def _runner(
    space: Space,
    executor: Executor,
    journal: Log,
    settings: SearchSettings,
    gate: Gate | None,
    on_candidate: OnCandidate,
) -> RememberingRunner:
    ledger = Ledger(journal, settings.fingerprint, settings.axes)
    judge = Judge(executor, gate, space.sizes, settings.weights, settings.axes)
    return RememberingRunner(space, ledger, judge, settings, on_candidate)


def _ask(optimizer: Optimizer, settings: SearchSettings, count: int) -> Sequence[Proposal]:
    proposals = optimizer.ask(count)
    if not 1 <= len(proposals) <= count:
        raise SearchError(
            f"the optimizer {settings.optimizer} was asked for {count} candidates and gave {len(proposals)}"
        )
    return proposals


def _losses(candidate: Candidate, axes: Sequence[str]) -> Sequence[float]:
    """Returns what the optimiser is told of a candidate."""
    if candidate.loss is None:
        return [FAILED_LOSS] * max(1, len(axes))
    return losses(candidate.scores, axes) if axes else [candidate.loss]


def _is_scored(candidate: Candidate | None) -> bool:
    return candidate is not None and candidate.status == Status.SCORED


def _best(journal: Log) -> Candidate:
    best = journal.best()
    if best is None:
        counts, cause = journal.counts(), list(journal.candidates())[-1].cause
        raise SearchError(
            f"none of {counts.candidates} candidates could be scored, {counts.gated} were kept out by gates; "
            f"the last: {cause}"
        )
    return best
