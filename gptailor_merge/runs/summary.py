"""The results of a run, as `gptailor show` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.scores import TOTAL, Scores, natural
from gptailor_merge.runs.continuations import Continuations
from gptailor_merge.runs.metadata import Dimensions
from gptailor_merge.runs.record import FOUND, Record
from gptailor_merge.runs.stages import StageTable
from gptailor_merge.scoring.gap import Gap
from gptailor_merge.search.candidates import Candidate, Counts
from gptailor_merge.search.front import pick


@dataclass(frozen=True)
class FrontRow:
    """A recipe of the front.

    Attributes:
        recipe: the file of the recipe; its name alone wherever it leaves this machine.
        scores: objective -> its total, in the units that users see.
    """

    recipe: Path
    layers: int
    scores: Mapping[str, float]

    @property
    def name(self) -> str:
        """The name of the file, without its ending."""
        return self.recipe.stem


@dataclass(frozen=True)
class Summary:
    """The results of a run, in the units that users see.

    Attributes:
        digest, recipe, loss, scores: the chosen recipe: its digest, file and scores.
        held_out: model -> objective -> set -> score; the models are the members, the chosen recipe
            (FOUND), and the recipes of the front by the names of their files.
        sizes: model -> its dimensions.
        front: the recipes that no other beats in every objective; empty where one recipe is sought.
        stages: the held-out scores at the end of each stage, beside sets that were not calibrated on; empty
            where there is nothing to compare.
        gaps: how far search scores of the chosen recipe are from its held-out scores.
        writes: what the base and the chosen recipe write after the same prompts; None where unknown.
        warnings: sentences that belong beside the scores.
        baseline: the baseline that was run instead of a search, and its model; None for a search.
    """

    digest: str
    recipe: Path
    loss: float
    scores: Mapping[str, Mapping[str, float]]
    counts: Counts
    held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
    sizes: Mapping[str, Dimensions]
    front: tuple[FrontRow, ...] = ()
    stages: tuple[StageTable, ...] = ()
    gaps: tuple[Gap, ...] = ()
    writes: Continuations | None = None
    warnings: tuple[str, ...] = ()
    baseline: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor show --json` prints."""
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
            **({"tuned": counts.tuned} if counts.tuned else {}),
            **({"healed": counts.healed} if counts.healed else {}),
            "tokens": counts.tokens,
            "seconds": round(counts.seconds, 3),
            "held_out": self.held_out,
            "sizes": {name: size._asdict() for name, size in self.sizes.items()},
            "front": [{**asdict(row), "recipe": str(row.recipe)} for row in self.front],
            **({"stages": [table.to_json() for table in self.stages]} if self.stages else {}),
            "gaps": [{**asdict(gap), "gap": gap.difference} for gap in self.gaps],
            **({} if self.writes is None else {"writes": self.writes.to_json()}),
            "warnings": list(self.warnings),
            **({} if self.baseline is None else {"baseline": self.baseline}),
        }


def summarize(record: Record, rule: str | None = None) -> Summary:
    """Summarises a run.

    Args:
        rule: chooses another recipe of the front than the run did, see search.front.pick.

    Raises:
        ConfigError: nothing has been scored yet, or the front has no recipe for the rule.
    """
    directory, best = record.directory, record.best
    if best is None:
        raise ConfigError(f"{directory.path}: no candidate has been scored yet")
    writes = record.writes if rule is None else None
    held_out = {model: natural(scores) for model, scores in record.held_out.items()}
    sizes, recipe = dict(record.sizes), directory.best
    if rule is not None:
        best, name = _picked(record, rule)
        recipe = directory.pareto / f"{name}.yml"
        if name in held_out:
            held_out[FOUND], sizes[FOUND] = held_out[name], sizes[name]
    return Summary(
        digest=best.digest,
        recipe=recipe,
        loss=best.loss if best.loss is not None else float("nan"),
        scores=natural(best.scores),
        counts=record.counts,
        held_out=held_out,
        sizes=sizes,
        front=front_rows(record),
        # Another recipe of the front than the run chose has other stages behind it.
        stages=record.stages if rule is None else (),
        gaps=record.gaps.get(best.digest, ()),
        writes=writes,
        warnings=tuple(
            sentence
            for sentence in record.warnings
            if writes is not None or record.writes is None or sentence not in record.writes.warnings
        ),
        baseline=record.baseline,
    )


def front_rows(record: Record) -> tuple[FrontRow, ...]:
    """Returns the front of a run, the smallest recipe first; no rows where one recipe is sought."""
    return tuple(
        FrontRow(
            record.directory.pareto / f"{point.name}.yml",
            point.layers,
            totals(point.candidate.scores, record.axes),
        )
        for point in record.front
    )


def totals(scores: Scores, objectives: Sequence[str]) -> dict[str, float]:
    """Returns objective -> its score over all sets, in the units that users see."""
    shown = natural(scores)
    return {name: shown[name][TOTAL] for name in objectives}


def _picked(record: Record, rule: str) -> tuple[Candidate, str]:
    """Returns the recipe of the front that a rule chooses, and its name."""
    if not record.axes:
        raise ConfigError(
            f"{record.directory.path}: --pick chooses from a front; this run sought one recipe and has none"
        )
    point = pick(record.front, rule, record.axes)
    return point.candidate, point.name
