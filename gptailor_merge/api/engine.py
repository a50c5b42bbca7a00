"""Gathers the engine's parts in one place, for people who measure or extend it.

The names here are those of the modules that own them; they change when the engine does, unlike the names of
`gptailor_merge` itself. The benchmarks in benchmarks/ are built of them and of nothing further inside.
"""

from __future__ import annotations

from gptailor_merge.api.open_session import means_of, plan_of, point_of
from gptailor_merge.calibration.batches import RUNGS, Batch, layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.output_projections import exit_of
from gptailor_merge.composing.prefixes import path_of
from gptailor_merge.config import Operations
from gptailor_merge.host.exporting import export
from gptailor_merge.host.lowering import lower
from gptailor_merge.host.registration import register
from gptailor_merge.models.devices import compute_dtype, pick_device
from gptailor_merge.models.loading import load_model, load_tokenizer
from gptailor_merge.objectives.kl import build_kl
from gptailor_merge.objectives.protocols import Objective, Prediction
from gptailor_merge.objectives.scores import COSTS, Score, Scores, Weights, natural
from gptailor_merge.objectives.tasks.harness import encoder, task_manager
from gptailor_merge.objectives.tasks.likelihood import TaskLikelihood, likelihood_objective, takes_trees
from gptailor_merge.objectives.tasks.metric import CHOICE_LOSS
from gptailor_merge.objectives.tasks.task_items import TaskItems, TaskSettings, load_items
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.plan import PARTS
from gptailor_merge.repair.cuts import with_edit
from gptailor_merge.scoring.dividing import divide
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.passes import Passes, Values, extend, predictions_alone
from gptailor_merge.scoring.racing import Race
from gptailor_merge.scoring.ray_pool import RayPool
from gptailor_merge.scoring.workplace import Job
from gptailor_merge.search.baselines.subject import MERGES
from gptailor_merge.search.front import dominates
from gptailor_merge.search.optimizers.nevergrad import adapted
from gptailor_merge.search.optimizers.protocol import Optimizer, OptimizerFactory
from gptailor_merge.search.outcomes import loss
from gptailor_merge.space.points import Array, Point, at_offset, middle

__all__ = [
    "CHOICE_LOSS",
    "COSTS",
    "MERGES",
    "PARTS",
    "RUNGS",
    "Array",
    "Bank",
    "Batch",
    "Composer",
    "Evaluator",
    "Job",
    "Objective",
    "Operations",
    "Optimizer",
    "OptimizerFactory",
    "Outcome",
    "Passes",
    "Point",
    "Precision",
    "Prediction",
    "Race",
    "RayPool",
    "Score",
    "Scores",
    "TaskItems",
    "TaskLikelihood",
    "TaskSettings",
    "TokenSet",
    "Values",
    "Weights",
    "adapted",
    "at_offset",
    "build_kl",
    "check_with_family",
    "compute_dtype",
    "divide",
    "dominates",
    "encoder",
    "exit_of",
    "export",
    "extend",
    "layout",
    "likelihood_objective",
    "load_items",
    "load_model",
    "load_tokenizer",
    "loss",
    "lower",
    "means_of",
    "middle",
    "natural",
    "path_of",
    "pick_device",
    "plan_of",
    "point_of",
    "predictions_alone",
    "register",
    "takes_trees",
    "task_manager",
    "with_edit",
]
