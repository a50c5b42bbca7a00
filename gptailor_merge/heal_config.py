"""The training that a search config asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from gptailor_merge.errors import Problem
from gptailor_merge.objectives.config_types import (
    Data,
    Positive,
    Section,
    absolute_files,
    located,
    missing_files,
)


class HealSection(Section):
    """Training of the best recipe when all else is done; off unless it has tokens.

    Attributes:
        tokens: trained on in all; 0 heals nothing.
        data: texts to train on; those that the objectives or the held-out set have are refused.
        finalists: recipes that are healed on `short` tokens first, the best for each choice of layers; the
            best of them goes on.
        short: tokens that each of several finalists is healed on first.
        lora: rank of the adapter.
        rate: the highest learning rate; default that of `gptailor heal`.
        cross_entropy: the share of plain cross-entropy in the loss; 1 asks no teacher.
        hidden_states: the weight of the distance of a few layers' inputs from the teacher's in the loss; 0
            compares predictions alone.
        sequence_length: tokens that the model sees at once.
        generate: tasks of lm-eval whose answers are generated, before and after; the shares that match
            exactly are reported, and choose nothing.
        limit: most items of each of these tasks.
        include_path: a directory with further tasks.
    """

    tokens: Annotated[int, Field(ge=0)] = 0
    data: Data | None = None
    finalists: Annotated[int, Field(ge=1)] = 1
    short: Annotated[int, Field(ge=0)] = 0
    lora: Annotated[int, Field(ge=1)] = 32
    rate: Annotated[float, Field(gt=0)] | None = None
    cross_entropy: Annotated[float, Field(ge=0, le=1)] = 0.0
    hidden_states: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    sequence_length: Annotated[int, Field(ge=2)] = 512
    generate: Annotated[tuple[str, ...], Field(strict=False)] = ()
    limit: Positive = 50
    include_path: str | None = None

    def problems(self, directory: Path, *, pareto: bool) -> list[Problem]:
        """Returns what is wrong with the values together, and which files are missing.

        Args:
            directory: relative paths start here.
            pareto: whether a front is sought.
        """
        problems = missing_files(("heal", "data"), self.data or {}, directory)
        if not self.tokens:
            return problems
        where = self.include_path
        if where is not None and not located(where, directory).is_dir():
            message = f"no such directory, found {where!r}; looked for {located(where, directory)}"
            problems.append(Problem(("heal", "include_path"), message))
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

    def resolved(self, directory: Path) -> HealSection:
        """Returns the section with absolute paths; relative ones start at `directory`."""
        data = None if self.data is None else absolute_files(self.data, directory)
        where = None if self.include_path is None else str(located(self.include_path, directory))
        return self.model_copy(update={"data": data, "include_path": where})
