"""Tunes recipes: merge weights and the gains of norms are fitted by gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from gptailor_merge.api.arguments import AnyPath, ignore, path_of, read_recipe
from gptailor_merge.errors import ConfigError
from gptailor_merge.files import refuse_existing, staging
from gptailor_merge.models.devices import pick_device
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.lock import locked_around
from gptailor_merge.scoring.text_scores import named_files
from gptailor_merge.tuning.groups import SHARINGS, Sharing
from gptailor_merge.tuning.tuned_recipe import TunedRecipe, tune_recipe
from gptailor_merge.tuning.tuner import TuneOptions

RECIPE = "recipe.yml"
"""The file name of a tuned recipe, beside its gains."""

STATE = ".tuning.safetensors"
"""How the name of the file ends in which a fit keeps its state until it is done; it lies beside `out`."""


def tune(
    recipe: AnyPath | Recipe,
    data: Sequence[str],
    out: AnyPath,
    *,
    column: str = "text",
    members: Mapping[str, str] | Iterable[str] = (),
    teachers: Mapping[str, str] | Iterable[str] = (),
    steps: int = 60,
    weights: str = "part",
    norms: bool = True,
    rate: float = 0.03,
    outer: bool | None = None,
    tokens: int = 65536,
    sequence_length: int = 512,
    device: str = "auto",
    on_step: Callable[[str], None] = ignore,
) -> TunedRecipe:
    """Fits a recipe's merge weights and the gains of its norms to what members predict of texts.

    A fit that was killed goes on where it was when it is asked for again.

        tuned = tune("runs/first/best.yml", ["maths=calibration/maths.jsonl"], "tuned")
        print(tuned.tuning.before, tuned.tuning.after)

    Args:
        recipe: a recipe, or its file; each of its layers becomes a merge of all members.
        data: text files, each PATH or NAME=PATH.
        column: field or column that holds the text or messages; see score.
        out: the directory to make, with recipe.yml and the gains; it appears whole or not at all.
        members: name -> model, of variants that the recipe does not name; or texts NAME=MODEL.
        teachers: name of the data -> name of the member whose predictions are the aim, or texts
            NAME=MEMBER; by default the member that has the name of the data, or else the base.
        steps: most steps of Adam; fitting stops earlier where texts held back gain no more.
        weights: the tensors that share a merge weight: layer, part or tensor.
        norms: whether the gains of norms are fitted, too. Without them, the result is a recipe alone, which
            `gptailor recipe export --plain` turns into a configuration of mergekit.
        rate: Adam's rate of the merge weights.
        outer: whether embeddings and head are merged as well; by default they are where the recipe does
            not take both from the base.
        tokens: total number of tokens, shared evenly by the files; a quarter is held back.
        sequence_length: tokens in a sequence.
        device: auto, cpu, cuda, cuda:N or mps.
        on_step: called with a sentence on what is being done.

    Raises:
        RecipeError: a teacher is no member, or a norm's gain cannot be set.
        DataError: texts that cannot be read, or too few.
        ConfigError: `out` exists and is not an empty directory, or an option has another form.
    """
    options = TuneOptions(steps, _sharing(weights), norms, rate, outer)
    directory = path_of(out)
    refuse_existing(directory)
    state = directory.with_name(f".{directory.name}{STATE}")
    whole, file = read_recipe(recipe)
    with locked_around(directory), staging(directory) as staged:
        result = tune_recipe(
            whole,
            named_files(data, column),
            directory,
            members=pairs("--member", "MODEL", members),
            teachers=pairs("--teacher", "MEMBER", teachers),
            file=file,
            staged=staged,
            state=state,
            options=options,
            tokens=tokens,
            sequence_length=sequence_length,
            device=pick_device(device),
            progress=on_step,
        )
        (staged / RECIPE).write_text(result.recipe.to_yaml(), encoding="utf-8")
    state.unlink(missing_ok=True)
    return result


def _sharing(weights: str) -> Sharing:
    if weights not in SHARINGS:
        raise ConfigError(f"--weights: expected {', '.join(SHARINGS)}, found {weights!r}")
    return cast(Sharing, weights)


def pairs(option: str, value: str, given: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Reads options of the form NAME=VALUE."""
    if isinstance(given, Mapping):
        return dict(given)
    pairs = {}
    for text in given:
        name, separator, named = text.partition("=")
        if not (name and separator and named):
            raise ConfigError(f"{option}: expected NAME={value}, found {text!r}")
        pairs[name] = named
    return pairs
