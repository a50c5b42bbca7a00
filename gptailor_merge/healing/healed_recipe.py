"""Heals a recipe: a recipe and texts go in, the recipe with an adapter that was trained on them comes out."""

from __future__ import annotations

import copy
import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from gptailor_merge.calibration.texts import TokenSet, check_ids
from gptailor_merge.composing.adapter_places import with_adapter
from gptailor_merge.composing.memory import BatchSize, is_out_of_memory
from gptailor_merge.digests import digest
from gptailor_merge.errors import ScoringError
from gptailor_merge.healing.facts import HealingFacts
from gptailor_merge.healing.lessons import Lessons, lessons
from gptailor_merge.healing.training import Course, Trained, linear_maps, train
from gptailor_merge.models.architecture import body_of
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.config_types import DataSource
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.planning.check import check_with_family, refuse_healed
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.live_models import composer_of
from gptailor_merge.scoring.teachers import Teachers
from gptailor_merge.tuning.tuned_recipe import family_of, teacher_of
from gptailor_merge.versions import environment

ADAPTER = "adapter"
"""The name of the adapter's directory, beside the healed recipe."""


MODEL = "model"
"""The name of the directory of a model whose weights were all trained."""


KEY = "healing.json"
"""The name of the file beside checkpoints that tells what they belong to."""


