"""Prints results for people, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.text import Text

from gptailor_merge.cli import terminal
from gptailor_merge.cli.terminal import PlainTable, say, show

if TYPE_CHECKING:
    from gptailor_merge import (
        Comparison,
        Forecast,
        HealedRecipe,
        Pushed,
        RepairedRecipe,
        SoundnessReport,
        Summary,
        TaskScores,
        TextScores,
        TunedRecipe,
    )

TOTAL = "total"
FOUND = "found"
"""The best recipe, in the scores and sizes of a summary."""

SHOWN_DIFFERENCES = 10
"""Lines of a comparison; the others are counted."""


def numbers(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    """Prints a table of numbers, a row for each name.

    A total over one column is that column and is left out.
    """
    if len(columns) == 2 and columns[-1] == TOTAL:
        columns, rows = columns[:1], {name: values[:1] for name, values in rows.items()}
    table = _table("", *columns, title=title)
    for name, values in rows.items():
        table.add_row(name, *map(_number, values))
    show(table)


def text_scores(scores: TextScores) -> None:
    """Prints the scores of one model on texts."""
    rows = {name: score.to_json() for name, score in {**scores.files, TOTAL: scores.total}.items()}
    columns = list(rows[TOTAL])
    numbers("", columns, {name: [row[column] for column in columns] for name, row in rows.items()})


def forecast(expected: Forecast, *, apart: bool = False) -> None:
    """Prints what a search will take.

    Args:
        apart: prints it apart from the results.
    """
    from gptailor_merge.api.forecasts import duration, in_bytes

    write = say if apart else terminal.line
    sizes = sorted({min(expected.sizes), max(expected.sizes)})
    kept = " to ".join(f"{size} ({expected.sizes[size] / 1e6:,.1f}M)" for size in sizes)
    write(
        f"{expected.members} models of {expected.depth} layers ({expected.parameters / 1e6:,.1f}M parameters "
        f"in {' and '.join(sorted(expected.stored))}), of which {kept} stay"
    )
    is_timed = expected.speed is not None
    table = _table("at most", "", "tokens", *(["time"] if is_timed else []), left=2)
    rows = [(s.stage, s.made_of, s.tokens, expected.seconds_of(s)) for s in expected.stages]
    if expected.tokens is not None:
        rows.append(("in all", "", expected.tokens, expected.seconds))
    for stage, made_of, tokens, seconds in rows:
        time = [] if seconds is None else [duration(seconds)]
        table.add_row(stage, made_of, f"{tokens:,}", *time)
    show(table, apart=apart)
    places = ("device", "host") if expected.peak.device else ("host",)
    table = _table("memory, at most", *places)
    for part in (*expected.memory, expected.peak, expected.free):
        table.add_row(part.name, *(in_bytes(getattr(part, place)) for place in places))
    show(table, apart=apart)
    if expected.on_host:
        write("the family stays in the host's memory, and its layers are sent to the device when they run")
    for note in expected.notes:
        write(f"note: {note}")


def summary(summary: Summary) -> None:
    """Prints what a run has found."""
    counts = summary.counts
    if summary.baseline is not None:
        terminal.line(f"baseline  {summary.baseline}")
    chosen, loss = ("picked", "") if summary.front else ("best", f"  loss {summary.loss:.4f}")
    terminal.line(
        f"{chosen:6}  {summary.digest}{loss}  "
        f"({counts.candidates} candidates, {counts.failures} failed, {counts.gated} kept out, "
        f"{counts.duplicates} duplicates, {counts.dropped} dropped early, {counts.repaired} repaired, "
        f"{f'{counts.tuned} tuned, ' if counts.tuned else ''}"
        f"{f'{counts.healed} healed, ' if counts.healed else ''}"
        f"{counts.tokens:,} tokens scored in {counts.seconds:.0f} s)"
    )
    for objective, values in summary.scores.items():
        numbers(f"calibration set: {objective}", list(values), {chosen: list(values.values())})
    on_front = {row.recipe.stem for row in summary.front}
    held_out = {model: scores for model, scores in summary.held_out.items() if model not in on_front}
    objectives = {name: list(by_set) for scores in held_out.values() for name, by_set in scores.items()}
    for objective, columns in objectives.items():
        rows = {
            _with_size(model, summary.sizes, chosen): [scores[objective][column] for column in columns]
            for model, scores in held_out.items()
        }
        numbers(f"held-out set: {objective}", columns, rows)
    for stages in summary.stages:
        table = _table("", *stages.columns, "tokens", "seconds", title=f"by stage, {stages.objective}")
        for row in stages.rows:
            scores = (_number(score.natural) for score in stages.scores(row))
            table.add_row(row.stage, *scores, f"{row.tokens:,}", f"{row.seconds:.0f}")
        show(table)
    _gaps(summary)
    if summary.front:
        sizes = len({row.layers for row in summary.front})
        terminal.line(f"front   {len(summary.front)} recipes of {sizes} sizes")
    _warnings(summary)


def front(summary: Summary) -> None:
    """Prints the front of a run: scores on the calibration set, and beside them on the held-out set."""
    if not summary.front:
        terminal.line("this run sought one recipe, and no front")
        return
    axes = list(summary.front[0].scores)
    stems = [row.recipe.stem for row in summary.front if row.recipe.stem in summary.held_out]
    reported = list(summary.held_out[stems[0]]) if stems else []
    table = _table("recipe", "layers", *axes, *(f"held out: {name}" for name in reported), title="the front")
    for row in summary.front:
        scores = summary.held_out.get(row.recipe.stem, {})
        held_out = [_number(scores[name][TOTAL]) if scores else "" for name in reported]
        is_picked = summary.digest.startswith(row.recipe.stem[-8:])
        name = f"{row.recipe.name} *" if is_picked else row.recipe.name
        table.add_row(name, str(row.layers), *(_number(row.scores[axis]) for axis in axes), *held_out)
    show(table)
    terminal.line(f"* picked; the recipes are in {summary.front[0].recipe.parent}")
    _warnings(summary)


def report(report: SoundnessReport) -> None:
    """Prints the findings on a model directory."""
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = PlainTable(box=box.SIMPLE, show_header=False)
    for finding in report.findings:
        verdict = Text(finding.verdict, style=colours[finding.verdict])
        table.add_row(finding.name, verdict, finding.sentence)
    show(table)
    totals = report.totals
    layer = f"{totals.smallest_layer:,}"
    if totals.largest_layer != totals.smallest_layer:
        layer += f" to {totals.largest_layer:,}"
    terminal.line(
        f"{totals.layers} layers of {layer} parameters, {totals.embeddings:,} in embeddings and head, "
        f"{totals.parameters:,} in all"
    )
    for file, dtypes in totals.dtypes.items():
        terminal.line(f"{file}  {', '.join(dtypes)}")
    terminal.line(f"{report.directory}: {'sound' if report.sound else 'not sound'}")


def evaluation(evaluation: TaskScores) -> None:
    """Prints the scores of models on lm-eval's tasks."""
    table = _table(
        "model", "task", "metric", "score", "± s.e.", "items", "% of base", "% of best member", left=3
    )
    for model, measures in evaluation.models.items():
        name = f"{model} (base)" if model == evaluation.base else model
        for task, metrics in measures.items():
            for metric, measure in metrics.items():
                error = "" if measure.error is None else f"{measure.error:.4f}"
                retained = evaluation.retained(model, task, metric) or ()
                percents = [f"{percent:.1f}" for percent in retained] or ["", ""]
                row = (name, task, metric, f"{measure.value:.4f}", error, f"{measure.items:,}", *percents)
                table.add_row(*row)
    show(table)


