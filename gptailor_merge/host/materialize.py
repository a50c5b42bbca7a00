"""A recipe becomes a model directory, by mergekit, verified by loading it back."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from gptailor_merge.errors import MergeFailedError
from gptailor_merge.files import refuse_existing, staging
from gptailor_merge.host.lowering import lower
from gptailor_merge.host.mentions import RECIPE
from gptailor_merge.host.registration import register
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.family import Family
from gptailor_merge.models.reload import not_finite, reload
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def materialize(recipe: Recipe, out: Path, *, file: Path | None = None, replace: bool = False) -> Plan:
    """Write the model of a recipe to a new directory.

    The directory appears whole or not at all: it is written beside, verified, and renamed. It holds
    weights, config, the base's tokenizer, and the recipe as mergekit_config.yml.

    Args:
        file: the recipe's, copied as it is.
        replace: a directory that is there is replaced when the new one is whole.

    Raises:
        ConfigError: `out` exists and is not an empty directory.
        RecipeError, FamilyError: see recipe.check.
        MergeFailedError: mergekit failed, or the written model does not load back as it should.
    """
    plan, family = check_with_family(recipe, file=file)
    if not replace:
        refuse_existing(out)
    with staging(out) as directory:
        _merge(plan, recipe, family, directory)
        (directory / RECIPE).write_text(
            file.read_text(encoding="utf-8") if file else recipe.to_yaml(), encoding="utf-8"
        )
        verify(directory, plan)
    return plan


def is_of(model: Path, recipe: Path) -> bool:
    """Whether a directory holds the model of this recipe file."""
    written = model / RECIPE
    return written.is_file() and written.read_text(encoding="utf-8") == recipe.read_text(encoding="utf-8")


def verify(directory: Path, plan: Plan) -> None:
    """Load a written model as transformers does and compare it with its plan.

    Raises:
        MergeFailedError: missing, unexpected or mismatched tensors, another depth, values that are
            not finite.
    """
    try:
        reloaded = reload(directory)
    except Exception as error:
        raise MergeFailedError(f"{directory}: the written model does not load: {error}") from error
    if reloaded.problems:
        raise MergeFailedError(f"{directory}: {reloaded.problems[0]}")
    depth = reloaded.model.config.num_hidden_layers
    if depth != len(plan.slots):
        raise MergeFailedError(f"{directory}: {depth} layers, the recipe has {len(plan.slots)}")
    name = not_finite(directory.glob("*.safetensors"))
    if name:
        raise MergeFailedError(f"{directory}: {name} holds values that are not finite")


def _merge(plan: Plan, recipe: Recipe, family: Family, directory: Path) -> None:
    register()
    donor = family.by_model(plan.tokenizer).directory
    options = MergeOptions(
        write_model_card=False,
        quiet=True,
        copy_tokenizer=any((donor / name).exists() for name in _TOKENIZER_FILES),
    )
    # mergekit would merge adapters again, and know the result again by the paths' names alone.
    adapted = {m.model: m.directory for m in family.members if ModelId.parse(m.model).adapter}
    lowered = lower(plan, chat_template=recipe.chat_template, directories=adapted)
    configuration = MergeConfiguration.model_validate(lowered)
    logging.getLogger("mergekit").setLevel(logging.ERROR)
    try:
        run_merge(configuration, str(directory), options)
    except Exception as error:
        raise MergeFailedError(f"mergekit could not merge: {type(error).__name__}: {error}") from error
    else:
        given = donor / "generation_config.json"
        if given.exists() and not (directory / given.name).exists():
            shutil.copy(given, directory)  # mergekit forgets it where it sets a chat template
        if options.copy_tokenizer and not any((directory / name).exists() for name in _TOKENIZER_FILES):
            raise MergeFailedError("mergekit merged the weights and failed to write the tokenizer")
    finally:
        # mergekit keeps files open by path for the life of the process; they may be replaced.
        LoaderCache().loaders.clear()
