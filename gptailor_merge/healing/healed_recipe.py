"""Heals a recipe: a recipe and texts go in, the recipe with an adapter that was trained on them comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.calibration.texts import TokenSet, check_ids
from gptailor_merge.composing.adapter_places import with_adapter
from gptailor_merge.healing.healer import ADAPTER, Healing, HealOptions, heal_plan
from gptailor_merge.healing.lessons import ALONE
from gptailor_merge.healing.processes import Processes
from gptailor_merge.healing.training import Report, unreported
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.models.member import Member
from gptailor_merge.objectives.config_types import DataSource
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.planning.check import check_with_family, refuse_healed, with_files
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.live_models import composer_of
from gptailor_merge.scoring.teachers import Teachers, refuse_other_tokens
from gptailor_merge.tuning.tuned_recipe import family_of, teachers_of

MODEL = "model"
"""The name of the directory of a model whose weights were all trained."""


@dataclass(frozen=True)
class HealedRecipe:
    """A recipe whose model was trained.

    Attributes:
        recipe: with the adapter; the recipe as it was, if training does not help or all weights were trained.
        healing: what it came to.
    """

    recipe: Recipe
    healing: Healing

    @property
    def helps(self) -> bool:
        """True where the trained model is better."""
        return self.healing.facts is not None

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor heal --json` prints."""
        healing = self.healing
        numbers = {"before": healing.before, "after": healing.after, "steps": healing.steps}
        facts = None if healing.facts is None else healing.facts.to_public()
        return {"helps": self.helps, **numbers, "parameters": healing.parameters, "facts": facts}


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
    report: Report = unreported,
    processes: Processes = ALONE,
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
        report: told of the losses.
        processes: that train together, see healer.heal_plan; weights are written by the main one alone.

    Raises:
        RecipeError: the recipe is healed already, or a teacher is no member.
        FamilyError: members do not fit together, or do not share the tokens of the texts.
        DataError: texts that cannot be read, or too few.
        ScoringError: memory does not suffice for one sequence.
    """
    recipe = with_files(recipe, file)
    plan, _ = check_with_family(recipe, file=file)
    refuse_healed(plan, file)
    family = family_of(recipe, members, file)
    taught = teachers_of(data, teachers, family, file)
    directory = family.by_model(plan.tokenizer).directory
    tokenizer = load_tokenizer(directory)
    sets = token_sets(data, tokenizer, options.tokens, options.sequence_length)
    check_ids(sets, family.by_model(plan.tokenizer).vocabulary_size, plan.tokenizer)
    refuse(sets)
    if options.cross_entropy < 1:
        _refuse_other_readers(sets, family.by_model(plan.tokenizer), taught, family)
    silent = [m.name for m in family.members[1:] if m.name not in taught.values()]
    if silent and options.cross_entropy < 1:
        progress(f"no text is taught by {' or '.join(silent)}; --data MEMBER=FILE gives a member one")
    out_dtype = recipe.out_dtype or recipe.dtype or stored_dtype(family.base)
    runner = Teachers(family, device, compute_dtype(device, out_dtype), in_8bit=options.teachers_in_8bit)
    written = staged or out
    healing = heal_plan(
        plan,
        composer_of(recipe, family, device),
        sets,
        written,
        taught=taught,
        teacher=runner.get,
        release=runner.release,
        checkpoints=checkpoints,
        options=options,
        progress=progress,
        report=report,
        processes=processes,
    )
    if healing.facts is not None:
        if options.rank is not None:
            recipe = with_adapter(recipe, written / ADAPTER, name=str(out / ADAPTER))
        elif processes.is_main:
            _write_model(healing.model, tokenizer, written / MODEL, getattr(torch, out_dtype))
    return HealedRecipe(recipe, healing)


def _refuse_other_readers(
    sets: Sequence[TokenSet], reader: Member, taught: Mapping[str, str], family: Family
) -> None:
    """Refuses teachers to which a token of their texts is another one.

    Args:
        reader: the member whose tokenizer has read the texts.
        taught: name of a text -> name of its teacher.

    Raises:
        FamilyError: names the teacher and the token.
    """
    for token_set in sets:
        teacher = family.by_name(taught[token_set.name])
        assert teacher is not None
        refuse_other_tokens(reader.tokens, teacher.tokens, teacher.name, torch.cat(token_set.sequences))


def _write_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path, dtype: torch.dtype
) -> None:
    assert isinstance(model, PreTrainedModel)
    model.to(dtype).save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