def repairs(result: RepairedRecipe) -> None:
    """Prints what became of the cuts of a recipe."""
    table = _table("behind slot", "without layers", "ridge", "before", "after", title="nats per token")
    for cut in result.cuts:
        first, past = cut.removed
        layers = f"{first}-{past - 1}" if past > first + 1 else str(first) if past > first else ""
        if cut.before is None or cut.after is None:
            table.add_row(str(cut.slot), layers, "not repaired", "", "")
            continue
        ridge = "no map helps" if cut.ridge is None else f"{cut.ridge:g}"
        table.add_row(str(cut.slot), layers, ridge, _number(cut.before), _number(cut.after))
    show(table)
    for cut in result.cuts:
        if cut.note:
            terminal.line(f"slot {cut.slot} is not repaired: {cut.note}")
    terminal.line(f"fitted to {result.tokens:,} tokens; every fourth sequence chose the ridge")


def tuning(result: TunedRecipe) -> None:
    """Prints what tuning a recipe came to."""
    tuning = result.tuning
    table = _table("", "before", "after", title="the objective on texts that were held back")
    table.add_row("loss", _number(tuning.before), _number(tuning.after))
    show(table)
    if not tuning.helps:
        terminal.line("tuning does not help; the recipe stays as it was")
    terminal.line(
        f"fitted to {result.fitted_tokens:,} tokens, best after {tuning.fit.steps} steps; "
        f"{tuning.fit.tokens:,} tokens went through the model (differentiated ones count three times)"
    )


