"""A run: the directory that a search fills, from a config to the best recipe and its report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, ScoringError, errors_in
from gptailor_merge.recipe.operations import plan
from gptailor_merge.scoring.objectives import Score, Scores
from gptailor_merge.search.driver import search
from gptailor_merge.search.journal import Candidate, Counts, Journal, open_existing
from gptailor_merge.search.session import (
    BankMode,
    Plans,
    Session,
    compute_dtype,
    prepare,
    score_members,
    start,
)

FOUND = "found"
"""The name of the best recipe in the held-out table, beside the members' names."""


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps what."""

    path: Path

    @property
    def config(self) -> Path:
        """The config with everything resolved."""
        return self.path / "config.yml"

    @property
    def journal(self) -> Path:
        """The SQLite file with every candidate."""
        return self.path / "journal.db"

    @property
    def best(self) -> Path:
        """The best recipe."""
        return self.path / "best.yml"

    @property
    def model(self) -> Path:
        """The written model."""
        return self.path / "model"


@dataclass(frozen=True)
class Summary:
    """What a run came to; values are in the units that users see."""

    digest: str
    recipe: Path
    loss: float
    scores: Mapping[str, Mapping[str, float]]
    counts: Counts
    held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
    sizes: Mapping[str, tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """As `gptailor show --json` prints it."""
        counts = self.counts
        return {
            "digest": self.digest,
            "recipe": str(self.recipe),
            "loss": self.loss,
            "scores": self.scores,
            "candidates": counts.candidates,
            "failures": counts.failures,
            "duplicates": counts.duplicates,
            "dropped": counts.dropped,
            "tokens": counts.tokens,
            "seconds": round(counts.seconds, 3),
            "held_out": self.held_out,
            "sizes": {n: {"layers": x, "parameters": p} for n, (x, p) in self.sizes.items()},
        }


def open_run(config: SearchConfig, run: RunDirectory, *, resume: bool) -> None:
    """Make the run directory, or check that it belongs to this config.

    Raises:
        ConfigError: the directory holds a run and `resume` is not asked for, or holds another one.
    """
    if run.journal.exists() and not resume:
        raise ConfigError(
            f"{run.path} already holds a run; continue it with --resume or choose another --out"
        )
    if run.config.exists() and run.journal.exists():
        changed = SearchConfig.load(run.config).differences(config)
        if changed:
            raise ConfigError(
                f"{run.path} was begun with another config; {', '.join(changed)} differ. "
                "Resume with the config it was begun with, or choose another --out"
            )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{run.path} cannot be made a directory: {error.strerror}") from None
    write_beside(run.config, config.to_yaml())


def execute(
    config: SearchConfig,
    run: RunDirectory,
    device: torch.device,
    *,
    resume: bool = False,
    bank: BankMode = "auto",
    file: Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Summary:
    """Search, write best.yml, and score the found recipe and the members on the held-out set.

    Args:
        bank: where the family's weights live.
        file: the config's file, for error messages.
        on_step: told what is being done.
        on_candidate: told of every candidate in order.
    """
    on_step("reading the family")
    with errors_in(file):
        plans = prepare(config)
    open_run(config, run, resume=resume)
    with errors_in(file):
        session = start(plans, device, bank=bank, progress=on_step)
    with Journal(run.journal) as journal:
        on_step("searching")
        best = search(
            plans.space,
            session.evaluator,
            journal,
            session.settings,
            start=plans.start,
            on_candidate=on_candidate,
        )
        write_beside(run.best, best.recipe)
        if session.held_out is not None:
            on_step("scoring on the held-out set")
            _score_held_out(plans, session, journal, best, device)
        family, kept = plans.family, plan(best.parsed).kept
        layers = {"base": range(family.depth), FOUND: kept}
        sizes = {name: (len(some), family.parameters(some)) for name, some in layers.items()}
        journal.set_meta("sizes", json.dumps(sizes))
    return summarize(run)


def summarize(run: RunDirectory) -> Summary:
    """Read a run's journal.

    Raises:
        InputError: the directory holds no run.
        ConfigError: nothing has been scored yet.
    """
    with open_existing(run.journal) as journal:
        best = journal.best()
        if best is None:
            raise ConfigError(f"{run.path}: no candidate has been scored yet")
        sizes = json.loads(journal.meta("sizes") or "{}")
        return Summary(
            digest=best.digest,
            recipe=run.best,
            loss=best.loss if best.loss is not None else float("nan"),
            scores=natural(best.scores),
            counts=journal.counts(),
            held_out={model: natural(scores) for model, scores in journal.held_out().items()},
            sizes={name: (layers, parameters) for name, (layers, parameters) in sizes.items()},
        )


def natural(scores: Scores) -> dict[str, dict[str, float]]:
    """Scores in the units that users see, with a total over each objective's tokens."""
    shown = {}
    for objective, by_set in scores.items():
        units = {name: score.natural for name, score in by_set.items()}
        shown[objective] = {**units, "total": Score.total(list(by_set.values())).natural}
    return shown


def write_beside(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _score_held_out(
    plans: Plans, session: Session, journal: Journal, best: Candidate, device: torch.device
) -> None:
    """The members' scores do not change in a resumed run; the found recipe's may."""
    evaluator = session.held_out
    assert evaluator is not None
    known = journal.held_out()
    if any(member.name not in known for member in plans.family.members):
        assert plans.space.out_dtype is not None
        dtype = compute_dtype(device, plans.space.out_dtype)
        for name, scores in score_members(evaluator, plans.family, device, dtype).items():
            journal.record_held_out(name, scores)
    (outcome,) = evaluator.score([plan(best.parsed)])
    if outcome.cause is not None:
        raise ScoringError(f"the best recipe could not be scored on the held-out set: {outcome.cause}")
    journal.record_held_out(FOUND, outcome.scores)
