"""The stages of a run: what the recipe of each came to on the held-out set, and what the stage cost.

A search finds a recipe, repairs make it better, tuning again. A gain may be bought elsewhere, so that sets
outside what was calibrated on stand beside the mean over those that were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.scores import COSTS, Score, Scores
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.front import front, pick

SEARCH_STAGE, REPAIR_STAGE, TUNE_STAGE, HEAL_STAGE = "found", "repaired", "tuned", "healed"
"""The stages in their order, by what the recipe is in the end."""


_DEEDS = {REPAIR_STAGE: "Repairing", TUNE_STAGE: "Tuning", HEAL_STAGE: "Healing"}


@dataclass(frozen=True)
class RunStage:
    """A stage of a run.

    Attributes:
        name: found, repaired, tuned or healed.
        best: the recipe that the run would have chosen when the stage had ended.
        tokens, seconds: what the stage cost by itself.
    """

    name: str
    best: Candidate
    tokens: int
    seconds: float


@dataclass(frozen=True)
class StageRow:
    """The held-out scores of a stage's recipe in one objective.

    Attributes:
        calibrated: over all sets that were calibrated on; None where none is held out.
        outside: set -> score, of the sets that were not calibrated on.
        tokens, seconds: what the stage cost by itself.
    """

    stage: str
    calibrated: Score | None
    outside: Mapping[str, Score]
    tokens: int
    seconds: float


@dataclass(frozen=True)
class StageTable:
    """The held-out scores of all stages in one objective.

    Attributes:
        sets: the sets that were calibrated on.
        outside: those that were not.
    """

    objective: str
    sets: tuple[str, ...]
    outside: tuple[str, ...]
    rows: tuple[StageRow, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings of the scores: the mean over what was calibrated on, then each set outside."""
        mean = (f"mean of {', '.join(self.sets)}",) if self.sets else ()
        return (*mean, *(f"{name} (not calibrated on)" for name in self.outside))

    def scores(self, row: StageRow) -> list[Score]:
        """Returns the scores of a row in the order of the columns."""
        mean = [] if row.calibrated is None else [row.calibrated]
        return [*mean, *(row.outside[name] for name in self.outside)]

    def to_json(self) -> dict[str, Any]:
        """Returns the table as `gptailor show --json` prints it, in the units that users see."""
        return {
            "objective": self.objective,
            "calibrated_on": list(self.sets),
            "rows": [
                {
                    "stage": row.stage,
                    "calibrated": None if row.calibrated is None else row.calibrated.natural,
                    "outside": {name: score.natural for name, score in row.outside.items()},
                    "tokens": row.tokens,
                    "seconds": round(row.seconds, 3),
                }
                for row in self.rows
            ],
        }


class StageLog(Protocol):
    """Remembers the candidates of a run; see runs.journal.Journal."""

    def candidates(self) -> Iterator[Candidate]:
        """Yields every candidate in the order of proposal."""

    def finished(self) -> Iterator[Candidate]:
        """Yields the candidates of a target size that were scored on everything, refined ones last."""

    def repairs(self) -> Mapping[str, Candidate]:
        """Returns digest of the original -> what became of its repair."""

    def tunings(self) -> Mapping[str, Candidate]:
        """Returns digest of the original -> what became of its tuning."""

    def healings(self) -> Mapping[str, Candidate]:
        """Returns key of a healing -> what became of it."""


def stages_in(log: StageLog, axes: Sequence[str], rule: str) -> list[RunStage]:
    """Returns the stages that a run has been through.

    Args:
        axes: the objectives of the front; empty where one recipe is sought.
        rule: chooses a recipe of the front, see search.front.pick.
    """
    finished = list(log.finished())
    spent = {
        SEARCH_STAGE: list(log.candidates()),
        REPAIR_STAGE: list(log.repairs().values()),
        TUNE_STAGE: list(log.tunings().values()),
        HEAL_STAGE: list(log.healings().values()),
    }
    later = {REPAIR_STAGE: Status.REPAIRED, TUNE_STAGE: Status.TUNED, HEAL_STAGE: Status.HEALED}
    stages = []
    for name, candidates in spent.items():
        later.pop(name, None)
        best = _best([c for c in finished if c.status not in later.values()], axes, rule)
        if candidates and best is not None:
            tokens, seconds = sum(c.tokens for c in candidates), sum(c.seconds for c in candidates)
            stages.append(RunStage(name, best, tokens, seconds))
    return stages


def _best(candidates: Sequence[Candidate], axes: Sequence[str], rule: str) -> Candidate | None:
    """Returns what a run would choose of these candidates; None where it could not."""
    if not axes:
        scored = [(c.loss, place) for place, c in enumerate(candidates) if c.loss is not None]
        return candidates[min(scored)[1]] if scored else None
    points = front(candidates, axes)
    try:
        return pick(points, rule, axes).candidate if points else None
    except ConfigError:  # a size that came onto the front when it was refined
        return None


def stage_tables(
    stages: Sequence[RunStage], held_out: Mapping[str, Scores], calibrated: Collection[str]
) -> tuple[StageTable, ...]:
    """Compares the stages in every objective of quality; nothing where there is nothing to compare.

    Args:
        held_out: digest of a recipe -> its held-out scores; a stage whose recipe has none is left out.
        calibrated: the names of the sets that were calibrated on.
    """
    known = [stage for stage in stages if stage.best.digest in held_out]
    tables = []
    for objective, by_set in (held_out[known[-1].best.digest] if known else {}).items():
        sets = tuple(name for name in by_set if name in calibrated)
        outside = tuple(name for name in by_set if name not in calibrated)
        if next(iter(by_set.values())).unit in COSTS or (len(known) == 1 and not (sets and outside)):
            continue
        rows = tuple(
            _row(stage, held_out[stage.best.digest][objective], sets, outside)
            for stage in known
            if by_set.keys() == held_out[stage.best.digest].get(objective, {}).keys()
        )
        tables.append(StageTable(objective, sets, outside, rows))
    return tuple(tables)


def _row(
    stage: RunStage, scores: Mapping[str, Score], sets: Sequence[str], outside: Sequence[str]
) -> StageRow:
    mean = Score.total([scores[name] for name in sets]) if sets else None
    return StageRow(stage.name, mean, {name: scores[name] for name in outside}, stage.tokens, stage.seconds)


def bought_elsewhere(tables: Iterable[StageTable]) -> Iterator[str]:
    """Yields a sentence for each gain of a stage that costs more on a set outside of what it gains on."""
    for table in tables:
        for before, after in zip(table.rows, table.rows[1:], strict=False):
            if before.calibrated is None or after.calibrated is None:
                continue
            gain = before.calibrated.mean - after.calibrated.mean
            for name in table.outside:
                if gain > 0 and after.outside[name].mean - before.outside[name].mean > gain:
                    yield (
                        f"{_DEEDS[after.stage]} improved the held-out {table.objective} on what was "
                        f"calibrated on ({_change(before.calibrated, after.calibrated)}) and made it worse "
                        f"by more on {name}, which was not "
                        f"({_change(before.outside[name], after.outside[name])})"
                    )


def _change(before: Score, after: Score) -> str:
    return f"{before.natural:.4g} to {after.natural:.4g}"
