"""A prepared run gets its live parts: the family's weights, the objectives, the evaluators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from gptailor_merge.composing.bank import Bank, Precision, belongs_on_host, cache_bytes
from gptailor_merge.composing.compose import Composer
from gptailor_merge.config import SearchConfig
from gptailor_merge.digests import digest
from gptailor_merge.models.devices import compute_dtype
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.runs.preparation import Preparation
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.gates import Gates
from gptailor_merge.scoring.hidden import HiddenStates
from gptailor_merge.scoring.measures import Measures, measures
from gptailor_merge.scoring.teachers import Teachers
from gptailor_merge.search.driver import Settings

BankMode = Literal["device", "host", "auto"]
"""The place of the family's weights: the device, host memory, or whichever has room."""


@dataclass(frozen=True)
class Session:
    """The live parts of a run.

    Attributes:
        evaluator: scores on the calibration set.
        held_out: scores on the held-out set; None if there is none.
        gates: None if the config has none.
        measures: what the evaluators score on.
        hidden: hidden states of models on the calibration set.
    """

    evaluator: Evaluator
    held_out: Evaluator | None
    gates: Gates | None
    settings: Settings
    measures: Measures
    hidden: HiddenStates


def start(
    preparation: Preparation,
    device: torch.device,
    *,
    bank: BankMode = "auto",
    progress: Callable[[str], None] = lambda step: None,
) -> Session:
    """Loads the family, tokenises the texts, and runs the teachers.

    Args:
        bank: where the family's weights live.
        progress: is told each step.
    """
    config, family = preparation.config, preparation.family
    out_dtype = preparation.space.out_dtype
    assert out_dtype is not None
    compute = compute_dtype(device, out_dtype)
    tokenizer = load_tokenizer(family.base.directory)
    progress("building the calibration set")
    teachers = Teachers(family, device, compute)
    measured = measures(config, tokenizer, teachers, getattr(torch, out_dtype))
    base_scores: Scores = {}
    if config.gates:
        base_scores = measured.gates.score(teachers.model("base"))
    teachers.release()
    progress("loading the family")
    on_host = belongs_on_host(family, compute, device) if bank == "auto" else bank == "host"
    precision = Precision.of(config.dtype, out_dtype, compute)
    weights = Bank(
        family, precision, device=device, on_host=on_host, cache_bytes=cache_bytes(family, compute, device)
    )
    weights.preload()
    composer = Composer(weights)
    return Session(
        Evaluator(composer, measured.searched),
        Evaluator(composer, measured.held_out) if measured.held_out.objectives else None,
        Gates(Evaluator(composer, measured.gates), config.gates, base_scores) if config.gates else None,
        _settings(config, measured, f"{compute} {device.type}"),
        measured,
        HiddenStates(composer, measured.searched.rungs),
    )


def _settings(config: SearchConfig, measured: Measures, computed: str) -> Settings:
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
    return Settings(
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
