"""A prepared run gets its live parts: the family's weights, the objectives, the evaluators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.digests import digest
from gptailor_merge.repair.finalists import FinalistJudge
from gptailor_merge.runs.preparation import Preparation
from gptailor_merge.scoring.executor import Executor
from gptailor_merge.scoring.executor_pools import EXECUTORS, LOCAL, Pool
from gptailor_merge.scoring.gates import Gates
from gptailor_merge.scoring.hidden_states import HiddenStates
from gptailor_merge.scoring.measures import Measures
from gptailor_merge.scoring.workplace import BankMode, Job, Workplace, open_workplace
from gptailor_merge.search.front import check_rule
from gptailor_merge.search.settings import SearchSettings


@dataclass(frozen=True)
class RunSession:
    """The live parts of a run. Close it at the end, or use it as a context manager.

    Attributes:
        executor: scores plans on the calibration set.
        held_out: scores plans on the held-out set, or None where there is none.
        gates: None where the config has none.
        workplace: the live parts of this process: what is measured, and the composer.
        pool: the workers behind the executors.
    """

    executor: Executor
    held_out: Executor | None
    gates: Gates | None
    settings: SearchSettings
    workplace: Workplace
    pool: Pool

    @property
    def measures(self) -> Measures:
        """Everything that the run measures."""
        return self.workplace.measures

    @property
    def hidden(self) -> HiddenStates:
        """Measures hidden states on the calibration set."""
        return self.workplace.hidden

    @property
    def finalist_judge(self) -> FinalistJudge:
        """Judges and scores repaired recipes."""
        settings = self.settings
        return FinalistJudge(self.executor, self.gates, settings.weights, settings.axes, settings.fingerprint)

    def close(self) -> None:
        """Ends the workers."""
        self.pool.close()

    def __enter__(self) -> RunSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    preparation: Preparation,
    device: torch.device,
    *,
    bank: BankMode = "auto",
    executor: str = LOCAL,
    progress: Callable[[str], None] = lambda step: None,
) -> RunSession:
    """Loads the family, tokenises the texts, runs the teachers and starts the workers.

    Args:
        bank: where the family's weights live.
        executor: the name of the executor that scores plans, see scoring.executor_pools.
        progress: is told each step.

    Raises:
        ConfigError: there is no such executor, data or tasks are wrong, or search.pick names what no front of
            this search has.
    """
    make_pool = EXECUTORS[executor]
    config = preparation.config
    workplace = open_workplace(config, preparation.family, device, bank=bank, progress=progress)
    measured, base_scores = workplace.measures, workplace.base_scores
    settings = _settings(config, measured, f"{workplace.compute} {device.type}")
    check_rule(config.search.pick, settings.axes, preparation.space.sizes)
    pool = make_pool(Job.of(config, device, bank), workplace)
    gate_names = tuple(objective.name for objective in measured.gates.objectives)
    return RunSession(
        pool.executor("objectives"),
        pool.executor("held_out") if measured.held_out.objectives else None,
        Gates(pool.executor("gates"), gate_names, config.gates, base_scores) if config.gates else None,
        settings,
        workplace,
        pool,
    )


def _settings(config: SearchConfig, measured: Measures, computed: str) -> SearchSettings:
    """Returns how to search.

    Args:
        computed: the dtype and the kind of device that scores are computed with.
    """
    objectives = measured.searched.objectives
    weight_of = {o.name: c.weight for o, c in zip(objectives, config.objectives, strict=True)}
    weights = {name: weight for name, weight in weight_of.items() if weight is not None}
    parts: list[object] = [(o.name, o.fingerprint, weight_of[o.name]) for o in objectives]
    gates = zip(measured.gates.objectives, config.gates, strict=True)
    parts += [(o.name, o.fingerprint, c.at_most, c.at_least) for o, c in gates]
    return SearchSettings(
        optimizer=config.search.optimizer,
        budget=config.search.budget,
        population=config.search.population,
        seed=config.seed,
        weights=weights,
        axes=tuple(weight_of) if config.pareto else (),
        fingerprint=digest([parts, *computed.split()]),
        max_failures=config.search.max_failures,
        racing=config.search.racing,
    )
