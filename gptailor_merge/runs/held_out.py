"""The members and the chosen recipes of a run are scored on the held-out set."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace

import torch

from gptailor_merge.errors import ScoringError
from gptailor_merge.models.devices import compute_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_model
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.preparation import Preparation
from gptailor_merge.runs.session import RunSession
from gptailor_merge.scoring.executor import Executor, Outcome
from gptailor_merge.scoring.gap import gap
from gptailor_merge.scoring.passes import Measured, Passes
from gptailor_merge.scoring.uncertainty import with_errors
from gptailor_merge.search.candidates import Candidate


def score_held_out(
    preparation: Preparation,
    session: RunSession,
    journal: Journal,
    chosen: Mapping[str, Candidate],
    device: torch.device,
) -> None:
    """Scores the members and the chosen recipes, and writes scores and gaps into the journal.

    A resumed run does not score the members again: unlike the recipes, they stay the same.

    Args:
        chosen: name -> recipe, of the best recipe and those of the front.

    Raises:
        ScoringError: a recipe could not be scored.
    """
    executor, passes = session.held_out, session.measures.held_out
    assert executor is not None
    members = preparation.family.members
    known = journal.held_out()
    if any(member.name not in known for member in members):
        assert preparation.space.out_dtype is not None
        dtype = compute_dtype(device, preparation.space.out_dtype)
        for name, measured in measure_members(passes, preparation.family, device, dtype).items():
            journal.record_held_out(name, with_errors(passes, measured))
    # The best recipe is also one of the front's: each model is scored once.
    distinct = {candidate.digest: candidate.plan for candidate in chosen.values()}
    pairs = session.measures.pairs
    reported = _outcomes(executor, distinct)
    searched = _outcomes(session.executor, distinct) if pairs else {}
    for name, candidate in chosen.items():
        journal.record_held_out(name, with_errors(passes, reported[candidate.digest].measured))
    gaps = {
        digest: tuple(
            gap(
                pair,
                (session.measures.searched, outcome.measured),
                (passes, reported[digest].measured),
                session.settings.seed,
            )
            for pair in pairs
        )
        for digest, outcome in searched.items()
    }
    journal.keep_held_out({*(member.name for member in members), *chosen})
    journal.describe(replace(journal.metadata(), gaps=gaps))


def measure_members(
    passes: Passes, family: Family, device: torch.device, dtype: torch.dtype
) -> dict[str, Measured]:
    """Measures the dense members as they are, each with its own config, embeddings and head."""
    measured = {}
    for member in family.members:
        measured[member.name] = passes.measure_alone(load_model(member.directory, dtype, device))
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
