"""Trains a model to predict what its teachers do: transformers' Trainer, with another loss."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from gptailor_merge.calibration.batches import Segment
from gptailor_merge.healing.lessons import ALONE, Lesson, Lessons
from gptailor_merge.healing.processes import Processes
from gptailor_merge.healing.states import distance
from gptailor_merge.objectives.kl import Reference, kl_divergence
from gptailor_merge.objectives.protocols import Prediction, log_likelihood
from gptailor_merge.time_left import time_left

LOOKS = 10
"""The lessons that are held apart are looked at this often, spread evenly over the steps."""


PATIENCE = 3
"""Training ends when this many looks in a row have found nothing better."""


WARMUP_SHARE = 0.05
"""The share of the steps in which the rate rises."""


Report = Callable[[int, Mapping[str, float]], None]
"""Takes a step and the losses there, nats per token, by name."""


def unreported(step: int, losses: Mapping[str, float]) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Course:
    """Says how a model is trained.

    Attributes:
        steps: most optimiser steps.
        rows: sequences of a step, of all processes together.
        rate: the highest learning rate of AdamW, which falls to zero along half a cosine.
        minutes: training ends after these; the rate then stays where it is after its rise.
        cross_entropy: the share of plain cross-entropy on the texts in the loss.
        hidden_states: the weight of the distance from the teacher's states, beside the divergence.
        seed: of the order of the lessons, and of an adapter's first weights.
    """

    steps: int
    rows: int
    rate: float
    minutes: float | None = None
    cross_entropy: float = 0.0
    hidden_states: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """Tells what training came to.

    Attributes:
        model: as it was best on the lessons held apart.
        before, after: the loss on these, nats per token.
        steps: optimiser steps that were taken.
        tokens: that went through the model in these.
        seconds: of training, without those of an earlier process.
    """

    model: nn.Module
    before: float
    after: float
    steps: int
    tokens: int
    seconds: float


def train(
    model: nn.Module,
    lessons: Lessons,
    directory: Path,
    course: Course,
    *,
    batch_rows: int,
    vocabulary: int,
    device: torch.device,
    progress: Callable[[str], None],
    report: Report = unreported,
    processes: Processes = ALONE,
) -> Trained:
    """Trains a model, going on from the last checkpoint in a directory if there is one.

    Args:
        directory: of checkpoints.
        batch_rows: sequences that go through the model together in a process; steps accumulate as many
            batches as it takes.
        vocabulary: tokens that can be predicted, counted from the first.
        report: told of the losses at each look.
        processes: that train together.
    """
    if processes.is_main:
        _remove_torn(directory)
    processes.wait()
    last = get_last_checkpoint(str(directory))
    looks = max(1, course.steps // LOOKS)
    on_gpu = device.type == "cuda"
    arguments = OneDeviceArguments(
        output_dir=str(directory),
        max_steps=course.steps,
        per_device_train_batch_size=batch_rows,
        per_device_eval_batch_size=batch_rows,
        gradient_accumulation_steps=max(1, course.rows // (batch_rows * processes.count)),
        learning_rate=course.rate,
        lr_scheduler_type="cosine" if course.minutes is None else "constant_with_warmup",
        warmup_steps=round(WARMUP_SHARE * course.steps),
        weight_decay=0.0,
        adam_beta2=0.99,  # tens or hundreds of steps, not thousands
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        use_cpu=device.type == "cpu",
        eval_strategy="steps",
        # Trainer.evaluate() before training would leave several processes without an exchange of gradients.
        eval_on_start=last is None,
        eval_steps=looks,
        save_strategy="steps",
        save_steps=looks,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=looks,
        report_to="none",
        include_num_input_tokens_seen=True,
        remove_unused_columns=False,
        label_names=["input_ids"],
        prediction_loss_only=True,
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
        seed=course.seed,
        data_seed=course.seed,
    )
    observer = _Observer(course, progress, report, processes)
    trainer = Distillation(
        model=model,
        args=arguments,
        train_dataset=lessons.taught,
        eval_dataset=lessons.apart,
        data_collator=_stacked,
        callbacks=[observer],
        course=course,
        layers=lessons.layers,
        vocabulary=vocabulary,
    )
    trainer.remove_callback(PrinterCallback)  # the observer says it
    begun = time.monotonic()
    trainer.train(resume_from_checkpoint=last)
    before, after = _losses(trainer.state, 0)["apart"], trainer.state.best_metric
    return Trained(
        model,
        before,
        before if after is None else after,
        trainer.state.global_step,
        trainer.state.num_input_tokens_seen,
        time.monotonic() - begun,
    )


class OneDeviceArguments(TrainingArguments):  # type: ignore[misc]
    """Settings under which a process trains on one device, however many there are."""

    @property
    def n_gpu(self) -> int:
        return min(1, int(super().n_gpu))


class Distillation(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is KL(teacher ‖ model) of the next token, mean over positions, in nats.

    The teacher's top k with the remaining mass, as kl.KullbackLeibler scores it; what is trained on adds the
    distance of hidden states. Lessons without a teacher have the cross-entropy of the text.
    """

    def __init__(self, *, course: Course, layers: Sequence[int], vocabulary: int, **settings: Any) -> None:
        """
        Args:
            layers: those whose inputs are compared with a teacher's.
        """
        super().__init__(**settings)
        self._course, self._layers, self._vocabulary = course, layers, vocabulary

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        ids = inputs["input_ids"]
        compared = self._layers if "states" in inputs else ()
        output = model(input_ids=ids, use_cache=False, output_hidden_states=bool(compared))
        rows = range(len(ids))
        logits = output.logits[:, :-1, : self._vocabulary]
        prediction = Prediction.of(Segment("", rows, rows), ids[:, 1:], logits)
        share = self._course.cross_entropy if "indices" in inputs else 1.0
        loss = torch.zeros((), device=ids.device)
        if share < 1:
            reference = Reference(inputs["indices"], inputs["log_probabilities"])
            loss = loss + (1 - share) * kl_divergence(reference, prediction).mean()
        if compared:
            states = [output.hidden_states[layer] for layer in compared]
            apart = distance(states, inputs["states"], inputs["scales"])
            loss = loss + (1 - share) * self._course.hidden_states * apart
        if share > 0:
            loss = loss - share * log_likelihood(prediction).mean()
        return (loss, output) if return_outputs else loss


