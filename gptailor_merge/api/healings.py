"""Heals recipes: the family teaches the pruned model what was cut out of it."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gptailor_merge.api.arguments import AnyPath, ignore, path_of, read_recipe
from gptailor_merge.api.tunings import RECIPE as RECIPE
from gptailor_merge.api.tunings import pairs
from gptailor_merge.errors import ConfigError
from gptailor_merge.files import refuse_existing, staging
from gptailor_merge.healing.healed_recipe import HealedRecipe, heal_recipe
from gptailor_merge.healing.healer import HealOptions
from gptailor_merge.healing.processes import Processes, launched_processes
from gptailor_merge.healing.processes import is_main_process as is_main_process
from gptailor_merge.healing.used_texts import UsedTexts
from gptailor_merge.host.names_and_commands import RECIPE as MODEL_RECIPE
from gptailor_merge.models.devices import pick_device
from gptailor_merge.models.loading import check_8bit, load_tokenizer
from gptailor_merge.models.member import read_member
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.lock import locked_around
from gptailor_merge.runs.run import Run
from gptailor_merge.scoring.text_scores import named_files
from gptailor_merge.tracking.loss_feed import loss_feed
from gptailor_merge.tracking.registry import tracker_factories
from gptailor_merge.tracking.tracker import TrackerSettings

CHECKPOINTS = ".healing"
"""How the name of the directory of checkpoints ends, which lies beside `out` until training is over."""


def heal(
    recipe: AnyPath | Recipe | Run,
    data: Sequence[str],
    out: AnyPath,
    *,
    lora: int | None = 32,
    tokens: int = 500_000,
    minutes: float | None = None,
    rate: float | None = None,
    cross_entropy: float = 0.0,
    hidden_states: float = HealOptions.hidden_states,
    top_k: int = 128,
    column: str = "text",
    members: Mapping[str, str] | Iterable[str] = (),
    teachers: Mapping[str, str] | Iterable[str] = (),
    teachers_in_8bit: bool = False,
    step_tokens: int = HealOptions.step_tokens,
    sequence_length: int = 512,
    seed: int = 0,
    report_to: Sequence[str] = (),
    device: str = "auto",
    on_step: Callable[[str], None] = ignore,
) -> HealedRecipe:
    """Trains the model of a recipe to predict texts as the members of its family do.

    Training that was killed goes on from its last checkpoint when it is asked for again. Processes that
    `accelerate launch` has started train together; the main one alone writes `out` and calls `on_step`, and
    all return the same.

        healed = heal("runs/first", ["maths=train/maths.jsonl"], "healed")
        print(healed.healing.before, healed.healing.after)

    Args:
        recipe: a recipe, its file, a directory that a recipe lies in, such as that of a written model, or a
            run, whose best recipe it is; texts that the run was calibrated or measured on are refused.
        data: text files, each PATH or NAME=PATH; a text whose name is no member's is taught by the base.
        out: the directory to make, with recipe.yml, healed.json and the adapter, or the model where all
            weights are trained; it appears whole or not at all.
        lora: the rank of the adapter; None trains all weights.
        tokens: trained on in all; texts that have fewer are repeated.
        minutes: training ends after these, if not before.
        rate: the highest learning rate of AdamW; default 2e-3 for an adapter and 4e-4 for all weights.
        cross_entropy: the share of plain cross-entropy on the texts in the loss, 0 to 1; 1 asks no teacher.
        hidden_states: the weight of the distance of a few layers' inputs from the teacher's in the loss; 0
            compares predictions alone.
        top_k: how many of a teacher's likeliest tokens count one by one; the others count as one.
        column: field or column that holds the text or messages; see score.
        members: name -> model, of teachers that the recipe does not name; or texts NAME=MODEL.
        teachers: name of the data -> name of the member that teaches it, or texts NAME=MEMBER; by default
            the member that has the name of the data, or else the base.
        teachers_in_8bit: whether bitsandbytes holds the linear maps of the teachers in 8 bits.
        step_tokens: tokens of a step, approximately; fewer make more steps.
        sequence_length: tokens in a sequence.
        report_to: trackers that are told of the losses: trackio, wandb, tensorboard.
        device: auto, cpu, cuda or mps.
        on_step: called with a sentence on what is being done.

    Raises:
        RecipeError: the recipe is healed already, or a teacher is no member.
        DataError: texts that cannot be read, are too few, or were calibrated or measured on.
        ConfigError: `out` exists and is not an empty directory, an option has another form, a teacher has
            no text, or a tracker or bitsandbytes is unknown or not installed.
        ScoringError: memory does not suffice for one sequence.
    """
    if not 0 <= cross_entropy <= 1:
        raise ConfigError(f"--cross-entropy: expected a share from 0 to 1, found {cross_entropy}")
    if not 0 <= hidden_states < math.inf:
        raise ConfigError(f"--hidden-states: expected a weight of at least 0, found {hidden_states}")
    if rate is not None and not rate > 0:
        raise ConfigError(f"--rate: expected a number above 0, found {rate}")
    trackers = tracker_factories(report_to)
    options = HealOptions(
        rank=lora,
        tokens=tokens,
        minutes=minutes,
        rate=rate,
        cross_entropy=cross_entropy,
        hidden_states=hidden_states,
        top_k=top_k,
        step_tokens=step_tokens,
        sequence_length=sequence_length,
        teachers_in_8bit=teachers_in_8bit,
        seed=seed,
    )
    settings: TrackerSettings = {
        "method": options.method,
        "tokens": tokens,
        "rate": options.highest_rate,
        "seed": seed,
    }
    directory, on_device = path_of(out), pick_device(device)
    refuse_existing(directory)
    if teachers_in_8bit:
        check_8bit(on_device)
    processes = launched_processes(on_device)
    whole, file, used = _subject(recipe)
    checkpoints = directory.with_name(f".{directory.name}{CHECKPOINTS}")
    with (
        _written(directory, processes) as staged,
        loss_feed(trackers if processes.is_main else {}, staged, directory.name, settings) as report,
    ):
        result = heal_recipe(
            whole,
            named_files(data, column),
            directory,
            members=pairs("--member", "MODEL", members),
            teachers=pairs("--teacher", "MEMBER", teachers),
            file=file,
            staged=staged,
            checkpoints=checkpoints,
            options=options,
            refuse=used.refuse,
            device=on_device,
            progress=on_step if processes.is_main else ignore,
            report=report,
            processes=processes,
        )
        (staged / RECIPE).write_text(result.recipe.to_yaml(), encoding="utf-8")
        processes.wait()
    if processes.is_main:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return result


@contextmanager
def _written(out: Path, processes: Processes) -> Iterator[Path]:
    """Yields the directory that becomes `out`; what another process than the main one writes vanishes."""
    if processes.is_main:
        with locked_around(out), staging(out) as staged:
            yield staged
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


def _subject(recipe: AnyPath | Recipe | Run) -> tuple[Recipe, Path | None, UsedTexts]:
    """Returns the recipe to heal, its file, and the texts that its run has used."""
    if not isinstance(recipe, Recipe):
        run = recipe if isinstance(recipe, Run) else Run(path_of(recipe))
        if run.config.is_file():
            config = run.record().settings
            tokenizer = load_tokenizer(read_member("base", config.family.base).directory)
            return *read_recipe(run.best), UsedTexts.of(config, tokenizer)
        within = [run.path / name for name in (RECIPE, MODEL_RECIPE) if (run.path / name).is_file()]
        recipe = within[0] if within else run.path
    return *read_recipe(recipe), UsedTexts({})
