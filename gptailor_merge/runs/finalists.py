"""The best recipes of a search are repaired, scored again, and remembered beside it.

Which recipe is the best can change: a cut that costs more may leave more to make up for. So for each
choice of layers the best candidate is a finalist, also one that a race has dropped.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from gptailor_merge.config import RepairSection
from gptailor_merge.errors import ConfigError, DataError, Problem
from gptailor_merge.models.family import Family
from gptailor_merge.planning.rewriting import rewritten
from gptailor_merge.recipe.edits import map_files
from gptailor_merge.repair.repairer import Repairer, enough
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.session import Session
from gptailor_merge.scoring.evaluator import Outcome
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.front import front
from gptailor_merge.search.judging import verdicts
from gptailor_merge.search.outcomes import candidate_of


def finalists(journal: Journal, axes: Sequence[str], count: int) -> list[Candidate]:
    """The best candidate of each choice of layers, the best choices first; of a front all its recipes."""
    searched = [candidate for candidate in journal.finished() if candidate.status != Status.REPAIRED]
    if axes:
        return [point.candidate for point in front(searched, axes)]
    dropped = (candidate for candidate in journal.candidates() if candidate.status == Status.DROPPED)
    best: dict[tuple[int, ...], Candidate] = {}
    for candidate in sorted((*searched, *dropped), key=_rank):
        best.setdefault(candidate.plan.kept, candidate)
    return list(best.values())[:count]


def repair_finalists(
    family: Family,
    session: Session,
    journal: Journal,
    config: RepairSection,
    directory: Path,
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Repair those that are not repaired yet, and write what became of them into the journal.

    Args:
        directory: where the maps of each are, in a directory of its own.

    Raises:
        ConfigError: repair.data has too few sequences.
    """
    texts = session.measures.texts
    if not texts or (config.data is None and not enough(texts)):
        return
    try:
        repairer = Repairer(session.evaluator.composer, family, texts, everywhere=config.everywhere)
    except DataError as error:
        raise ConfigError(Problem(("repair", "data"), str(error))) from None
    taken = {candidate.digest for candidate in _best_of(journal, session.settings.axes)}
    known = {
        original
        for original, made in journal.repairs().items()
        if made.digest not in taken or all(Path(file).is_file() for file in map_files(made.parsed))
    }
    chosen = finalists(journal, session.settings.axes, config.finalists)
    for number, candidate in enumerate(chosen, start=1):
        if candidate.digest not in known:
            progress(f"repairing the cuts of recipe {number} of {len(chosen)}")
            journal.record_repair(candidate.digest, _repaired(repairer, session, candidate, directory))


def _repaired(repairer: Repairer, session: Session, original: Candidate, directory: Path) -> Candidate:
    """What becomes of one of them: scored if a map helps and no gate is against it."""
    spent, begun = repairer.spent, time.perf_counter()
    own = directory / original.digest
    own.mkdir(parents=True, exist_ok=True)
    made, _ = repairer.repair(original.plan, own)
    seconds = time.perf_counter() - begun
    verdict, outcome = None, None
    if made.digest == original.digest:
        outcome = Outcome({}, "no map helps", 0.0, 0)
    elif session.gates is not None:
        (verdict,) = verdicts(session.gates, [made])
    if outcome is None and (verdict is None or verdict.passes):
        (outcome,) = session.evaluator.score([made])
    found = candidate_of(
        original.number,
        made,
        rewritten(original.parsed, made.slots),
        verdict,
        outcome,
        session.settings.weights,
        session.settings.fingerprint,
        Status.REPAIRED,
    )
    spent = repairer.spent - spent
    return replace(found, tokens=found.tokens + spent, seconds=found.seconds + seconds)


def _best_of(journal: Journal, axes: Sequence[str]) -> list[Candidate]:
    """The best recipe, or all of a front, repaired ones included."""
    if axes:
        return [point.candidate for point in front(journal.finished(), axes)]
    best = journal.best()
    return [] if best is None else [best]


def drop_maps(directory: Path, taken: Iterable[Candidate]) -> None:
    """Remove the maps of all recipes but some: those of a large model are large."""
    kept = {Path(file).resolve().parent for candidate in taken for file in map_files(candidate.parsed)}
    for own in directory.glob("*/"):
        if own.resolve() not in kept:
            shutil.rmtree(own)


def _rank(candidate: Candidate) -> tuple[float, int]:
    return math.inf if candidate.loss is None else candidate.loss, candidate.number
