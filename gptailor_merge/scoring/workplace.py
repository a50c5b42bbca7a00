"""Turns a search config into the live parts that score plans, in this process or in a worker elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from gptailor_merge.composing.bank import Bank, Precision, belongs_on_host, cache_bytes
from gptailor_merge.composing.compose import Composer
from gptailor_merge.config import SearchConfig
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.scoring.batch_size import batch_tokens
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.executor import Executor
from gptailor_merge.scoring.gates import Gates
from gptailor_merge.scoring.hidden_states import HiddenStates
from gptailor_merge.scoring.measures import Measures, measures
from gptailor_merge.scoring.passes import Measured, Passes
from gptailor_merge.scoring.teachers import Teachers

BankMode = Literal["device", "host", "auto"]
"""Says where the family's weights live: on the device, in host memory, or on the device if there is room."""


Workers = int | Literal["auto"]
"""Says how many workers score; auto means as many as there are GPUs, or CPUs where there is none."""


ScoredSection = Literal["objectives", "gates", "held_out"]
"""Names the section of a search config whose measures plans are scored on."""


@dataclass(frozen=True)
class Workplace:
    """The live parts of this process: a family, what is measured, and what composes its models.

    The family's weights are loaded when the composer is first asked for. Where plans are scored and refined
    elsewhere and no layer's influence is measured, nothing is healed and no prompt is continued, they never
    are.

    Attributes:
        config: the search config, with the size of batches that was found on this device.
        teachers: the dense members.
        measures: the objectives of each section, with their batches on the device.
        base_measured: the units that the base model has on the gates; empty without gates.
        compute: the dtype of forward passes.
        progress: told of each step that takes long.
    """

    config: SearchConfig
    family: Family
    device: torch.device
    bank: BankMode
    teachers: Teachers
    measures: Measures
    base_measured: Measured
    compute: torch.dtype
    progress: Callable[[str], None]

    @cached_property
    def composer(self) -> Composer:
        """Composes models of the family, whose weights it holds."""
        self.progress("loading the family")
        return composer(self.config, self.family, self.device, bank=self.bank, compute=self.compute)

    @cached_property
    def hidden(self) -> HiddenStates:
        """Measures hidden states on the calibration set."""
        return HiddenStates(lambda: self.composer, self.measures.searched.rungs)

    def passes(self, section: ScoredSection) -> Passes:
        """Returns the objectives of a section, with their batches."""
        by_section: Mapping[ScoredSection, Passes] = {
            "objectives": self.measures.searched,
            "gates": self.measures.gates,
            "held_out": self.measures.held_out,
        }
        return by_section[section]

    def evaluator(self, section: ScoredSection) -> Evaluator:
        """Returns an evaluator that scores plans on a section in this process."""
        return Evaluator(self.composer, self.passes(section))

    def gates(self, executor: Executor) -> Gates:
        """Returns what keeps plans out by their scores on the section `gates`.

        Args:
            executor: scores plans on that section, in this process or elsewhere.
        """
        names = tuple(objective.name for objective in self.measures.gates.objectives)
        racing = self.config.search.racing is not False
        passes = self.measures.gates
        of_base = passes.scores(self.base_measured)
        return Gates(executor, names, self.config.gates, of_base, self.base_measured, passes, racing)


@dataclass(frozen=True)
class Job:
    """Tells a worker anywhere what to score plans on; it can be pickled.

    Attributes:
        config: the resolved search config as plain data.
        device: the device as torch names it; a worker may use another of the same type.
        bank: where the family's weights live.
        workers: how many workers there are to be, where there are several; "auto" is all that there is room
            for.
        address: of the cluster that they are on; None starts them on this machine.
    """

    config: Mapping[str, Any]
    device: str
    bank: BankMode = "auto"
    workers: Workers = "auto"
    address: str | None = None

    @classmethod
    def of(
        cls,
        config: SearchConfig,
        device: torch.device,
        bank: BankMode = "auto",
        workers: Workers = "auto",
        address: str | None = None,
    ) -> Job:
        """Describes the scoring of one run."""
        return cls(config.document(), str(device), bank, workers, address)

    def open(self, progress: Callable[[str], None] = lambda step: None) -> Workplace:
        """Builds the live parts in the process that calls it."""
        config = SearchConfig.model_validate(self.config)
        family = Family.load(config.family.base, config.family.variants)
        device = torch.device(self.device)
        return open_workplace(config, family, device, bank=self.bank, progress=progress)


def open_workplace(
    config: SearchConfig,
    family: Family,
    device: torch.device,
    *,
    bank: BankMode = "auto",
    progress: Callable[[str], None] = lambda step: None,
) -> Workplace:
    """Tokenises the texts, reads the tasks and runs the teachers.

    Args:
        bank: where the family's weights live.
        progress: told of each step that takes long.

    Raises:
        ConfigError: data or tasks that are wrong, see measures.
    """
    out_dtype = _out_dtype(config, family)
    compute = compute_dtype(device, out_dtype)
    tokenizer = load_tokenizer(family.base.directory)
    progress("building the calibration set")
    teachers = Teachers(family, device, compute)
    size = batch_tokens(config, family, teachers, compute)
    config = config.model_copy(update={"batch_tokens": size})
    measured = measures(config, tokenizer, teachers, getattr(torch, out_dtype), size)
    of_base = measured.gates.measure_alone(teachers.model("base")) if config.gates else {}
    teachers.release()
    return Workplace(config, family, device, bank, teachers, measured, of_base, compute, progress)


def composer(
    config: SearchConfig, family: Family, device: torch.device, *, bank: BankMode, compute: torch.dtype
) -> Composer:
    """Loads a family's weights and returns what composes models of them.

    Args:
        bank: where the weights live.
        compute: the dtype of forward passes.
    """
    on_host = belongs_on_host(family, compute, device) if bank == "auto" else bank == "host"
    weights = Bank(
        family,
        Precision.of(config.dtype, _out_dtype(config, family), compute),
        device=device,
        on_host=on_host,
        cache_bytes=cache_bytes(family, compute, device, on_host=on_host),
    )
    weights.preload()
    return Composer(weights)


def _out_dtype(config: SearchConfig, family: Family) -> str:
    return config.out_dtype or stored_dtype(family.base)
