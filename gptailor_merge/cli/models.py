"""The commands for one model: `gptailor merge`, `score`, `repair`, `tune`, `heal`, `eval` and `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptailor_merge.cli import printing, terminal
from gptailor_merge.cli.options import (
    Column,
    Device,
    Json,
    ModelOrRecipe,
    RecipeFile,
    SequenceLength,
    TeacherPairs,
    Texts,
    Tokens,
)
from gptailor_merge.cli.terminal import say
from gptailor_merge.documents import json_text


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(merge)
    app.command()(score)
    app.command()(repair)
    app.command()(tune)
    app.command()(heal)
    app.command(name="eval")(evaluate)
    app.command()(check)


def merge(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model directory to make.")],
) -> None:
    """Write the model of a recipe, and verify it by loading it back."""
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.models import materialize

    quiet_libraries()
    plan = materialize(recipe, out, on_warning=printing.warning)
    terminal.line(f"{out}: {len(plan.slots)} layers, reloaded, every tensor in place")


def score(
    model: ModelOrRecipe,
    data: Texts,
    column: Column = "text",
    tokens: Tokens = 32768,
    sequence_length: SequenceLength = 512,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A directory or Hub id; also print KL(reference || model)."),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="How many of the reference's likeliest tokens KL looks at.")
    ] = 128,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a recipe or a written model on texts: nats per token, perplexity, KL."""
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.scores import score as score_on_texts

    quiet_libraries()
    scores = score_on_texts(
        model,
        data,
        column=column,
        tokens=tokens,
        sequence_length=sequence_length,
        reference=reference,
        top_k=top_k,
        device=device,
    )
    if as_json:
        terminal.line(json_text(scores.to_json()))
    else:
        printing.text_scores(scores)


