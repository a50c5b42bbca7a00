"""Materialises a recipe: mergekit writes its model to a directory, which is verified by loading it back."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from gptailor_merge.errors import MergeFailedError, log_warning
from gptailor_merge.files import refuse_existing, staging
from gptailor_merge.host.lowering import lower
from gptailor_merge.host.names_and_commands import RECIPE
from gptailor_merge.host.registration import register
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.family import Family
from gptailor_merge.models.reload import not_finite, reload
from gptailor_merge.models.stored_values import stored_heads, value_problem
from gptailor_merge.planning.check import OnWarning, check_with_family
from gptailor_merge.recipe.edits import with_whole_paths
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe

WRITTEN_FILES = (
    "model*.safetensors",
    "*.safetensors.index.json",
    "generation_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Patterns of files that a written model may have and another one may lack."""


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def materialize(
    recipe: Recipe,
    out: Path,
    *,
    file: Path | None = None,
    replace: bool = False,
    on_warning: OnWarning = log_warning,
) -> Plan:
    """Writes the model of a recipe to a new directory, and returns the recipe's plan.

    The directory appears whole or not at all. It holds weights, config, tokenizer, and the recipe as
    mergekit_config.yml.

    Args:
        file: the recipe's file, which is copied as it is.
        replace: replaces an existing directory once the new one is whole; one that was not written here, or
            that has other files in it, is kept as `out.replaced-N`.
        on_warning: is told what differs between the members, and what the result takes.

    Raises:
        ConfigError: `out` exists and is not an empty directory.
        RecipeError, FamilyError: see planning.check.
        MergeFailedError: mergekit failed, or the written model does not load back as it should.
    """
    plan, family = check_with_family(recipe, file=file, on_warning=on_warning)
    if not replace:
        refuse_existing(out)
    for sentence in stored_heads(family):
        on_warning(sentence)
    with staging(out, marker=RECIPE, leftovers=WRITTEN_FILES) as directory:
        _merge(plan, recipe, family, directory)
        (directory / RECIPE).write_text(_recipe_text(recipe, file, out), encoding="utf-8")
        try:
            verify(directory, plan)
        except MergeFailedError as error:
            # A member with NaN is the commonest cause, and its values are not read before a merge.
            cause = value_problem(family)
            raise MergeFailedError(f"{error}; {cause}") if cause else error from None
    return plan


def _recipe_text(recipe: Recipe, file: Path | None, out: Path) -> str:
    """Returns the recipe's file as it is, or with whole paths where its maps are not found from `out`."""
    if file is None:
        return recipe.to_yaml()
    whole = with_whole_paths(recipe, file.parent)
    if with_whole_paths(recipe, out) != whole:
        return whole.to_yaml()
    return file.read_text(encoding="utf-8")


def is_of(model: Path, recipe: Path) -> bool:
    """Tells whether a directory holds the model of this recipe file."""
    written = model / RECIPE
    return written.is_file() and written.read_text(encoding="utf-8") == recipe.read_text(encoding="utf-8")


def verify(directory: Path, plan: Plan) -> None:
    """Loads a written model as transformers does and compares it with its plan.

    Raises:
        MergeFailedError: tensors are missing, unexpected or mismatched, the depth is another, or values
            are not finite.
    """
    try:
        reloaded = reload(directory)
    except Exception as error:
        raise MergeFailedError(f"{directory}: the written model does not load: {error}") from error
    if reloaded.problems:
        raise MergeFailedError(f"{directory}: {reloaded.problems[0]}")
    if reloaded.extras:
        raise MergeFailedError(f"{directory}: {reloaded.extras[0]} was written and is no part of the model")
    depth = reloaded.model.config.get_text_config().num_hidden_layers
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
    # mergekit would merge adapters again, and recognise the result by the names of the paths alone; of a
    # repository it would download all weights, also those that are no part of the model.
    named = {member.model: ModelId.parse(member.model) for member in family.members}
    fetched = {
        member.model: member.directory
        for member in family.members
        if named[member.model].adapter or not named[member.model].is_local
    }
    lowered = lower(plan, chat_template=recipe.chat_template, directories=fetched)
    configuration = MergeConfiguration.model_validate(lowered)
    logging.getLogger("mergekit").setLevel(logging.ERROR)
    try:
        run_merge(configuration, str(directory), options)
    except Exception as error:
        raise MergeFailedError(f"mergekit could not merge: {type(error).__name__}: {error}") from error
    else:
        generation_config = donor / "generation_config.json"
        if generation_config.exists() and not (directory / generation_config.name).exists():
            shutil.copy(generation_config, directory)  # mergekit omits it if it sets a chat template
        if options.copy_tokenizer and not any((directory / name).exists() for name in _TOKENIZER_FILES):
            raise MergeFailedError("mergekit merged the weights and failed to write the tokenizer")
    finally:
        # mergekit keeps files open by path for the life of the process, and they may be replaced.
        LoaderCache().loaders.clear()
