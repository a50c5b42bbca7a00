"""What the commands print for people: tables in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

TOTAL = "total"


def show(drawn: Any) -> None:
    """To the terminal, or with room for everything to a file."""
    Console(width=None if sys.stdout.isatty() else 160).print(drawn)


def numbers(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    """A table of numbers, a row for each name; a total of one thing is that thing."""
    if len(columns) == 2 and columns[-1] == TOTAL:
        columns, rows = columns[:1], {name: values[:1] for name, values in rows.items()}
    table = _table("", *columns, title=title)
    for name, values in rows.items():
        table.add_row(name, *map(_number, values))
    show(table)


def summary(made: Any) -> None:
    """What a run has found: search.run.Summary."""
    counts = made.counts
    if made.baseline is not None:
        typer.echo(f"baseline  {made.baseline}")
    loss = "" if made.front else f"  loss {made.loss:.4f}"
    typer.echo(
        f"{'picked' if made.front else 'best  '}  {made.digest}{loss}  "
        f"({counts.candidates} candidates, {counts.failures} failed, {counts.gated} kept out, "
        f"{counts.duplicates} duplicates, {counts.dropped} dropped early, {counts.repaired} repaired, "
        f"{counts.tokens:,} tokens scored in {counts.seconds:.0f} s)"
    )
    for objective, values in made.scores.items():
        numbers(f"calibration set: {objective}", list(values), {"found": list(values.values())})
    on_front = {row.recipe.stem for row in made.front}
    held_out = {model: scores for model, scores in made.held_out.items() if model not in on_front}
    objectives = {name: list(by_set) for scores in held_out.values() for name, by_set in scores.items()}
    for objective, columns in objectives.items():
        rows = {
            _with_size(model, made.sizes): [scores[objective][c] for c in columns]
            for model, scores in held_out.items()
        }
        numbers(f"held-out set: {objective}", columns, rows)
    if made.gaps:
        _gaps(made.gaps)
    if made.front:
        typer.echo(f"front   {len(made.front)} recipes of {len({row.layers for row in made.front})} sizes")
    _warnings(made)


def front(made: Any) -> None:
    """The front of a run, on the calibration set and, beside it, on the held-out set."""
    if not made.front:
        typer.echo("this run sought one recipe, and no front")
        return
    axes = list(made.front[0].scores)
    stems = [row.recipe.stem for row in made.front if row.recipe.stem in made.held_out]
    reported = list(made.held_out[stems[0]]) if stems else []
    table = _table("recipe", "layers", *axes, *(f"held out: {name}" for name in reported), title="the front")
    for row in made.front:
        scores = made.held_out.get(row.recipe.stem, {})
        of_held_out = [_number(scores[name][TOTAL]) if scores else "" for name in reported]
        name = f"{row.recipe.name} *" if made.digest.startswith(row.recipe.stem[-8:]) else row.recipe.name
        table.add_row(name, str(row.layers), *(_number(row.scores[axis]) for axis in axes), *of_held_out)
    show(table)
    typer.echo(f"* picked; the recipes are in {made.front[0].recipe.parent}")
    _warnings(made)


def report(made: Any) -> None:
    """Whether a model directory is sound: publish.soundness.Report."""
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=box.SIMPLE, show_header=False)
    for finding in made.findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(finding.name, verdict, escape(finding.sentence))
    show(table)
    totals = made.totals
    layer = f"{totals.smallest_layer:,}"
    if totals.largest_layer != totals.smallest_layer:
        layer += f" to {totals.largest_layer:,}"
    typer.echo(
        f"{totals.layers} layers of {layer} parameters, {totals.embeddings:,} in embeddings and head, "
        f"{totals.parameters:,} in all"
    )
    for file, dtypes in totals.dtypes.items():
        typer.echo(f"{file}  {', '.join(dtypes)}")
    typer.echo(f"{made.directory}: {'sound' if made.sound else 'not sound'}")


def evaluation(made: Any) -> None:
    """Scores of tasks: search.evaluation.Evaluation."""
    table = _table(
        "model", "task", "metric", "score", "± s.e.", "items", "% of base", "% of best member", left=3
    )
    for model, measures in made.models.items():
        name = f"{model} (base)" if model == made.base else model
        for task, metrics in measures.items():
            for metric, measure in metrics.items():
                error = "" if measure.error is None else f"{measure.error:.4f}"
                retained = made.retained(model, task, metric) or ()
                percents = [f"{percent:.1f}" for percent in retained] or ["", ""]
                row = (name, task, metric, f"{measure.value:.4f}", error, f"{measure.items:,}", *percents)
                table.add_row(*row)
    show(table)


def repairs(made: Any) -> None:
    """What became of the cuts of a recipe: search.repair.Result."""
    table = _table("behind slot", "without layers", "ridge", "before", "after", title="nats per token")
    for cut in made.cuts:
        first, past = cut.removed
        layers = f"{first}-{past - 1}" if past > first + 1 else str(first) if past > first else ""
        if cut.note:
            table.add_row(str(cut.slot), layers, "not repaired", "", "")
            continue
        ridge = "no map helps" if cut.ridge is None else f"{cut.ridge:g}"
        table.add_row(str(cut.slot), layers, ridge, _number(cut.before), _number(cut.after))
    show(table)
    for cut in made.cuts:
        if cut.note:
            typer.echo(f"slot {cut.slot} is not repaired: {cut.note}")
    typer.echo(f"fitted to {made.tokens:,} tokens; every fourth sequence chose the ridge")


def _gaps(gaps: Sequence[Any]) -> None:
    table = _table(
        *("objective", "on", "search", "held out", "gap", "95 % interval"),
        title="search score minus held-out score",
        left=2,
    )
    for one in gaps:
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        scores = (f"{one.searched:.4f}", f"{one.held_out:.4f}", f"{one.difference:+.4f}")
        table.add_row(one.objective, ", ".join(one.sets), *scores, interval)
    show(table)


def _warnings(made: Any) -> None:
    for sentence in made.warnings:
        typer.echo(f"warning: {sentence}")


def _table(*columns: str, title: str = "", left: int = 1) -> Table:
    """With all columns but the first few to the right; the title is printed, so that it is not broken."""
    if title:
        typer.echo(title)
    table = Table(*columns, box=box.SIMPLE)
    for column in table.columns[left:]:
        column.justify = "right"
    return table


def _number(value: float) -> str:
    """Whole numbers as such, whatever their type."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"


def _with_size(model: str, sizes: Any) -> str:
    size = sizes.get(model, sizes.get("base"))
    return f"{model} ({size[0]} layers, {size[1] / 1e6:,.2f}M)" if size else model


def quiet_libraries() -> None:
    """Progress bars and notices of the libraries would stand between ours."""
    import logging

    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for library in ("mergekit", "lm_eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
