"""The tuning that a search config asks for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gptailor_merge.objectives.config_types import Section


class TuneSection(Section):
    """Tuning of the best recipes when the search and the repairs are over.

    Attributes:
        finalists: recipes that are tuned, the best for each choice of layers; of a front all recipes are.
            0 tunes none; by default the best is tuned, where layers are removed, no front is sought and
            every weighted objective has a gradient. At full size tuning costs about as much outside the
            calibrated texts as it gains on them (benchmarks/README.md), so that it must be asked for.
        steps: most steps of Adam; 0 tunes nothing, as in the paper.
        weights: the tensors that share a merge weight.
        norms: fit the gains of norms, too.
        tokens: taken of each objective's texts, a quarter of which is held back.
        rate: Adam's rate of merge weights.
    """

    finalists: Annotated[int, Field(ge=0)] | None = None
    steps: Annotated[int, Field(ge=0)] = 60
    weights: Literal["layer", "part", "tensor"] = "part"
    norms: bool = True
    tokens: Annotated[int, Field(ge=2)] = 65536
    rate: Annotated[float, Field(gt=0)] = 0.03
