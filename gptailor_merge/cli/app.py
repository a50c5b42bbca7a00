"""The commands. They parse, call, and print; what they do is elsewhere."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from gptailor_merge import __version__
from gptailor_merge.cli import hub as hub_cli
from gptailor_merge.cli import printing
from gptailor_merge.cli import reports as report_cli
from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.cli.recipes import recipe_app
from gptailor_merge.errors import TailorError, errors_in

app = typer.Typer(
    help="Prune a family of language models by removing, selecting and merging their layers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(recipe_app, name="recipe")
hub_cli.register(app)
report_cli.register(app)


evolve_app = typer.Typer(pretty_exceptions_enable=False)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]


def main() -> None:
    """`gptailor`"""
    _run(app)


def evolve_main() -> None:
    """`gptailor-evolve`"""
    _run(evolve_app)


def _run(command: typer.Typer) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # of lm-eval's bars; read when tqdm is imported
    sys.argv[1:] = _spread(sys.argv[1:])
    try:
        command()
    except TailorError as error:
        Console(stderr=True).print(
            f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise SystemExit(error.exit_code) from None


_LISTS = ("--data", "--candidates", "--start", "--tasks", "--report-to")
"""Options that take several values."""


def _spread(arguments: list[str]) -> list[str]:
    """`--data a b` -> `--data a --data b`; click takes one value for an option."""
    spread: list[str] = []
    listing = None
    for argument in arguments:
        if listing and not argument.startswith("-") and spread[-1] != listing:
            spread.append(listing)
        if argument.startswith("-"):
            listing = argument if argument in _LISTS else None
        spread.append(argument)
    return spread


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@evolve_app.command()
def evolve(
    config: Annotated[Path, typer.Argument(help="The search config, a YAML file.")],
    out: Annotated[Path, typer.Option(help="The run directory to make.")],
    budget: Annotated[int | None, typer.Option(min=1, help="Candidates; replaces search.budget.")] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces seed.")] = None,
    device: Device = "auto",
    bank: Annotated[
        Literal["device", "host", "auto"],
        typer.Option(help="Where the family's weights live; auto is on the device where there is room."),
    ] = "auto",
    racing: Annotated[
        bool | None, typer.Option("--racing/--no-racing", help="Replaces search.racing.")
    ] = None,
    start: Annotated[
        list[Path] | None, typer.Option(help="Recipes to start from; replaces search.start.")
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(help="Recipe of a front: knee, best:OBJECTIVE, layers=N; replaces search.pick."),
    ] = None,
    allow_test_split: Annotated[
        bool, typer.Option("--allow-test-split", help="Search on tasks' test splits; every report says so.")
    ] = False,
    no_repair: Annotated[
        bool, typer.Option("--no-repair", help="Do not repair the best recipes; repair.finalists: 0.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    no_model: Annotated[bool, typer.Option("--no-model", help="Write the recipe, not the model.")] = False,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", help="Publish the model at the end.")] = False,
    hub_model_id: Annotated[str | None, typer.Option(help="USER/NAME of the repository.")] = None,
    hub_private_repo: Annotated[
        bool, typer.Option("--hub-private-repo", help="Make the repository private.")
    ] = False,
    hub_revision: Annotated[str | None, typer.Option(help="A branch of the repository.")] = None,
    license_: hub_cli.License = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="Trackers: trackio, wandb, tensorboard; default none.")
    ] = None,
) -> None:
    """Search a family for the best pruned model, and write it."""
    from gptailor_merge.config import SearchConfig
    from gptailor_merge.host.materialize import is_of, materialize
    from gptailor_merge.models.devices import pick_device
    from gptailor_merge.recipe.recipe import Recipe
    from gptailor_merge.report.page import write_report
    from gptailor_merge.runs.execution import execute
    from gptailor_merge.runs.run import Run
    from gptailor_merge.tracking.feed import tracker_feed
    from gptailor_merge.tracking.registry import tracker_factories

    quiet_libraries()
    trackers = tracker_factories(report_to or ())
    settings = SearchConfig.load(config).override(
        budget=budget,
        seed=seed,
        racing=racing,
        start=start or (),
        pick=pick,
        allow_test_split=allow_test_split,
        repair=not no_repair,
    )
    publication = hub_cli.publication(
        push_to_hub,
        hub_model_id,
        private=hub_private_repo,
        revision=hub_revision,
        licence=license_,
        no_model=no_model,
    )
    run = Run(out)
    chosen = pick_device(device)
    if publication is not None:
        publication.check(settings)
    progress = _progress(settings.search.budget)
    with tracker_feed(trackers, run.path, settings) as feed, progress as (on_step, on_candidate):
        summary = execute(
            settings,
            run,
            chosen,
            resume=resume,
            bank=bank,
            file=config,
            on_step=on_step,
            on_candidate=feed.after(on_candidate),
        ).summary()
        feed.keep_results(summary)
        if not no_model and not is_of(run.model, run.best):
            on_step("writing the model")
            materialize(Recipe.load(run.best), run.model, file=run.best, replace=True)
    report = write_report(run)
    printing.summary(summary)
    typer.echo(f"recipe  {run.best}")
    if not no_model:
        typer.echo(f"model   {run.model}  (written by mergekit, reloaded, every tensor in place)")
    typer.echo(f"report  {report}")
    if publication is not None:
        hub_cli.tell(publication.publish(run, hub_cli.say))


@app.command()
def baseline(
    name: Annotated[str, typer.Argument(help="one_shot, shortgpt, uidl, sleb, laco, evopress or random.")],
    config: Annotated[Path, typer.Argument(help="The search config, a YAML file.")],
    out: Annotated[Path, typer.Option(help="The run directory to make.")],
    budget: Annotated[
        int | None, typer.Option(min=1, help="Candidates of evopress and random; replaces search.budget.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces seed.")] = None,
    device: Device = "auto",
    member: Annotated[str | None, typer.Option(help="The member that is pruned; default the base.")] = None,
    merge_method: Annotated[
        str | None,
        typer.Option("--merge", help="Prune a merge of all members: linear, task_arithmetic or ties."),
    ] = None,
    allow_test_split: Annotated[
        bool, typer.Option("--allow-test-split", help="Search on tasks' test splits; every report says so.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Prune by somebody else's method, to the size and by the objectives of a search config."""
    from gptailor_merge.config import SearchConfig
    from gptailor_merge.models.devices import pick_device
    from gptailor_merge.runs.execution import execute
    from gptailor_merge.runs.preparation import prepare
    from gptailor_merge.runs.run import Run
    from gptailor_merge.search.baselines.choice import Choice

    quiet_libraries()
    choice = Choice(name, member, merge_method)
    method = choice.method
    settings = SearchConfig.load(config).override(budget=budget, seed=seed, allow_test_split=allow_test_split)
    with errors_in(config):
        space = prepare(settings).space
    run, chosen = Run(out), pick_device(device)
    with _progress(method.candidates(space, settings.search.budget)) as (on_step, on_candidate):
        summary = execute(
            settings,
            run,
            chosen,
            resume=resume,
            file=config,
            baseline=choice,
            on_step=on_step,
            on_candidate=on_candidate,
        ).summary()
    printing.summary(summary)
    typer.echo(f"recipe  {run.best}")


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe, merge_method: tailor.")],
    out: Annotated[Path, typer.Argument(help="The model directory to make.")],
) -> None:
    """Write the model of a recipe, and verify it by loading it back."""
    from gptailor_merge.host.materialize import materialize
    from gptailor_merge.recipe.recipe import Recipe

    quiet_libraries()
    plan = materialize(Recipe.load(recipe), out, file=recipe)
    typer.echo(f"{out}: {len(plan.slots)} layers, reloaded, every tensor in place")


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="A recipe, or a model directory.")],
    data: Annotated[
        list[str],
        typer.Option(help="Texts to score on: .jsonl or .txt files, [bold]name=path[/] to name one."),
    ],
    tokens: Annotated[int, typer.Option(min=2, help="In all, shared evenly by the files.")] = 32768,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens in a sequence.")] = 512,
    reference: Annotated[
        str | None, typer.Option(help="Directory or Hub id; adds KL(reference || model).")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Likeliest tokens kept of the reference.")] = 128,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a recipe or a written model on texts: nats per token, perplexity, KL."""
    from gptailor_merge.models.devices import pick_device
    from gptailor_merge.scoring.text_scores import score_on_texts

    quiet_libraries()
    scores = score_on_texts(
        model,
        data,
        tokens=tokens,
        sequence_length=sequence_length,
        reference=reference,
        top_k=top_k,
        device=pick_device(device),
    )
    result = scores.to_json()
    if as_json:
        typer.echo(json.dumps(result))
        return
    rows = {**result["files"], "total": result["total"]}
    columns = list(result["total"])
    printing.numbers("", columns, {name: [row[c] for c in columns] for name, row in rows.items()})


@app.command()
def repair(
    recipe: Annotated[Path, typer.Argument(help="A recipe, merge_method: tailor.")],
    data: Annotated[
        list[str], typer.Option(help="Texts to fit to: .jsonl or .txt files, [bold]name=path[/] to name one.")
    ],
    out: Annotated[Path, typer.Option(help="The directory to make, with the recipe and its maps.")],
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Also behind slots where no layer is missing.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=2, help="In all, shared evenly by the files.")] = 32768,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens in a sequence.")] = 512,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make up for removed layers by a linear map in the last layer before each cut; no training."""
    from gptailor_merge.files import refuse_existing, staging
    from gptailor_merge.models.devices import pick_device
    from gptailor_merge.recipe.recipe import Recipe
    from gptailor_merge.repair.repaired_recipe import RECIPE, repair_recipe
    from gptailor_merge.scoring.text_scores import named_files

    quiet_libraries()
    refuse_existing(out)
    console = Console(stderr=True)
    with staging(out) as directory:
        made = repair_recipe(
            Recipe.load(recipe),
            named_files(data),
            out,
            file=recipe,
            staged=directory,
            everywhere=everywhere,
            tokens=tokens,
            sequence_length=sequence_length,
            device=pick_device(device),
            progress=lambda step: console.print(step, markup=False, highlight=False),
        )
        (directory / RECIPE).write_text(made.recipe.to_yaml(), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(made.to_json()))
        return
    printing.repairs(made)
    typer.echo(f"recipe  {out / RECIPE}")


