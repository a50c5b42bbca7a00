"""Chooses where plans are scored: in this process, or by the workers of another package.

An executor is handed plans and a race and returns outcomes; nothing else crosses, and all three can be
pickled. The journal is the same whoever computed. A package adds an executor by an entry point of the
group `gptailor_merge.executors`: a name, and a factory that is called once for each run,

    def make_pool(job: Job, workplace: Workplace) -> Pool

A worker in another process calls `job.open()` once and scores by `evaluator(section).score(plans, race)`
of what it gets. See gptailor_merge.testing.executors for the tests that an executor must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Protocol

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError
from gptailor_merge.scoring.executor import Executor
from gptailor_merge.scoring.workplace import Job, ScoredSection, Workplace


class Pool(Protocol):
    """The workers of one run, which share the family's weights among all sections."""

    def executor(self, section: ScoredSection) -> Executor:
        """Returns what scores plans on a section; called for sections that measure something."""

    def close(self) -> None:
        """Ends the workers; called once, when the run is over or has failed."""


PoolFactory = Callable[[Job, Workplace], Pool]
"""Makes the pool of a run from what workers elsewhere need, and from the live parts of this process."""


class LocalPool:
    """Scores in this process."""

    def __init__(self, job: Job, workplace: Workplace) -> None:
        self._workplace = workplace

    def executor(self, section: ScoredSection) -> Executor:
        """Returns an evaluator on the composer of this process."""
        return self._workplace.evaluator(section)

    def close(self) -> None:
        """Does nothing: there are no workers."""


LOCAL = "local"


GROUP = "gptailor_merge.executors"


EXECUTORS: Mapping[str, PoolFactory] = {LOCAL: LocalPool}
"""The executors of this package, by name."""


def pool_factory(name: str) -> PoolFactory:
    """Returns the factory of the executor that `--executor` names.

    Raises:
        ConfigError: there is no executor of this name, or its package cannot be imported.

    >>> pool_factory("local").__name__
    'LocalPool'
    """
    if name in EXECUTORS:
        return EXECUTORS[name]
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if name not in plugins:
        hint = suggest(name, [*EXECUTORS, *plugins])
        raise ConfigError(f"--executor: unknown executor, found {name!r}{hint}")
    try:
        factory: PoolFactory = plugins[name].load()
    except Exception as error:  # modules fail in every possible way
        cause = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--executor {name}: cannot load {plugins[name].value}: {cause}") from error
    return factory