def healing(result: HealedRecipe) -> None:
    """Prints what training the model of a recipe came to."""
    table = _table("", "before", "after", title="nats per token on sequences that were not trained on")
    healing = result.healing
    table.add_row("loss", _number(healing.before), _number(healing.after))
    show(table)
    if healing.facts is None:
        terminal.line("training does not help; the recipe stays as it was")
    else:
        terminal.line(f"{healing.facts.sentence()}; {healing.parameters:,} numbers were trained")


def pushed(pushed: Pushed) -> None:
    """Prints where a model was published, or that nothing had changed."""
    if not pushed.changed:
        terminal.line(f"unchanged  {pushed.url}  (everything is there already, no commit was made)")
        return
    tag = f"  (tag {pushed.tag})" if pushed.tag else ""
    terminal.line(f"published  {pushed.url}{tag}")


def files(directory: Path) -> None:
    """Lists the files that a push would upload, with their sizes."""
    uploads = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    for file in uploads:
        terminal.line(f"{file.stat().st_size:>14,}  {file.relative_to(directory)}")
    total = sum(file.stat().st_size for file in uploads)
    terminal.line(f"{total:>14,}  bytes in {directory}; nothing was uploaded")


def comparison(repo: str, comparison: Comparison) -> None:
    """Prints how a published model and the one built again differ."""
    for difference in comparison.differences[:SHOWN_DIFFERENCES]:
        terminal.line(difference)
    if (more := len(comparison.differences) - SHOWN_DIFFERENCES) > 0:
        terminal.line(f"and {more} more")
    if comparison.equal:
        terminal.line(f"{repo}: equal, {comparison.tensors} tensors and the config")
    else:
        terminal.line(f"{repo}: not equal, {len(comparison.differences)} differences")
        terminal.line("a member may be another one, or a library of another version than the card says")


def _gaps(summary: Summary) -> None:
    if not summary.gaps:
        return
    table = _table(
        *("objective", "on", "search", "held out", "gap", "95 % interval"),
        title="search score minus held-out score",
        left=2,
    )
    for gap in summary.gaps:
        interval = f"{gap.low:+.4f} to {gap.high:+.4f}"
        scores = (f"{gap.searched:.4f}", f"{gap.held_out:.4f}", f"{gap.difference:+.4f}")
        table.add_row(gap.objective, ", ".join(gap.sets), *scores, interval)
    show(table)


def warning(sentence: str) -> None:
    """Prints what is sound and may surprise."""
    terminal.line(f"warning: {sentence}")


def _warnings(summary: Summary) -> None:
    for sentence in summary.warnings:
        warning(sentence)


def _table(*columns: str, title: str = "", left: int = 1) -> PlainTable:
    """Returns an empty table whose first columns are aligned to the left, the others to the right.

    The title is printed at once, so that it is not broken to the width of the table.
    """
    if title:
        terminal.line(title)
    table = PlainTable(box=box.SIMPLE)
    for heading in columns:
        table.add_column(heading)
    for column in table.columns[left:]:
        column.justify = "right"
    return table


def _number(value: float) -> str:
    """Writes whole numbers without decimals, and others with four."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"


def _with_size(model: str, sizes: Mapping[str, tuple[int, int]], chosen: str) -> str:
    """Writes a model's name with its layers and parameters, where they are known.

    Args:
        chosen: the name of the recipe that the run has come to; "found" is a stage.
    """
    size = sizes.get(model, sizes.get("base"))
    name = chosen if model == FOUND else model
    return f"{name} ({size[0]} layers, {size[1] / 1e6:,.2f}M)" if size else name
