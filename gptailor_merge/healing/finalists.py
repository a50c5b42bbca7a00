"""Heals the best recipe of a search, after a short trial of several, and remembers it beside the search."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.adapting import adapter_digest
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import errors_at
from gptailor_merge.files import make_directory
from gptailor_merge.healing.facts import FACTS, HealingFacts, facts_in
from gptailor_merge.healing.generation import check_tasks, exact_matches
from gptailor_merge.healing.healer import ADAPTER, HealOptions, check_device, heal_plan
from gptailor_merge.healing.used_texts import UsedTexts
from gptailor_merge.models.family import BASE_NAME
from gptailor_merge.objectives.kl import KLConfig
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.recipe.plan import LORA, Edit
from gptailor_merge.repair.finalists import (
    HEALED_FILES,
    SHORT,
    Finished,
    best_by_layers,
    best_of,
    has_files,
)
from gptailor_merge.repair.refining import FinalistJudge
from gptailor_merge.scoring.workplace import Workplace
from gptailor_merge.search.candidates import Candidate, Status


class HealLog(Finished, Protocol):
    """Remembers candidates and their healings; see runs.journal.Journal."""

    def healings(self) -> Mapping[str, Candidate]:
        """Returns the name of a finalist's directory -> what became of its healing there."""

    def record_healing(self, original: str, healed: Candidate) -> None:
        """Writes what became of the healing of a candidate."""


def check_healing(workplace: Workplace) -> None:
    """Reads texts and tasks, so that a search does not fail at its end.

    Raises:
        DataError: they cannot be read, or the search scores or reports on some of the texts.
        ConfigError: a task is not known, or has no generated answers that match exactly or do not; or the
            device is one that cannot be trained on.
    """
    section = workplace.config.heal
    if section.tokens:
        check_device(workplace.device)
        with errors_at(("heal", "data")):
            used = UsedTexts.of(workplace.config, workplace.measures.context.tokenizer)
            used.refuse(_texts(workplace, max(section.tokens, section.short)))
        check_tasks(section)


def _texts(workplace: Workplace, tokens: int) -> tuple[TokenSet, ...]:
    """Returns the texts to train on.

    Raises:
        DataError: they cannot be read.
    """
    section, tokenizer = workplace.config.heal, workplace.measures.context.tokenizer
    with errors_at(("heal", "data")):
        return token_sets(section.data or {}, tokenizer, tokens, section.sequence_length)


def heal_finalists(workplace: Workplace, judge: FinalistJudge, log: HealLog, directory: Path) -> None:
    """Heals the best recipe if it is not healed yet, and writes what became of it into the log.

    Of several finalists each is healed on few tokens first, since training may change which is the best; the
    best goes on from where it was before. `check_healing` has looked at the texts before the search.

    Args:
        directory: where the adapter of each finalist is, in a directory of its own.

    Raises:
        DataError: too few texts.
        ScoringError: memory does not suffice.
    """
    section = workplace.config.heal
    if not section.tokens:
        return
    # What a search has dropped of a candidate that it did not choose then is gone.
    unhealed = [c for c in log.finished() if c.status != Status.HEALED and has_files(c)]
    chosen = best_by_layers(unhealed, section.finalists)
    if section.short:
        for number, candidate in enumerate(chosen, start=1):
            workplace.progress(f"healing recipe {number} of {len(chosen)} on few tokens")
            _heal(workplace, judge, log, directory, candidate, section.short, SHORT)
        trials = {candidate.digest: log.healings()[f"{candidate.digest}{SHORT}"] for candidate in chosen}
        chosen.sort(key=lambda candidate: _loss(trials[candidate.digest], candidate))
    for candidate in chosen[:1]:
        workplace.progress("healing the best recipe")
        _heal(workplace, judge, log, directory, candidate, section.tokens, "")


def _heal(
    workplace: Workplace,
    judge: FinalistJudge,
    log: HealLog,
    directory: Path,
    original: Candidate,
    tokens: int,
    ending: str,
) -> None:
    """Heals a candidate that is not healed yet on so many tokens, and counts what that took."""
    key = f"{original.digest}{ending}"
    done = log.healings().get(key)
    best = {candidate.digest for candidate in best_of(log, judge.settings.axes)}
    out = directory / key
    checkpoints = out / HEALED_FILES[-1]
    if done is not None and (done.digest not in best or has_files(done)):
        shutil.rmtree(checkpoints, ignore_errors=True)  # a process that was killed may have left them
        return
    config, section = workplace.config, workplace.config.heal
    options = HealOptions(
        rank=section.lora,
        tokens=tokens,
        rate=section.rate,
        cross_entropy=section.cross_entropy,
        hidden_states=section.hidden_states,
        sequence_length=section.sequence_length,
        seed=config.seed,
    )
    sets = _texts(workplace, tokens)
    make_directory(out)
    begun = time.perf_counter()
    healing = heal_plan(
        original.plan,
        workplace.composer,
        sets,
        out,
        taught={token_set.name: _teacher(config, token_set.name) for token_set in sets},
        teacher=workplace.teachers.get,
        release=workplace.teachers.release,
        checkpoints=checkpoints,
        options=options,
        progress=workplace.progress,
    )
    seconds = time.perf_counter() - begun
    healed = original.plan
    if healing.facts is not None:
        adapter = out / ADAPTER
        healed = replace(healed, adapter=Edit(LORA, adapter_digest(adapter), str(adapter)))
    judged = judge.judge(original, healed, directory, Status.HEALED)
    trained = 3 * healing.tokens
    log.record_healing(key, replace(judged, tokens=judged.tokens + trained, seconds=judged.seconds + seconds))
    shutil.rmtree(checkpoints, ignore_errors=True)


def _loss(trial: Candidate, original: Candidate) -> float:
    """Returns what a finalist came to; one that training did not help counts as it was."""
    losses = [candidate.loss for candidate in (trial, original) if candidate.loss is not None]
    return min(losses, default=float("inf"))


def _teacher(config: SearchConfig, name: str) -> str:
    """Returns the member that teaches a text: an objective's teacher of that name, or else as in `heal`."""
    for objective in config.objectives:
        if isinstance(objective, KLConfig) and name in objective.data:
            return objective.teacher_of(name)
    return name if name in config.family.variants else BASE_NAME


def write_facts(workplace: Workplace, best: Candidate, directory: Path) -> None:
    """Writes how the best recipe was trained beside it, or removes what an earlier best has left.

    Answers that the config wants generated are generated now, without the adapter and with it.

    Args:
        directory: of the best recipe.

    Raises:
        ScoringError: lm-eval could not run a task.
    """
    adapter = best.plan.adapter
    beside = None if adapter is None else Path(adapter.file).parent
    facts = None if beside is None else facts_in(beside)
    if facts is None or beside is None:
        (directory / FACTS).unlink(missing_ok=True)
        return
    if workplace.config.heal.generate and not facts.generation:
        workplace.progress("generating answers before and after healing")
        matches = exact_matches(workplace, (replace(best.plan, adapter=None), best.plan))
        facts = HealingFacts.model_validate({**facts.model_dump(), "generation": matches})
        facts.write(beside)
    facts.write(directory)
