"""The facts that a journal holds about its run as a whole, beside the candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

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
    """

    baseline: str = ""
    axes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sizes: Mapping[str, Dimensions] | None = None
    gaps: Mapping[str, tuple[Gap, ...]] | None = None

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
        return rows

    @classmethod
    def from_rows(cls, rows: Mapping[str, str]) -> Metadata:
        """Reads rows that `to_rows` wrote, and ignores other keys."""
        metadata = cls(
            baseline=rows.get("baseline", ""),
            axes=tuple(json.loads(rows.get("axes", "[]"))),
            warnings=tuple(json.loads(rows.get("warnings", "[]"))),
        )
        if "sizes" in rows:
            sizes = {name: Dimensions(*size) for name, size in json.loads(rows["sizes"]).items()}
            metadata = replace(metadata, sizes=sizes)
        if "gaps" in rows:
            gaps = {digest: tuple(map(_gap, stored)) for digest, stored in json.loads(rows["gaps"]).items()}
            metadata = replace(metadata, gaps=gaps)
        return metadata


def _gap(stored: Mapping[str, Any]) -> Gap:
    return Gap(**{**stored, "sets": tuple(stored["sets"])})
