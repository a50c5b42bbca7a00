"""The section of a search config that says how it is searched."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gptailor_merge.objectives.config_types import Positive, Section

RESUMABLE = ("budget", "pick", "workers")
"""The keys of the section that a resumed search may change."""


class StartRecipe(Section):
    """A recipe that the search starts from; it is recorded whole, so that a run holds all it depends on."""

    file: str
    recipe: dict[str, Any]


KNEE = "knee"
"""The rule that picks the bend of the front."""

RULE = re.compile(rf"{KNEE}|best:(\S+)|layers=([1-9]\d*)")
"""Ways to pick one recipe of a front, see search.front."""

RULES = f"{KNEE}, best:OBJECTIVE or layers=N"
"""The same, for messages."""


def read_rule(value: Any) -> Any:
    """Returns a rule that picks a recipe of a front.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or not RULE.fullmatch(value):
        raise ValueError(f"expected {RULES}, found {value!r}")
    return value


class SearchSection(Section):
    """Settings of the search.

    Attributes:
        optimizer: name of the optimiser.
        budget: candidates that are proposed, duplicates included.
        population: candidates in a generation.
        max_failures: failed candidates in a row that stop the run.
        racing: drop candidates that cannot win before they are scored on everything; default where
            it is known how many candidates the optimiser keeps.
        pareto: find the front of several objectives, instead of the best weighted sum; default where
            the target is a range, or a cost has no weight.
        pick: which recipe of the front is the run's best: knee, best:OBJECTIVE or layers=N.
        start: recipe files that the first generation begins with.
        warm_start: baselines whose recipes the first generation begins with; default best_merge, where it
            takes no more than three fifths of the budget.
        workers: how many processes score candidates, by Ray; auto is one for each GPU, or for each CPU
            where there is none. Default: this process alone.
    """

    optimizer: str = "default"
    budget: Positive = 200
    population: Positive = 16
    max_failures: Positive = 16
    racing: bool | None = None
    pareto: bool | None = None
    pick: Annotated[str, BeforeValidator(read_rule)] = KNEE
    start: tuple[str | StartRecipe, ...] = Field(default=(), strict=False)
    warm_start: tuple[str, ...] | None = Field(default=None, strict=False)
    workers: Positive | Literal["auto"] | None = None
