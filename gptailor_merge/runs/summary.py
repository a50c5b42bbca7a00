"""What a run came to, as `gptailor show` prints it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.scores import TOTAL, natural
from gptailor_merge.runs.directory import RunDirectory
from gptailor_merge.runs.journal import open_existing
from gptailor_merge.scoring.gap import Gap
from gptailor_merge.search.candidates import Counts
from gptailor_merge.search.front import FrontCandidate, front, pick

BASELINE = "baseline"


FOUND = "found"
"""The name of the best recipe in the held-out table, beside the members' names."""


@dataclass(frozen=True)
class FrontRow:
    """A recipe of the front.

    Attributes:
        scores: objective -> its total.
    """

    recipe: Path
    layers: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """What a run came to; values are in the units that users see.

    Attributes:
        front: the recipes that no other beats in every objective, where such a front was sought.
        held_out: model -> objective -> set -> score; models are the members, the found recipe, and
            those of the front by the names of their files.
        gaps: of the found recipe.
        warnings: sentences that belong beside the scores.
        baseline: which one the run is of, and of what model, where it is none of a search.
    """

    digest: str
    recipe: Path
    loss: float
    scores: Mapping[str, Mapping[str, float]]
    counts: Counts
    held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
    sizes: Mapping[str, tuple[int, int]]
    front: tuple[FrontRow, ...] = ()
    gaps: tuple[Gap, ...] = ()
    warnings: tuple[str, ...] = ()
    baseline: str | None = None

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
            "gated": counts.gated,
            "repaired": counts.repaired,
            "tokens": counts.tokens,
            "seconds": round(counts.seconds, 3),
            "held_out": self.held_out,
            "sizes": {n: {"layers": x, "parameters": p} for n, (x, p) in self.sizes.items()},
            "front": [{**asdict(row), "recipe": str(row.recipe)} for row in self.front],
            "gaps": [{**asdict(one), "gap": one.difference} for one in self.gaps],
            "warnings": list(self.warnings),
            **({} if self.baseline is None else {"baseline": self.baseline}),
        }


def summarize(run: RunDirectory, rule: str | None = None) -> Summary:
    """Read a run's journal.

    Args:
        rule: which recipe of a front is shown, see front.pick; default the one that the run took.

    Raises:
        InputError: the directory holds no run.
        ConfigError: nothing has been scored yet, or the front does not have what is asked for.
    """
    with open_existing(run.journal) as journal:
        axes = json.loads(journal.meta("axes") or "[]")
        points = front(journal.finished(), axes) if axes else []
        best = journal.best()
        if best is None:
            raise ConfigError(f"{run.path}: no candidate has been scored yet")
        recipe, name = run.best, FOUND
        if rule is not None and not axes:
            raise ConfigError(
                f"{run.path}: --pick is for runs that sought a front; this one sought one recipe"
            )
        if axes:
            point = pick(points, rule or SearchConfig.load(run.config).search.pick, axes)
            best = point.candidate
            if rule is not None:
                recipe, name = run.pareto / f"{point.name}.yml", point.name
        sizes = json.loads(journal.meta("sizes") or "{}")
        held_out = {model: natural(scores) for model, scores in journal.held_out().items()}
        if name != FOUND and name in held_out:
            held_out[FOUND], sizes[FOUND] = held_out[name], sizes[name]
        gaps = json.loads(journal.meta("gaps") or "{}").get(best.digest, [])
        return Summary(
            digest=best.digest,
            recipe=recipe,
            loss=best.loss if best.loss is not None else float("nan"),
            scores=natural(best.scores),
            counts=journal.counts(),
            held_out=held_out,
            sizes={name: (layers, parameters) for name, (layers, parameters) in sizes.items()},
            front=tuple(_front_row(run, point, axes) for point in points),
            gaps=tuple(Gap(**{**one, "sets": tuple(one["sets"])}) for one in gaps),
            warnings=tuple(json.loads(journal.meta("warnings") or "[]")),
            baseline=journal.meta(BASELINE) or None,
        )


def _front_row(run: RunDirectory, point: FrontCandidate, axes: Sequence[str]) -> FrontRow:
    scores = natural(point.candidate.scores)
    return FrontRow(
        run.pareto / f"{point.name}.yml", point.layers, {name: scores[name][TOTAL] for name in axes}
    )
