"""What a run directory holds, read once; also while the search writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptailor_merge.documents import read_yaml
from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.directory import RunDirectory
from gptailor_merge.runs.journal import Journal, snapshot
from gptailor_merge.runs.summary import BASELINE
from gptailor_merge.scoring.gates import PREFIX
from gptailor_merge.search.candidates import Candidate, Counts
from gptailor_merge.search.front import FrontCandidate, front, pick


@dataclass(frozen=True)
class Record:
    """A run as it is stored.

    Attributes:
        document: the config as YAML has it; it is not checked, since its data need not be there any more.
        finished: the candidates that were scored on everything.
        points: the front, where one is sought.
        best: None before anything was scored.
        done: whether the search has ended.
        baseline: what was done instead of a search.
    """

    directory: RunDirectory
    document: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    finished: tuple[Candidate, ...]
    repairs: tuple[Candidate, ...]
    counts: Counts
    axes: tuple[str, ...]
    points: tuple[FrontCandidate, ...]
    best: Candidate | None
    done: bool
    baseline: str | None
    held_out: Mapping[str, Scores]
    meta: Mapping[str, Any]

    @property
    def models(self) -> dict[str, str]:
        """Name of a member -> its model, the base first."""
        family = self.document["family"]
        return {"base": family["base"], **family.get("variants", {})}

    @property
    def objectives(self) -> tuple[str, ...]:
        """What is searched on, in the order of the config."""
        scores = {} if self.best is None else self.best.scores
        return tuple(name for name in scores if not name.startswith(PREFIX))

    @property
    def fingerprint(self) -> str | None:
        """Of what its candidates were scored on."""
        return self.candidates[0].fingerprint if self.candidates else None


def record(run: RunDirectory) -> Record:
    """Read a run.

    Raises:
        InputError: the directory holds no run.
    """
    with snapshot(run.journal) as journal:
        document = read_yaml(run.config, ConfigError)
        axes = tuple(_meta(journal, "axes", []))
        finished = tuple(journal.finished())
        points = tuple(front(finished, axes)) if axes else ()
        counts, baseline = journal.counts(), journal.meta(BASELINE) or None
        # A resumed run has a best recipe from before; how many candidates a baseline proposes is its own.
        complete = baseline is not None or counts.candidates >= document["search"]["budget"]
        return Record(
            directory=run,
            document=document,
            candidates=tuple(journal.candidates()),
            finished=finished,
            repairs=tuple(journal.repairs().values()),
            counts=counts,
            axes=axes,
            points=points,
            best=_picked(run, points, axes, document) if points else journal.best(),
            done=complete and run.best.exists(),
            baseline=baseline,
            held_out=journal.held_out(),
            meta={key: _meta(journal, key, {}) for key in ("sizes", "gaps", "warnings")},
        )


def _picked(
    run: RunDirectory, points: tuple[FrontCandidate, ...], axes: tuple[str, ...], document: Mapping[str, Any]
) -> Candidate:
    """The one that the run took, or before its end would take."""
    if run.best.exists():
        digest = plan(Recipe.load(run.best)).digest
        for point in points:
            if point.candidate.digest == digest:
                return point.candidate
    return pick(points, document["search"]["pick"], axes).candidate


def _meta(journal: Journal, key: str, default: Any) -> Any:
    stored = journal.meta(key)
    return default if stored is None else json.loads(stored)
