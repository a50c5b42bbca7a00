"""The pool of a run whose work is done by a crew, whatever cluster the crew is on."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.crew import Crew
from gptailor_merge.scoring.crew_fitter import CrewFitter
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.generation import RungResult, score_generation
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.scoring.racing import Race
from gptailor_merge.scoring.workplace import ScoredSection, Workplace


class CrewPool:
    """Scores and refines by a crew; see FittingPool."""

    def __init__(self, crew: Crew, workplace: Workplace) -> None:
        self._crew, self._workplace = crew, workplace

    def executor(self, section: ScoredSection) -> CrewExecutor:
        """Returns what scores plans on a section."""
        return CrewExecutor(self._crew, section, self._workplace.passes(section))

    def fitter(self) -> CrewFitter:
        """Returns what refines finalists."""
        return CrewFitter(self._crew)

    def close(self) -> None:
        """Ends the crew's workers."""
        self._crew.close()


class CrewExecutor:
    """Scores plans on one section."""

    def __init__(self, crew: Crew, section: ScoredSection, passes: Passes) -> None:
        self._crew, self._section, self._passes = crew, section, passes

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]:
        """Returns the outcomes in the order of the plans; races are judged in this process."""
        return score_generation(self, self._passes, plans, race)

    def score_rungs(self, rungs: range, plans: Sequence[Plan]) -> list[RungResult]:
        """Returns what the plans have on the batches of the rungs together, in their order."""
        return self._crew.score_rungs(self._section, rungs, plans)
