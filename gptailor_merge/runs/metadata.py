"""The facts that a journal holds about its run as a whole, beside the candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from gptailor_merge.objectives.scores import Scores
from gptailor_merge.runs.continuations import Continuations
from gptailor_merge.runs.provenance import History, Inputs, Period
from gptailor_merge.runs.stored_scores import dump_scores, load_scores
from gptailor_merge.scoring.gap import Gap


class Dimensions(NamedTuple):
    """The layers and parameters of a model."""

    layers: int
    parameters: int


@dataclass(frozen=True)
class Metadata:
    """The facts about a run as a whole, written by Journal.describe.

    Attributes:
        baseline: the baseline that was run instead of a search, and its model; empty for a search.
        axes: the objectives of the front; empty where one recipe is sought.
        warnings: sentences that belong beside every score.
        sizes: model -> its dimensions; None until the search has ended.
        gaps: digest of a recipe -> its gaps; None until recipes are scored on the held-out set.
        stages: digest of a stage's recipe -> its held-out scores, see stages; None as with gaps.
        writes: what base and best recipe write after the same prompts; None where that is not known.
        inputs: what the scores depend on; None where an early version did not record it.
        history: the versions of the libraries in the course of the run; None as with inputs.
        threads: the CPU's threads that computed; None on another device, and as with inputs.
    """

    baseline: str = ""
    axes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sizes: Mapping[str, Dimensions] | None = None
    gaps: Mapping[str, tuple[Gap, ...]] | None = None
    stages: Mapping[str, Scores] | None = None
    writes: Continuations | None = None
    inputs: Inputs | None = None
    history: History | None = None
    threads: int | None = None

    def to_rows(self) -> dict[str, str]:
        """Returns key -> text as the journal stores them; a fact that is not known yet has no key.

        >>> Metadata(axes=("kl", "parameters")).to_rows()
        {'baseline': '', 'axes': '["kl", "parameters"]', 'warnings': '[]'}
        """
        rows = {
            "baseline": self.baseline,
            "axes": json.dumps(self.axes),
            "warnings": json.dumps(self.warnings),
        }
        if self.sizes is not None:
            rows["sizes"] = json.dumps(self.sizes)
        if self.gaps is not None:
            gaps = {digest: [asdict(gap) for gap in recipe_gaps] for digest, recipe_gaps in self.gaps.items()}
            rows["gaps"] = json.dumps(gaps)
        if self.stages is not None:
            rows["stages"] = json.dumps({d: dump_scores(scores) for d, scores in self.stages.items()})
        if self.writes is not None:
            rows["writes"] = json.dumps(asdict(self.writes))
        if self.inputs is not None:
            rows["inputs"] = json.dumps(self.inputs)
        if self.history is not None:
            rows["history"] = json.dumps([asdict(period) for period in self.history])
        if self.threads is not None:
            rows["threads"] = json.dumps(self.threads)
        return rows

    @classmethod
    def from_rows(cls, rows: Mapping[str, str]) -> Metadata:
        """Reads rows that `to_rows` wrote, and ignores other keys.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: a row holds something else.
        """
        known = {key: adapter.validate_json(rows[key]) for key, adapter in _STORED.items() if key in rows}
        if "stages" in known:
            known["stages"] = {digest: load_scores(text) for digest, text in known["stages"].items()}
        return cls(baseline=rows.get("baseline", ""), **known)


_STORED: Mapping[str, TypeAdapter[Any]] = {
    "axes": TypeAdapter(tuple[str, ...]),
    "warnings": TypeAdapter(tuple[str, ...]),
    "sizes": TypeAdapter(dict[str, Dimensions]),
    "gaps": TypeAdapter(dict[str, tuple[Gap, ...]]),
    "stages": TypeAdapter(dict[str, str]),
    "writes": TypeAdapter(Continuations),
    "inputs": TypeAdapter(dict[str, str]),
    "history": TypeAdapter(tuple[Period, ...]),
    "threads": TypeAdapter(int),
}
"""Key -> what its JSON text holds."""
