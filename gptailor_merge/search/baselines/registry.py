"""Every baseline by the name that users give. A new one is a class and an entry here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError, Problem
from gptailor_merge.search.baselines.evopress import EvoPress
from gptailor_merge.search.baselines.greedy import SLEB
from gptailor_merge.search.baselines.influence import UIDL, ShortGPT
from gptailor_merge.search.baselines.laco import LaCo
from gptailor_merge.search.baselines.one_shot import OneShot
from gptailor_merge.search.baselines.problem import Baseline
from gptailor_merge.search.baselines.random_search import RandomSearch
from gptailor_merge.space.space import Space

BASELINES: Mapping[str, Baseline] = {
    "one_shot": OneShot(),
    "shortgpt": ShortGPT(),
    "uidl": UIDL(),
    "sleb": SLEB(),
    "laco": LaCo(),
    "evopress": EvoPress(),
    "random": RandomSearch(),
}


STARTING_GENERATIONS = 4
"""What a method that takes any budget gets to start a search: so many of its generations."""


def baseline(name: str) -> Baseline:
    """The method of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in BASELINES:
        raise ConfigError(f"unknown baseline, found {name!r}{suggest(name, BASELINES)}")
    return BASELINES[name]


def warm_starts(names: Sequence[str], space: Space, *, budget: int, population: int) -> list[Baseline]:
    """The methods that a search starts from.

    Raises:
        ConfigError: an unknown name, recipes that no search can start from, or too small a budget.
    """
    problems = []
    for index, name in enumerate(names):
        path = ("search", "warm_start", index)
        if name not in BASELINES:
            problems.append(Problem(path, f"unknown baseline, found {name!r}{suggest(name, BASELINES)}"))
        elif not BASELINES[name].in_space:
            problems.append(Problem(path, f"its recipes are not in the space of a search, found {name!r}"))
        elif name in names[:index]:
            problems.append(Problem(path, f"is there twice, found {name!r}"))
    if problems:
        raise ConfigError(problems)
    methods = [BASELINES[name] for name in names]
    taken = sum(method.candidates(space, STARTING_GENERATIONS * population) for method in methods)
    if taken + population > budget:
        message = (
            f"{', '.join(names)} take {taken} candidates, which leaves no generation of {population} of a "
            f"budget of {budget}"
        )
        raise ConfigError(Problem(("search", "warm_start"), message))
    return methods
