"""Finds a baseline by the name that users give: one of ours, or one of another package."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor_merge.errors import ConfigError, KeyPath, Problem
from gptailor_merge.extensions import Registry
from gptailor_merge.search.baselines.best_merge import BestMerge
from gptailor_merge.search.baselines.evopress import EvoPress
from gptailor_merge.search.baselines.greedy import SLEB
from gptailor_merge.search.baselines.influence import UIDL, ShortGPT
from gptailor_merge.search.baselines.laco import LaCo
from gptailor_merge.search.baselines.lazy_greedy import LazyGreedy
from gptailor_merge.search.baselines.one_shot import OneShot
from gptailor_merge.search.baselines.protocol import Baseline
from gptailor_merge.search.baselines.random_search import RandomSearch
from gptailor_merge.space.space import Space

GROUP = "gptailor_merge.baselines"
"""The entry-point group of other packages' baselines: NAME = "module:object", see protocol.Baseline."""


BASELINES: Registry[Baseline] = Registry(
    "baseline",
    GROUP,
    {
        "best_merge": BestMerge(LazyGreedy()),
        "one_shot": OneShot(),
        "shortgpt": ShortGPT(),
        "uidl": UIDL(),
        "sleb": SLEB(),
        "lazy_greedy": LazyGreedy(),
        "laco": LaCo(),
        "evopress": EvoPress(),
        "random": RandomSearch(),
    },
    ConfigError,
)
"""Name -> baseline; ours are a file and an entry here."""


STARTING_GENERATIONS = 4
"""The budget of a baseline that a search starts from, in generations of the search."""


def baseline(name: str, path: KeyPath = ()) -> Baseline:
    """Returns the baseline of a name.

    Args:
        path: where a config names it, for error messages.

    Raises:
        ConfigError: there is none, or another package's cannot be used.
    """
    try:
        method = BASELINES[name]
    except ConfigError as error:
        raise ConfigError([Problem(path, problem.message) for problem in error.problems]) from error
    missing = [key for key in ("in_space", "candidates", "find") if not hasattr(method, key)]
    if isinstance(method, type):
        description = f"the class {method.__name__}"
    elif missing:
        description = f"an object without {', '.join(missing)}"
    else:
        return method
    message = f"the baseline {name!r} is {description}; expected an object with in_space, candidates and find"
    raise ConfigError(Problem(path, message))


def warm_starts(names: Sequence[str], space: Space, *, budget: int, population: int) -> list[Baseline]:
    """Returns the baselines that a search starts from.

    Raises:
        ConfigError: a baseline that is unknown or that no search can start from, or too small a budget.
    """
    methods: list[Baseline] = []
    problems: list[Problem] = []
    for index, name in enumerate(names):
        path = ("search", "warm_start", index)
        try:
            method = baseline(name, path)
        except ConfigError as error:
            problems += error.problems
            continue
        if not method.in_space:
            problems.append(Problem(path, f"its recipes are not in the space of a search, found {name!r}"))
        elif name in names[:index]:
            problems.append(Problem(path, f"is there twice, found {name!r}"))
        methods.append(method)
    if problems:
        raise ConfigError(problems)
    needed = sum(method.candidates(space, STARTING_GENERATIONS * population) for method in methods)
    if needed + population > budget:
        message = (
            f"{', '.join(names)} take {needed} candidates, which leaves no generation of {population} of a "
            f"budget of {budget}"
        )
        raise ConfigError(Problem(("search", "warm_start"), message))
    return methods