def repair(
    recipe: RecipeFile,
    data: Texts,
    out: Annotated[Path, typer.Option(help="The directory to make, with the repaired recipe and its maps.")],
    everywhere: Annotated[
        bool,
        typer.Option(
            "--everywhere/--at-cuts",
            help="Repair every layer, or only those behind which layers are missing, in less time.",
        ),
    ] = True,
    column: Column = "text",
    tokens: Tokens = 65536,
    sequence_length: SequenceLength = 512,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make up for removed layers by linear maps in the layers that are left; no training."""
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.repairs import RECIPE
    from gptailor_merge.api.repairs import repair as repair_recipe

    quiet_libraries()
    result = repair_recipe(
        recipe,
        data,
        out,
        column=column,
        everywhere=everywhere,
        tokens=tokens,
        sequence_length=sequence_length,
        device=device,
        on_step=say,
    )
    if as_json:
        terminal.line(json_text(result.to_json()))
    else:
        printing.repairs(result)
        terminal.line(f"recipe  {out / RECIPE}")


def tune(
    recipe: RecipeFile,
    data: Texts,
    out: Annotated[Path, typer.Option(help="The directory to make, with the tuned recipe and its gains.")],
    member: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="A variant to merge as well, which the recipe does not name. May be given several times.",
        ),
    ] = None,
    teacher: TeacherPairs = None,
    steps: Annotated[int, typer.Option(min=1, help="Most steps of Adam.")] = 60,
    weights: Annotated[
        str, typer.Option(metavar="SHARING", help="What shares a merge weight: layer, part or tensor.")
    ] = "part",
    norms: Annotated[bool, typer.Option(help="Fit the gains of the norms, too.")] = True,
    rate: Annotated[float, typer.Option(min=0.0, help="Adam's rate of the merge weights.")] = 0.03,
    outer: Annotated[
        bool | None,
        typer.Option(
            "--outer/--no-outer",
            help="Merge embeddings and head. Default: where the recipe does not take both from the base.",
        ),
    ] = None,
    column: Column = "text",
    tokens: Tokens = 65536,
    sequence_length: SequenceLength = 512,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fit a recipe's merge weights and the gains of its norms by gradient; all members take part."""
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.tunings import RECIPE
    from gptailor_merge.api.tunings import tune as tune_recipe

    quiet_libraries()
    result = tune_recipe(
        recipe,
        data,
        out,
        column=column,
        members=member or (),
        teachers=teacher or (),
        steps=steps,
        weights=weights,
        norms=norms,
        rate=rate,
        outer=outer,
        tokens=tokens,
        sequence_length=sequence_length,
        device=device,
        on_step=say,
    )
    if as_json:
        terminal.line(json_text(result.to_json()))
    else:
        printing.tuning(result)
        terminal.line(f"recipe  {out / RECIPE}")


def heal(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_RECIPE", help="A run directory, a recipe file, or a directory that one lies in."
        ),
    ],
    data: Texts,
    out: Annotated[Path, typer.Option(help="The directory to make, with the healed recipe.")],
    lora: Annotated[int, typer.Option(min=1, metavar="RANK", help="Train an adapter of this rank.")] = 32,
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights; no recipe can rebuild the model then.")
    ] = False,
    tokens: Annotated[
        int, typer.Option(min=2, help="Tokens to train on in all; texts that have fewer are repeated.")
    ] = 500_000,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="End after so many minutes, if not before.")
    ] = None,
    teacher: TeacherPairs = None,
    member: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODEL", help="A teacher that the recipe does not name."),
    ] = None,
    teachers_in_8bit: Annotated[
        bool, typer.Option("--teachers-in-8bit", help="Run the teachers in 8 bits, by bitsandbytes.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(min=0.0, help="The highest learning rate. Default: by method.")
    ] = None,
    cross_entropy: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of plain cross-entropy in the loss; 1 asks no teacher."),
    ] = 0.0,
    hidden_states: Annotated[
        float,
        typer.Option(
            min=0.0, help="Weight of the distance from the teacher's hidden states in the loss; 0 is none."
        ),
    ] = 10.0,
    top_k: Annotated[
        int, typer.Option(min=1, help="How many of a teacher's likeliest tokens count one by one.")
    ] = 128,
    column: Column = "text",
    step_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of a step, approximately; fewer make more steps.")
    ] = 1024,
    sequence_length: SequenceLength = 512,
    seed: Annotated[int, typer.Option(help="Of the order of the texts.")] = 0,
    report_to: Annotated[
        list[str] | None,
        typer.Option(metavar="TRACKER", help="Send the loss to tensorboard, trackio or wandb."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a pruned model to predict texts as the members of its family do.

    Training that was killed goes on from its last checkpoint when the same command is given again. On
    several GPUs: accelerate launch --num_processes N -m gptailor_merge heal …
    """
    from gptailor_merge.api.healings import RECIPE, is_main_process
    from gptailor_merge.api.healings import heal as heal_recipe
    from gptailor_merge.api.library_logs import quiet_libraries

    quiet_libraries()
    result = heal_recipe(
        recipe,
        data,
        out,
        lora=None if full else lora,
        tokens=tokens,
        minutes=minutes,
        rate=rate,
        cross_entropy=cross_entropy,
        hidden_states=hidden_states,
        top_k=top_k,
        column=column,
        members=member or (),
        teachers=teacher or (),
        teachers_in_8bit=teachers_in_8bit,
        step_tokens=step_tokens,
        sequence_length=sequence_length,
        seed=seed,
        report_to=report_to or (),
        device=device,
        on_step=say,
    )
    if not is_main_process():
        return
    if as_json:
        terminal.line(json_text(result.to_json()))
    else:
        printing.healing(result)
        terminal.line(f"recipe  {out / RECIPE}")


def evaluate(
    model: ModelOrRecipe,
    tasks: Annotated[
        list[str],
        typer.Option(metavar="TASK...", help="Tasks that lm-eval knows, or that --include-path adds."),
    ],
    include_path: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A directory with further tasks, YAML files as lm-eval has them."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Run this many items of each task, from its first.")
    ] = None,
    few_shot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each item. Default: the task's own number.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put the tokenizer's chat template around items.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of requests that run together.")] = 16,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run lm-eval's tasks on a model; of a recipe also on its members, with what it retains of them."""
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.scores import evaluate as run_tasks

    quiet_libraries()
    evaluation = run_tasks(
        model,
        tasks,
        include_path=include_path,
        limit=limit,
        few_shot=few_shot,
        chat_template=chat_template,
        batch_size=batch_size,
        device=device,
        on_step=say,
    )
    if as_json:
        terminal.line(json_text(evaluation.to_json()))
    else:
        printing.evaluation(evaluation)


def check(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A model directory.")],
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also convert it with llama.cpp and read the layers back.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell whether a directory is a sound model: files, config, weights, tokenizer, running it.

    Exits with 1 if it is not.
    """
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.models import check as examine

    quiet_libraries()
    report = examine(model, gguf=gguf)
    if as_json:
        terminal.line(json_text(report.to_json()))
    else:
        printing.report(report)
    if not report.sound:
        raise typer.Exit(1)
