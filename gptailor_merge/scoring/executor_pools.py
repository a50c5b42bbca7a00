"""Chooses where plans are scored and refined: in this process, on Ray, or by another package's workers.

An executor is handed plans and a race and returns outcomes; nothing else crosses, and all three can be
pickled. The journal is the same whoever computed. A package adds an executor by an entry point of the
group `gptailor_merge.executors`: a name, and a factory that is called once for each run,

    def make_pool(job: Job, workplace: Workplace) -> Pool

A worker in another process calls `job.open()` once, which gives it a Workplace, and scores plans with
`workplace.evaluator(section).score(plans, race)`. gptailor_merge.testing.executors holds the tests that an
executor must pass. A pool may refine finalists, too, see FittingPool; this process does so for other pools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from gptailor_merge.errors import ConfigError
from gptailor_merge.extensions import Registry
from gptailor_merge.scoring.executor import Executor
from gptailor_merge.scoring.finalist_fits import Fitter, LocalFitter
from gptailor_merge.scoring.workplace import Job, ScoredSection, Workplace


class Pool(Protocol):
    """The workers of one run, which share the family's weights among all sections."""

    def executor(self, section: ScoredSection) -> Executor:
        """Returns the executor of a section; called for sections that measure something."""

    def close(self) -> None:
        """Ends the workers; called once, when the run is over or has failed."""


@runtime_checkable
class FittingPool(Pool, Protocol):
    """A pool whose workers repair and tune finalists as well."""

    def fitter(self) -> Fitter:
        """Returns what refines finalists."""


def fitter_of(pool: Pool, workplace: Workplace) -> Fitter:
    """Returns what refines the finalists of a run: its workers, or this process."""
    return pool.fitter() if isinstance(pool, FittingPool) else LocalFitter(workplace)


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


def ray_pool(job: Job, workplace: Workplace) -> Pool:
    """Makes a pool of Ray's actors, see ray_pool.RayPool; Ray is imported where it is asked for."""
    from gptailor_merge.scoring.ray_pool import RayPool

    return RayPool(job, workplace)


LOCAL = "local"

RAY = "ray"


EXECUTORS: Mapping[str, PoolFactory] = Registry(
    "executor", "gptailor_merge.executors", {LOCAL: LocalPool, RAY: ray_pool}, ConfigError
)
"""Name -> factory, as `--executor` names it: this package's executors and those of other packages."""
