"""The training that a search config asks for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gptailor_merge.errors import Problem
from gptailor_merge.objectives.config_types import Data, Section


class HealSection(Section):
    """Training of the best recipe when all else is done, see healing.finalists; off unless it has tokens.

    Attributes:
        tokens: trained on in all; 0 heals nothing.
        data: texts to train on; those that the objectives or the held-out set have are refused.
        finalists: recipes that are healed on `short` tokens first, the best for each choice of layers; the
            best of them goes on.
        short: tokens that each of several finalists is healed on first.
        lora: rank of the adapter.
        rate: the highest learning rate; default that of `gptailor heal`.
        cross_entropy: the share of plain cross-entropy in the loss; 1 asks no teacher.
        sequence_length: tokens that the model sees at once.
    """

    tokens: Annotated[int, Field(ge=0)] = 0
    data: Data | None = None
    finalists: Annotated[int, Field(ge=1)] = 1
    short: Annotated[int, Field(ge=0)] = 0
    lora: Annotated[int, Field(ge=1)] = 32
    rate: Annotated[float, Field(gt=0)] | None = None
    cross_entropy: Annotated[float, Field(ge=0, le=1)] = 0.0
    sequence_length: Annotated[int, Field(ge=2)] = 512

    def problems(self, *, pareto: bool) -> list[Problem]:
        """Returns what is wrong with the values together.

        Args:
            pareto: whether a front is sought.
        """
        if not self.tokens:
            return []
        problems = []
        if self.data is None:
            problems.append(Problem(("heal", "data"), "expected texts to train on, found none"))
        if (self.finalists > 1) != (self.short > 0):
            message = "several finalists are healed on few tokens first, and one is not: finalists and short"
            found = f"found {self.finalists} and {self.short}"
            problems.append(Problem(("heal", "short"), f"{message} go together, {found}"))
        if pareto:
            message = "a front is not healed; expected 0, and `gptailor heal` for a recipe of the front"
            problems.append(Problem(("heal", "tokens"), f"{message}, found {self.tokens}"))
        return problems
