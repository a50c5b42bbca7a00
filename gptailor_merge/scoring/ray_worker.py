"""Scores and refines in an actor of Ray: it has a GPU or some CPUs, and the family from its own disk."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import ray
import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.finalist_fits import SentFit, fit_on_worker
from gptailor_merge.scoring.generation import RungResult
from gptailor_merge.scoring.threads import threads
from gptailor_merge.scoring.workplace import Job, ScoredSection, composer

KEEPS_VISIBLE = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""The variable by which Ray is told to leave CUDA_VISIBLE_DEVICES as it is; clusters under Slurm set it."""


class RayWorker:
    """Scores plans on the rungs of a run's sections, and refines finalists."""

    def __init__(self, job: Job, passes: bytes) -> None:
        """Loads the family.

        Args:
            passes: section -> what it measures, as torch.save wrote it.
        """
        torch.set_num_threads(threads())
        device = own_device(job.device)
        config = SearchConfig.model_validate(job.config)
        family = Family.load(config.family.base, config.family.variants)
        compute = compute_dtype(device, config.out_dtype or stored_dtype(family.base))
        self._composer = composer(config, family, device, bank=job.bank, compute=compute)
        # The bytes come from the process that has started this one.
        measured = torch.load(io.BytesIO(passes), map_location=device, weights_only=False)
        self._evaluators = {section: Evaluator(self._composer, part) for section, part in measured.items()}

    def is_open(self) -> bool:
        """Answers when the family is loaded."""
        return True

    def score_rungs(self, section: ScoredSection, rungs: range, plans: Sequence[Plan]) -> list[RungResult]:
        """Returns what the plans have on the batches of the rungs together, in their order."""
        return self._evaluators[section].score_rungs(rungs, plans)

    def fit(self, fitting: bytes, plans: Sequence[Plan]) -> list[SentFit]:
        """Returns what becomes of plans that are refined, in their order."""
        return [fit_on_worker(self._composer, fitting, plan) for plan in plans]


def own_device(asked: str) -> torch.device:
    """Returns the device that Ray has given this actor, of the kind that the run asks for."""
    device = torch.device(asked)
    given: Any = ray.get_gpu_ids()
    if device.type != "cuda" or not given:
        return device
    if os.environ.get(KEEPS_VISIBLE, "0") in ("", "0"):
        return torch.device("cuda:0")  # Ray has made the given one the only one that is visible
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
    return torch.device(f"cuda:{numbers.index(str(given[0]))}")