@app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL_OR_RECIPE", help="A recipe, or a model directory.")],
    tasks: Annotated[list[str], typer.Option(help="Tasks of lm-eval, or of --include-path.")],
    include_path: Annotated[
        Path | None, typer.Option(help="A directory with further tasks, YAML files of lm-eval.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first items of each task only.")] = None,
    few_shot: Annotated[int | None, typer.Option(min=0, help="Replaces the tasks' own.")] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put the tokenizer's chat template around items.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that run together.")] = 16,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run lm-eval's tasks on a model; of a recipe also on its members, with what it retains of them."""
    from gptailor_merge.models.devices import pick_device
    from gptailor_merge.scoring.task_scores import LmEvalSettings, score_on_tasks

    quiet_libraries()
    settings = LmEvalSettings(tuple(tasks), include_path, limit, few_shot, chat_template, batch_size)
    console = Console(stderr=True)
    evaluation = score_on_tasks(
        model,
        settings,
        pick_device(device),
        progress=lambda step: console.print(step, markup=False, highlight=False),
    )
    if as_json:
        typer.echo(json.dumps(evaluation.to_json()))
    else:
        printing.evaluation(evaluation)


@app.command()
def check(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A model directory.")],
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also convert it with llama.cpp and read the layers back.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Whether a directory is a sound model: files, config, weights, tokenizer, running it.

    Exits with 1 where it is not.
    """
    from gptailor_merge.checking.soundness import examine

    quiet_libraries()
    report = examine(model, gguf=gguf)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        printing.report(report)
    if not report.sound:
        raise typer.Exit(1)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A run directory of gptailor-evolve.")],
    pareto: Annotated[bool, typer.Option("--pareto", help="Show the whole front.")] = False,
    pick: Annotated[
        str | None, typer.Option(help="Show this recipe of the front: knee, best:OBJECTIVE, layers=N.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a run has found so far."""
    from gptailor_merge.runs.run import Run

    summary = Run(run).summary(pick)
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
        return
    if pareto:
        printing.front(summary)
        return
    printing.summary(summary)
    typer.echo(f"recipe  {summary.recipe}")


@contextmanager
def _progress(budget: int) -> Iterator[tuple[Callable[[str], None], Callable[[Any], None]]]:
    """A live bar on a terminal, else a line for each step and each best candidate."""
    from gptailor_merge.cli.progress import live, plain

    console = Console(stderr=True)
    with live(console, budget) if console.is_terminal else plain(console, budget) as callbacks:
        yield callbacks
