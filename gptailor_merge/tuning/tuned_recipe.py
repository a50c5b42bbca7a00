"""Tunes a recipe: a recipe and texts go in, a recipe with fitted merge weights and gains comes out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch

from gptailor_merge.calibration.texts import check_ids
from gptailor_merge.composing.editing import GAINS_FILE
from gptailor_merge.errors import ConfigError, RecipeError
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import BASE_NAME, Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.config_types import DataSource
from gptailor_merge.objectives.kinds import Context
from gptailor_merge.objectives.kl import KLConfig
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.planning.check import check_with_family, refuse_healed, with_files
from gptailor_merge.planning.slot_replacement import with_plan
from gptailor_merge.recipe.model_names import identity, tidy, with_one_name_each
from gptailor_merge.recipe.plan import NORMS, Edit, Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.live_models import composer_of
from gptailor_merge.scoring.teachers import Teachers
from gptailor_merge.tuning.tuner import Aim, TuneOptions, Tuner, Tuning


@dataclass(frozen=True)
class TunedRecipe:
    """A recipe with fitted merge weights.

    Attributes:
        recipe: the tuned recipe; the recipe as it was, if tuning does not help.
        tuning: what it came to.
        fitted_tokens: the number of tokens that it was fitted to.
    """

    recipe: Recipe
    tuning: Tuning
    fitted_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor tune --json` prints."""
        tuning = self.tuning
        return {
            "helps": tuning.helps,
            "before": tuning.before,
            "after": tuning.after,
            "steps": tuning.fit.steps,
            "fitted_tokens": self.fitted_tokens,
            "tokens": tuning.fit.tokens,
        }


def tune_recipe(
    recipe: Recipe,
    data: Mapping[str, DataSource],
    out: Path,
    *,
    members: Mapping[str, str],
    teachers: Mapping[str, str],
    file: Path | None = None,
    staged: Path | None = None,
    state: Path | None = None,
    options: TuneOptions,
    tokens: int,
    sequence_length: int,
    device: torch.device,
    progress: Callable[[str], None] = lambda step: None,
) -> TunedRecipe:
    """Fits a recipe's merge weights, and the gains of its norms, to what members predict of texts.

    Args:
        data: name -> texts.
        out: the directory of the gains, as the tuned recipe names it.
        members: name -> model, of variants that slots may be merged of besides those that the recipe names;
            the latter are called by the last part of their path or id.
        teachers: name of the data -> name of the member that predicts them; by default the member that
            has the name of the data, or else the base.
        file: the recipe's file, for messages.
        tokens: the number of tokens in all, shared evenly by the texts; every fourth sequence is held back.
        state: the file in which the fit keeps its state, see Tuner.tune.
        staged: the directory that the gains are written to, if it is to be renamed to `out` later.
        progress: told what is being done.

    Raises:
        RecipeError: a teacher is no member, a norm's gain cannot be set, or the recipe is healed.
        FamilyError: members do not fit together.
        DataError: texts that cannot be read, or too few.
    """
    recipe = with_files(recipe, file)
    plan, _ = check_with_family(recipe, file=file)
    refuse_healed(plan, file)
    recipe, family = with_one_name_each(recipe), family_of(recipe, members, file)
    taught = teachers_of(data, teachers, family, file)
    out_dtype = recipe.out_dtype or recipe.dtype or stored_dtype(family.base)
    runner = Teachers(family, device, compute_dtype(device, out_dtype))
    directory = family.by_model(plan.tokenizer).directory
    context = Context(
        tokenizer=load_tokenizer(directory),
        directory=directory,
        teacher=runner.get,
        device=device,
        out_dtype=getattr(torch, out_dtype),
    )
    objective = KLConfig(
        kind="kl", data=dict(data), teacher=taught, tokens=tokens, sequence_length=sequence_length
    )
    sets = token_sets(data, context.tokenizer, tokens, sequence_length)
    check_ids(sets, family.by_model(plan.tokenizer).vocabulary_size, plan.tokenizer)
    progress("running the teachers")
    aims = [Aim(objective, 1.0, sets)]
    tuner = Tuner(aims, context, options)
    runner.release()
    composer = composer_of(recipe, family, device)
    tuned, tuning = tuner.tune(composer, plan, staged or out, GAINS_FILE, progress, state)
    if tuning.helps:
        recipe = with_plan(recipe, _moved(tuned, out))
    return TunedRecipe(recipe, tuning, tuner.tokens)


def family_of(recipe: Recipe, members: Mapping[str, str], file: Path | None) -> Family:
    """Loads the models of a recipe, and members that it does not name.

    Raises:
        RecipeError: a member is the base, or another member.
        FamilyError: members do not fit together.
    """
    recipe, members = with_one_name_each(recipe), _members(recipe, members, file)
    named = [model for model in recipe.models if model not in (recipe.base_model, *members.values())]
    return Family.load(recipe.base_model, {**_short_names(named, {*members, BASE_NAME}), **members})


def _members(recipe: Recipe, members: Mapping[str, str], file: Path | None) -> dict[str, str]:
    """Returns name -> model, as the recipe calls the model if it does.

    Raises:
        RecipeError: a member is the base, or another member.
    """
    called = {identity(model): model for model in with_one_name_each(recipe).models}
    named: dict[str, str] = {}
    for name, model in members.items():
        model = called.setdefault(identity(model), tidy(model))
        if model == recipe.base_model or model in named.values():
            raise RecipeError(f"the member {name}, {model}, is the base or another member", file=file)
        named[name] = model
    return named


def _short_names(models: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Returns name -> model: the last part of the model's path or id, where that tells it from the others."""
    last = [PurePath(model).name for model in models]
    return {
        model if last.count(name) > 1 or name in taken else name: model
        for name, model in zip(last, models, strict=True)
    }


def teachers_of(
    data: Iterable[str], teachers: Mapping[str, str], family: Family, file: Path | None
) -> dict[str, str]:
    """Returns name of the data -> name of the member that teaches them.

    Raises:
        RecipeError: a teacher is no member.
        ConfigError: a teacher has no data.
    """
    known, names = [member.name for member in family.members], list(data)
    for name, teacher in teachers.items():
        if teacher not in known:
            raise RecipeError(
                f"the teacher {teacher!r} is no member; known are {', '.join(known)}", file=file
            )
        if name not in names:
            raise ConfigError(f"--teacher: {name!r} is no text; the texts are {', '.join(names)}")
    return {name: teachers.get(name, name if name in known else BASE_NAME) for name in names}


def _moved(plan: Plan, out: Path) -> Plan:
    """Returns a plan whose gains are in another directory."""

    def moved(edit: Edit) -> Edit:
        return replace(edit, file=str(out / GAINS_FILE)) if edit.part == NORMS else edit

    return plan.with_edits(moved)
