"""Opens a model directory or a recipe as a live model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.composing.bank import Bank, Precision, belongs_on_host
from gptailor_merge.composing.compose import Composer
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_model, load_tokenizer
from gptailor_merge.models.member import Member
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.recipe import Recipe


@dataclass(frozen=True)
class LiveModel:
    """A model that runs, and the directory that its tokenizer is in."""

    model: PreTrainedModel
    tokenizer_directory: Path

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer that goes with the model."""
        return load_tokenizer(self.tokenizer_directory)


def tokenizer_of(path: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model directory, or of the model of a recipe file, and no weights.

    It warns of nothing; open_model does, which follows.

    Raises:
        RecipeError, FamilyError: see open_model.
    """
    if path.is_dir():
        return load_tokenizer(Family.load(str(path), {}).base.directory)
    plan, family = check_with_family(Recipe.load(path), file=path, on_warning=lambda sentence: None)
    return load_tokenizer(family.by_model(plan.tokenizer).directory)


def open_model(path: Path, device: torch.device) -> LiveModel:
    """Loads a model directory, or composes the model of a recipe file.

    Raises:
        RecipeError, FamilyError: the file is no sound recipe, or the directory holds no such model.
    """
    if path.is_dir():
        return open_member(Family.load(str(path), {}).base, device)
    return open_recipe(Recipe.load(path), device, file=path)


def open_member(member: Member, device: torch.device) -> LiveModel:
    """Loads a dense model as it is, in the dtype that scoring computes in."""
    dtype = compute_dtype(device, stored_dtype(member))
    return LiveModel(load_model(member.directory, dtype, device), member.directory)


def open_recipe(recipe: Recipe, device: torch.device, *, file: Path | None = None) -> LiveModel:
    """Composes the model of a recipe; nothing is written.

    Args:
        file: the recipe's file, for messages.

    Raises:
        RecipeError, FamilyError: see check_with_family.
    """
    plan, family = check_with_family(recipe, file=file)
    model = composer_of(recipe, family, device).compose(plan)
    return LiveModel(model, family.by_model(plan.tokenizer).directory)


def composer_of(recipe: Recipe, family: Family, device: torch.device) -> Composer:
    """Returns a composer in the precision of a recipe, over the recipe's family."""
    out_dtype = recipe.out_dtype or recipe.dtype or stored_dtype(family.base)
    compute = compute_dtype(device, out_dtype)
    precision = Precision.of(recipe.dtype, recipe.out_dtype, compute)
    on_host = belongs_on_host(family, compute, device)
    return Composer(Bank(family, precision, device=device, on_host=on_host))