class _Observer(TrainerCallback):  # type: ignore[misc]
    """Says how training goes, and ends it when it is no longer of use or its time is over."""

    def __init__(
        self, course: Course, progress: Callable[[str], None], report: Report, processes: Processes
    ) -> None:
        self._course, self._progress, self._report = course, progress, report
        self._processes = processes
        self._begun = time.monotonic()
        self._first = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._begun, self._first = time.monotonic(), state.global_step
        for step in sorted({entry["step"] for entry in state.log_history}):
            self._report(step, _losses(state, step))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        minutes = self._course.minutes
        if minutes is None:
            return
        if self._processes.agree(time.monotonic() - self._begun >= 60 * minutes):
            control.should_training_stop = control.should_evaluate = control.should_save = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        self._report(state.global_step, _losses(state, state.global_step))
        before, *looks = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if not looks:
            return
        best = min(range(len(looks)), key=looks.__getitem__)
        if len(looks) - 1 - best >= PATIENCE:
            control.should_training_stop = True
        self._progress(
            f"healing, step {state.global_step} of {state.max_steps}{self._left(state)}: "
            f"loss {looks[-1]:.4f}, before {before:.4f}"
        )

    def _left(self, state: TrainerState) -> str:
        taken = state.global_step - self._first
        seconds = (time.monotonic() - self._begun) / max(1, taken) * (state.max_steps - state.global_step)
        if self._course.minutes is not None:
            seconds = max(0.0, 60 * self._course.minutes - (time.monotonic() - self._begun))
        return time_left(seconds) if seconds else ""


def _losses(state: TrainerState, step: int) -> dict[str, float]:
    """Returns the losses of a step.

    They are `apart`, of the lessons held apart, and `taught`, the mean since the look before of what is
    minimised, hidden states included.
    """
    names = {"eval_loss": "apart", "loss": "taught"}
    entries = [entry for entry in state.log_history if entry["step"] == step]
    return {names[key]: value for entry in entries for key, value in entry.items() if key in names}


def _remove_torn(directory: Path) -> None:
    """Removes the checkpoints that the Trainer was killed in writing; the state is what it writes last."""
    while last := get_last_checkpoint(str(directory)) if directory.is_dir() else None:
        try:
            TrainerState.load_from_json(str(Path(last) / TRAINER_STATE_NAME))
        except (OSError, ValueError):
            shutil.rmtree(last)
        else:
            return


def _stacked(lessons: Sequence[Lesson]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([lesson[name] for lesson in lessons]) for name in lessons[0]}


def linear_maps(model: PreTrainedModel, layers: nn.ModuleList) -> list[str]:
    """Returns the names by which an adapter finds all linear maps inside the layers, and no others.

    They are the last parts of the names where nothing outside the layers is called so, and else whole names.
    """
    paths = {module: path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside = [paths[module] for module in layers.modules() if module in paths]
    short = {path.rpartition(".")[2] for path in inside}
    outside = {path.rpartition(".")[2] for path in paths.values() if path not in inside}
    return sorted(inside if short & outside else short)
