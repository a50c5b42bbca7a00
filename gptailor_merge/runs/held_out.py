"""The members, the chosen recipes and those of the stages of a run are scored on the held-out set."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gptailor_merge.errors import ScoringError
from gptailor_merge.models.loading import load_model
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.repair.finalists import has_files
from gptailor_merge.runs.journal import Journal
from gptailor_merge.scoring.executor import Executor, Outcome
from gptailor_merge.scoring.gap import gap
from gptailor_merge.scoring.passes import Measured
from gptailor_merge.scoring.uncertainty import with_errors
from gptailor_merge.scoring.workplace import Workplace
from gptailor_merge.search.candidates import Candidate


def score_held_out(
    workplace: Workplace,
    searched_on: Executor,
    held_out: Executor,
    journal: Journal,
    chosen: Mapping[str, Candidate],
    stages: Sequence[Candidate],
) -> None:
    """Scores the members, the chosen recipes and those of the stages, and writes scores and gaps down.

    A resumed run does not score the members again: unlike the recipes, they stay the same.

    Args:
        searched_on: scores plans on the calibration set.
        held_out: scores plans on the held-out set.
        chosen: name -> recipe, of the best recipe and those of the front.
        stages: the recipe that the run would have chosen at the end of each stage. One whose maps or gains
            are gone, since another was chosen in the end, keeps the scores that it had.

    Raises:
        ScoringError: a recipe could not be scored.
    """
    measures, members = workplace.measures, workplace.family.members
    passes, pairs = measures.held_out, measures.pairs
    known = journal.held_out()
    if any(member.name not in known for member in members):
        for name, measured in measure_members(workplace).items():
            journal.record_held_out(name, with_errors(passes, measured))
    # The best recipe is also one of the front's: each model is scored once.
    distinct = {candidate.digest: candidate.plan for candidate in chosen.values()}
    of_stages = {candidate.digest: candidate.plan for candidate in stages if has_files(candidate)}
    reported = _outcomes(held_out, {**distinct, **of_stages})
    searched = _outcomes(searched_on, distinct) if pairs else {}
    for name, candidate in chosen.items():
        journal.record_held_out(name, with_errors(passes, reported[candidate.digest].measured))
    gaps = {
        digest: tuple(
            gap(
                pair,
                (measures.searched, outcome.measured),
                (passes, reported[digest].measured),
                workplace.config.seed,
            )
            for pair in pairs
        )
        for digest, outcome in searched.items()
    }
    journal.keep_held_out({*(member.name for member in members), *chosen})
    metadata = journal.metadata()
    before, wanted = metadata.stages or {}, {candidate.digest for candidate in stages}
    stage_scores = {digest: scores for digest, scores in before.items() if digest in wanted}
    stage_scores |= {digest: with_errors(passes, reported[digest].measured) for digest in of_stages}
    journal.describe(replace(metadata, gaps=gaps, stages=stage_scores))


def measure_members(workplace: Workplace) -> dict[str, Measured]:
    """Measures the dense members on the held-out set, each with its own config, embeddings and head."""
    measured = {}
    for member in workplace.family.members:
        model = load_model(member.directory, workplace.compute, workplace.device)
        measured[member.name] = workplace.measures.held_out.measure_alone(model)
        gc.collect()
    return measured


def _outcomes(executor: Executor, plans: Mapping[str, Plan]) -> dict[str, Outcome]:
    """Scores plans by digest and returns digest -> outcome.

    Raises:
        ScoringError: a plan failed.
    """
    outcomes = dict(zip(plans, executor.score(list(plans.values())), strict=True))
    for digest, outcome in outcomes.items():
        if outcome.cause is not None:
            raise ScoringError(f"{digest} was found, and could not be scored again: {outcome.cause}")
    return outcomes
