"""Heals plans: trains the model of a plan to predict texts as its teachers do."""

from __future__ import annotations

import copy
import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, set_seed

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.memory import BatchSize, is_out_of_memory
from gptailor_merge.digests import digest
from gptailor_merge.errors import ConfigError, ScoringError
from gptailor_merge.healing.facts import HealingFacts
from gptailor_merge.healing.lessons import ALONE, Lessons, lessons
from gptailor_merge.healing.processes import Processes
from gptailor_merge.healing.states import NOWHERE, places_of
from gptailor_merge.healing.training import Course, Report, Trained, linear_maps, train, unreported
from gptailor_merge.models.architecture import body_of
from gptailor_merge.objectives.protocols import TeacherForward
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.versions import environment

ADAPTER = "adapter"
"""The name of the adapter's directory, beside the healed recipe."""


KEY = "healing.json"
"""The name of the file beside checkpoints that tells what they belong to."""


LOGITS_BYTES = 2 * 1024**3
"""Bytes of float32 logits that a batch may have at first; where memory runs out, batches are halved."""


ENOUGH = 0.95
"""The share of the tokens that are asked for from which on texts count as having them."""


RATES = {"lora": 2e-3, "full": 4e-4}
"""Learning rates by method, see benchmarks/README.md."""


@dataclass(frozen=True)
class HealOptions:
    """Says how a recipe is healed.

    Attributes:
        rank: of the adapter; None trains all weights.
        tokens: trained on in all; texts that have fewer are repeated.
        minutes: training ends after these, if not before.
        rate: the highest learning rate; None takes that of RATES.
        cross_entropy: the share of plain cross-entropy in the loss; 1 asks no teacher.
        hidden_states: the weight of the distance of a few layers' inputs from the teacher's, which is added
            to the divergence; 0 compares predictions alone.
        top_k: how many of a teacher's likeliest tokens count one by one.
        step_tokens: tokens of a step, approximately.
        sequence_length: tokens that the model sees at once.
        teachers_in_8bit: whether bitsandbytes holds the linear maps of the teachers in 8 bits.
    """

    rank: int | None = 32
    tokens: int = 500_000
    minutes: float | None = None
    rate: float | None = None
    cross_entropy: float = 0.0
    hidden_states: float = 10.0
    top_k: int = 128
    step_tokens: int = 1024
    sequence_length: int = 512
    teachers_in_8bit: bool = False
    seed: int = 0

    @property
    def method(self) -> Literal["lora", "full"]:
        """The word for it in files."""
        return "full" if self.rank is None else "lora"

    @property
    def highest_rate(self) -> float:
        """The learning rate after warming up."""
        return RATES[self.method] if self.rate is None else self.rate

    def course(self, processes: int = 1) -> Course:
        """Returns the steps that these tokens are; each process takes equally many sequences of a step."""
        few = min(self.step_tokens, self.tokens) // self.sequence_length
        rows = processes * _power_of_two(few // processes)  # whole batches, also halved ones
        return Course(
            steps=max(1, round(self.tokens / (rows * self.sequence_length))),
            rows=rows,
            rate=self.highest_rate,
            minutes=self.minutes,
            cross_entropy=self.cross_entropy,
            hidden_states=self.hidden_states,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Healing:
    """Tells what healing a plan came to.

    Attributes:
        model: as it was best on sequences that were not trained on.
        facts: how it was trained; None where training does not help.
        before, after: the loss on these sequences, nats per token.
        steps: optimiser steps that were taken.
        tokens: trained on.
        parameters: numbers that were trained.
    """

    model: nn.Module
    facts: HealingFacts | None
    before: float
    after: float
    steps: int
    tokens: int
    parameters: int


def heal_plan(
    plan: Plan,
    composer: Composer,
    sets: Sequence[TokenSet],
    out: Path,
    *,
    taught: Mapping[str, str],
    teacher: Callable[[str], tuple[str, TeacherForward]],
    release: Callable[[], None] = lambda: None,
    checkpoints: Path,
    options: HealOptions,
    progress: Callable[[str], None],
    report: Report = unreported,
    processes: Processes = ALONE,
) -> Healing:
    """Trains the model of a plan; writes its adapter, if it has one, and the facts, where that helps.

    Args:
        sets: the texts to train on.
        out: the directory that is written to.
        taught: name of a text -> name of its teacher.
        teacher: name of a member -> (digest, forward pass).
        release: called when no teacher is needed any more.
        checkpoints: the directory of checkpoints, from which training goes on after it was killed; the
            caller removes it.
        progress: told what is being done.
        report: told of the losses.
        processes: that train together; each is called with the same arguments but for `out`, and returns
            the same.

    Raises:
        ConfigError: the device is not the first GPU, which the Trainer takes.
        DataError: a text has a single sequence.
        FamilyError: a teacher has other tokens than the texts.
        ScoringError: memory does not suffice for one sequence.
    """
    given, device = sum(token_set.tokens for token_set in sets), composer.device
    check_device(device)
    if given < options.tokens * ENOUGH:
        progress(f"the texts have {given:,} tokens, fewer than {options.tokens:,}: they are repeated")
    asked = {} if options.cross_entropy == 1 else taught
    if asked:
        progress("running the teachers")
    by_text = {name: teacher(who) for name, who in asked.items()}
    taught_by = {name: member for name, (member, _) in by_text.items()}
    key = [plan.digest, [s.digest for s in sets], taught_by, asdict(options), environment()]
    if processes.is_main:
        _prepare(checkpoints, digest(key if processes.count == 1 else [*key, processes.count]))
    processes.wait()
    base = composer.bank.family.base
    course_lessons = lessons(
        sets,
        by_text,
        top_k=options.top_k,
        places=places_of(plan.kept, base.text_config) if options.hidden_states else NOWHERE,
        device=device,
        processes=processes,
        directory=checkpoints,
    )
    release()
    trained = _trained(plan, composer, course_lessons, checkpoints, options, progress, report, processes)
    parameters = sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
    facts = None
    if trained.after < trained.before:
        facts = HealingFacts(
            method=options.method,
            texts={token_set.name: token_set.digest for token_set in sets},
            tokens=trained.tokens,
            seconds=round(trained.seconds, 1),
            device=_name_of(device, processes.count),
            teachers=asked,
            teachers_in_8bit=options.teachers_in_8bit and bool(asked),
            rank=options.rank,
        )
        if isinstance(trained.model, PeftModel):
            _write_adapter(trained.model, out / ADAPTER)
        facts.write(out)
    after = trained.before if facts is None else trained.after
    return Healing(trained.model, facts, trained.before, after, trained.steps, trained.tokens, parameters)


def _trained(
    plan: Plan,
    composer: Composer,
    course_lessons: Lessons,
    checkpoints: Path,
    options: HealOptions,
    progress: Callable[[str], None],
    report: Report,
    processes: Processes,
) -> Trained:
    """Trains; where memory runs out, with half as many sequences at once.

    Several processes do not try again, since one that has memory left would wait for the others for ever.
    """
    composed = composer.compose(plan)
    vocabulary = int(composed.config.get_text_config().vocab_size)
    row_bytes = 4 * vocabulary * options.sequence_length
    course = options.course(processes.count)
    rows = _power_of_two(min(course.rows // processes.count, LOGITS_BYTES // row_bytes))

    def run(batch_rows: int) -> Trained:
        set_seed(options.seed)
        return train(
            _student(composed, options),
            course_lessons,
            checkpoints,
            course,
            batch_rows=batch_rows,
            vocabulary=min(vocabulary, composer.bank.family.base.vocabulary_size),
            device=composer.device,
            progress=progress,
            report=report,
            processes=processes,
        )

    try:
        return BatchSize(rows).run(run, composer.device) if processes.count == 1 else run(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    less = "shorter sequences" if options.rank is not None else "shorter sequences, or an adapter (--lora),"
    at_once = "one sequence" if processes.count == 1 else f"{rows} sequences"
    raise ScoringError(
        f"memory does not suffice to train on {at_once} of {options.sequence_length} tokens; {less} "
        f"would take less{'' if processes.count == 1 else ', and so would more processes, or a single one'}"
    )


def _student(composed: PreTrainedModel, options: HealOptions) -> nn.Module:
    """Returns a copy of a model that is trained whole, or through an adapter."""
    model = copy.deepcopy(composed)
    if options.rank is None:
        whole: nn.Module = model.float().requires_grad_(True)
        return whole
    config = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        target_modules=linear_maps(model, body_of(model).layers),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for gradient checkpointing by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted: nn.Module = get_peft_model(model, config)
    return adapted


def _prepare(checkpoints: Path, key: str) -> None:
    """Makes the directory of checkpoints; removes those that belong to something else."""
    file = checkpoints / KEY
    known = None
    if file.is_file():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            known = None
    if known != key and checkpoints.exists():
        shutil.rmtree(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(key), encoding="utf-8")


def check_device(device: torch.device) -> None:
    """Refuses a GPU that the Trainer would not train on.

    Raises:
        ConfigError: the device is another GPU than the first.
    """
    if device.index:
        raise ConfigError(
            f"training runs on the first GPU that is visible; expected --device cuda with "
            f"CUDA_VISIBLE_DEVICES={device.index}, found {device}"
        )


def _name_of(device: torch.device, count: int) -> str:
    """Returns the name of the device; that of several GPUs begins with their number."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if count == 1 else f"{count} × {name}"


def _power_of_two(number: int) -> int:
    """Returns the largest power of two that is not above a number, and at least 1."""
    return int(2 ** int(math.log2(max(1, number))))


def _write_adapter(model: PeftModel, directory: Path) -> None:
    """Writes the adapter as peft does, without the place where its model was."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = None
    model.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)