LOGITS_BYTES = 2 * 1024**3
"""Bytes of float32 logits that a batch may have at first; where memory runs out, batches are halved."""


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
        top_k: how many of a teacher's likeliest tokens count one by one.
        step_tokens: tokens of a step, approximately.
        sequence_length: tokens that the model sees at once.
    """

    rank: int | None = 32
    tokens: int = 500_000
    minutes: float | None = None
    rate: float | None = None
    cross_entropy: float = 0.0
    top_k: int = 128
    step_tokens: int = 8192
    sequence_length: int = 512
    seed: int = 0
    report_to: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The word for it in files."""
        return "full" if self.rank is None else "lora"

    @property
    def course(self) -> Course:
        """The steps that these tokens are."""
        rows = max(1, self.step_tokens // self.sequence_length)
        return Course(
            steps=max(1, round(self.tokens / (rows * self.sequence_length))),
            rows=rows,
            rate=RATES[self.method] if self.rate is None else self.rate,
            minutes=self.minutes,
            cross_entropy=self.cross_entropy,
            seed=self.seed,
            report_to=self.report_to,
        )


@dataclass(frozen=True)
class HealedRecipe:
    """A recipe whose model was trained.

    Attributes:
        recipe: with the adapter; the recipe as it was, if training does not help or all weights were trained.
        facts: how the model was trained; None where training does not help.
        before, after: the loss on sequences that were not trained on, nats per token.
        steps: optimiser steps that were taken.
        parameters: numbers that were trained.
    """

    recipe: Recipe
    facts: HealingFacts | None
    before: float
    after: float
    steps: int
    parameters: int

    @property
    def helps(self) -> bool:
        """True where the trained model is better."""
        return self.facts is not None

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor heal --json` prints."""
        facts = None if self.facts is None else self.facts.to_public()
        numbers = {"before": self.before, "after": self.after, "steps": self.steps}
        return {"helps": self.helps, **numbers, "parameters": self.parameters, "facts": facts}


def heal_recipe(
    recipe: Recipe,
    data: Mapping[str, DataSource],
    out: Path,
    *,
    members: Mapping[str, str],
    teachers: Mapping[str, str],
    file: Path | None = None,
    staged: Path | None = None,
    checkpoints: Path,
    options: HealOptions,
    refuse: Callable[[Sequence[TokenSet]], None] = lambda sets: None,
    device: torch.device,
    progress: Callable[[str], None] = lambda step: None,
) -> HealedRecipe:
    """Trains the model of a recipe to predict texts as members do.

    Args:
        data: name -> texts.
        out: the directory of the adapter, as the healed recipe names it.
        members: name -> model, of teachers that the recipe does not name.
        teachers: name of the data -> name of the member that predicts them; by default the member that
            has the name of the data, or else the base.
        file: the recipe's file, for messages.
        staged: the directory that is written to, if it is to be renamed to `out` later.
        checkpoints: the directory of checkpoints, from which training goes on after it was killed; the
            caller removes it.
        refuse: raises an error for texts that must not be trained on.
        progress: told what is being done.

    Raises:
        RecipeError: the recipe is healed already, or a teacher is no member.
        FamilyError: members do not fit together, or do not share the tokens of the texts.
        DataError: texts that cannot be read, or too few.
        ScoringError: memory does not suffice for one sequence.
    """
    plan, _ = check_with_family(recipe, file=file)
    refuse_healed(plan, file)
    family = family_of(recipe, members, file)
    taught = {name: teacher_of(name, teachers, family, file) for name in data}
    directory = family.by_model(plan.tokenizer).directory
    tokenizer, course = load_tokenizer(directory), options.course
    sets = token_sets(data, tokenizer, options.tokens, options.sequence_length)
    check_ids(sets, family.by_model(plan.tokenizer).vocabulary_size, plan.tokenizer)
    refuse(sets)
    if (given := sum(token_set.tokens for token_set in sets)) < options.tokens * 0.95:
        progress(f"the texts have {given:,} tokens, fewer than {options.tokens:,}: they are repeated")
    out_dtype = recipe.out_dtype or recipe.dtype or stored_dtype(family.base)
    runner = Teachers(family, device, compute_dtype(device, out_dtype))
    asked = {} if options.cross_entropy == 1 else taught
    if asked:
        progress("running the teachers")
    course_lessons = lessons(
        sets, {name: runner.get(who) for name, who in asked.items()}, top_k=options.top_k, device=device
    )
    runner.release()
    _prepare(
        checkpoints, digest([plan.digest, [s.digest for s in sets], asked, asdict(options), environment()])
    )
    trained = _trained(
        recipe, plan, family, course_lessons, checkpoints, options, device=device, progress=progress
    )
    parameters = sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
    if not trained.after < trained.before:
        return HealedRecipe(recipe, None, trained.before, trained.before, trained.steps, parameters)
    facts = HealingFacts(
        method="full" if options.rank is None else "lora",
        texts={token_set.name: token_set.digest for token_set in sets},
        tokens=trained.steps * course.rows * options.sequence_length,
        seconds=round(trained.seconds, 1),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        teachers=asked,
        rank=options.rank,
    )
    healed = recipe
    written = staged or out
    if isinstance(trained.model, PeftModel):
        _write_adapter(trained.model, written / ADAPTER)
        healed = with_adapter(recipe, written / ADAPTER, name=str(out / ADAPTER))
    else:
        _write_model(trained.model, tokenizer, written / MODEL, getattr(torch, out_dtype))
    facts.write(written)
    return HealedRecipe(healed, facts, trained.before, trained.after, trained.steps, parameters)


def _trained(
    recipe: Recipe,
    plan: Plan,
    family: Family,
    course_lessons: Lessons,
    checkpoints: Path,
    options: HealOptions,
    *,
    device: torch.device,
    progress: Callable[[str], None],
) -> Trained:
    """Trains; where memory runs out, with half as many sequences at once."""
    composed = composer_of(recipe, family, device).compose(plan)
    vocabulary = int(composed.config.get_text_config().vocab_size)
    row_bytes = 4 * vocabulary * options.sequence_length
    rows = max(1, min(options.course.rows, LOGITS_BYTES // row_bytes))
    rows = 2 ** int(math.log2(rows))

    def run(batch_rows: int) -> Trained:
        set_seed(options.seed)
        return train(
            _student(composed, options),
            course_lessons,
            checkpoints,
            options.course,
            batch_rows=batch_rows,
            vocabulary=min(vocabulary, family.base.vocabulary_size),
            device=device,
            progress=progress,
        )

    try:
        return BatchSize(rows).run(run, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    less = "shorter sequences" if options.rank is not None else "shorter sequences, or an adapter (--lora),"
    raise ScoringError(
        f"memory does not suffice to train on one sequence of {options.sequence_length} tokens; {less} "
        "would take less"
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


def _write_adapter(model: PeftModel, directory: Path) -> None:
    """Writes the adapter as peft does, without the place where its model was."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = None
    model.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)


def _write_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path, dtype: torch.dtype
) -> None:
    assert isinstance(model, PreTrainedModel)
    model.to(dtype).save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
