"""Writes the tables of a model card, and the sentences beside them, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gptailor_merge.hub.markdown import Markdown, cell, plain_text
from gptailor_merge.hub.model_size import ModelSize
from gptailor_merge.hub.parents import LOCAL
from gptailor_merge.hub.release import Release
from gptailor_merge.objectives.scores import COSTS, TOTAL, Score
from gptailor_merge.recipe.grouping import runs
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.wording import component_text, operation_text, range_text, source_text
from gptailor_merge.runs.continuations import Continuations
from gptailor_merge.runs.record import FOUND, Record
from gptailor_merge.runs.stages import StageTable

THIS = Markdown("**this model**")


HELD_OUT = "held_out"
"""The section of a search config."""


@dataclass(frozen=True)
class HeldOutTable:
    """The held-out scores of one objective.

    Attributes:
        name: the objective, in Markdown.
        direction: "lower" or "higher", whichever is better.
        table: Markdown.
        has_errors: whether the table holds standard errors.
    """

    name: str
    direction: str
    table: str
    has_errors: bool


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Writes a table.

    Args:
        left: number of columns, from the first, that are aligned to the left; numbers go to the right.

    >>> print(markdown(["model", "ms"], [["base", "3.2"]]))
    | model | ms |
    | --- | ---: |
    | base | 3.2 |
    """
    rule = ["---" if place < left else "---:" for place in range(len(header))]
    return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in (header, rule, *rows))


def removed_sentence(release: Release) -> str:
    """States which layers of the family no slot uses."""
    used = {layer for slot in release.plan.slots for _, layer in slot.layers}
    depth = release.summary.sizes.get("base", (0, 0))[0]
    gone = [layer for layer in range(depth) if layer not in used]
    if not gone:
        return f"{len(release.plan.slots)} layers are left; the recipe below says which."
    return (
        f"Of the base model's {depth} layers, counted from 0, {len(gone)} are gone from all members: "
        f"**{', '.join(map(str, gone))}**."
    )


def slots_table(plan: Plan) -> str:
    """Lists what each layer of the model is made of; neighbours that are made alike share a row."""
    rows = []
    for run in runs(plan.slots):
        slot = plan.slots[run.start]
        sources = (
            source_text(
                f"{shown_name(model)} {range_text(layer, layer + len(run))}", slot.operation, position
            )
            for position, (model, layer) in enumerate(slot.layers)
        )
        how = operation_text(slot.operation, slot.edits)
        rows.append([range_text(run.start, run.stop), how, ", ".join(sources)])
    return markdown(["layer", "operation", "from layer"], rows, left=3)


def outer_sentence(plan: Plan) -> str:
    """States where embeddings, head and tokenizer come from."""
    embeddings = component_text(plan.embeddings, shown_name)
    head = component_text(plan.head, shown_name, plan.outer_edits)
    rest = ""
    if plan.rest is not None:
        rest = f"all beside the language model: {component_text(plan.rest, shown_name)}; "
    text = (
        f"embeddings: {embeddings}; final norm and head: {head}; {rest}"
        f"tokenizer: {shown_name(plan.tokenizer)}."
    )
    return plain_text(text[0].upper() + text[1:])


def members_table(release: Release) -> str:
    """Lists the models and adapters of the members, with the licence on their own cards."""
    header = ["member", "model", "commit", "licence by its card"]
    rows = []
    for parent in release.parents:
        for part in parent.parts:
            licence = part.licence.name or part.licence.key if part.licence else "none stated"
            where = part.hub_id or f"{part.name} (a local directory)"
            rows.append([parent.member, where, part.revision or "", licence])
    if not any(row[2] for row in rows):
        header, rows = [*header[:2], header[3]], [[*row[:2], row[3]] for row in rows]
    return markdown(header, rows, left=len(header))


def size_table(release: Release, before: ModelSize, after: ModelSize) -> str:
    """Compares the sizes of the base and of this model."""
    base, pruned = (release.summary.sizes.get(name) for name in ("base", FOUND))
    rows = []
    numbers: list[tuple[str, float | None, float | None]] = [
        ("layers", before.layers, after.layers),
        (
            "parameters",
            base[1] if base else before.parameters,
            pruned[1] if pruned else after.parameters,
        ),
        ("bytes of the weights", before.bytes, after.bytes),
        ("bytes of KV cache per token", before.kv_cache, after.kv_cache),
    ]
    for name, old, new in numbers:
        if old is not None and new is not None:
            rows.append([name, f"{old:,.0f}", f"{new:,.0f}", f"{100 * (new / old - 1):+.1f} %"])
    return markdown(["", "base", "this model", "change"], rows)


def latency_table(release: Release) -> str:
    """Lists the latencies that the run measured; empty where it measured none."""
    rows = []
    measured = set()
    for model, scores in release.held_out.items():
        for name, by_set in scores.items():
            total = Score.total(list(by_set.values()))
            if total.unit == "ms":
                measured.add(name)
                rows.append([_model(model), name.replace("_", " "), f"{total.natural:.2f}"])
    for name, values in release.summary.scores.items():
        if name.startswith(("prefill_latency", "decode_latency")) and name not in measured:
            rows.append([THIS, name.replace("_", " "), f"{values[TOTAL]:.2f}"])
    return markdown(["model", "what", "ms"], rows, left=2) if rows else ""


def stage_tables(stages: Sequence[StageTable]) -> list[tuple[str, str]]:
    """Returns the name of each objective, and a table: stages by what was calibrated on and what was not."""
    tables = []
    for table in stages:
        rows = [
            [row.stage, *map(score_text, table.scores(row)), f"{row.tokens:,}", f"{row.seconds:,.0f}"]
            for row in table.rows
        ]
        header = ["stage", *table.columns, "tokens", "seconds"]
        tables.append((plain_text(table.objective), markdown(header, rows)))
    return tables


def writes_table(writes: Continuations) -> str:
    """Writes the prompts of a run and their continuations side by side; ↵ stands for a line break."""
    rows = [(row.prompt, row.base.text, row.found.text) for row in writes.rows]
    texts = [[" ↵ ".join(text.split("\n")).strip() for text in row] for row in rows]
    return markdown(["prompt", "base", THIS], texts, left=3)


def held_out_tables(record: Record) -> list[HeldOutTable]:
    """Writes a table for each measure of quality: models by sets, with standard errors where known."""
    scores = record.main_scores.get(FOUND, {})
    return [
        _held_out(record, name, list(by_set))
        for name, by_set in scores.items()
        if next(iter(by_set.values())).unit not in COSTS
    ]


def _held_out(record: Record, name: str, sets: Sequence[str]) -> HeldOutTable:
    rows = []
    errors = False
    best = record.main_scores[FOUND][name]
    for model, scores in record.main_scores.items():
        by_set = scores.get(name)
        if by_set is None or not all(set_name in by_set for set_name in sets):
            continue
        columns = list(_columns(by_set, sets))
        errors = errors or any(score.natural_error is not None for score in columns)
        rows.append([_model_label(model, record), *map(score_text, columns)])
    counts = [score.count for score in _columns(best, sets)]
    rows.append([_count_label(record, name, sets), *(f"{count:,.0f}" for count in counts)])
    several = [TOTAL] if len(sets) > 1 else []
    unit = best[sets[0]].unit
    direction = "higher" if unit == "negated" else "lower"
    return HeldOutTable(plain_text(name), direction, markdown(["model", *sets, *several], rows), errors)


def _columns(by_set: Mapping[str, Score], sets: Sequence[str]) -> Iterator[Score]:
    """Yields the score on each set, and the total where there are several."""
    scores = [by_set[set_name] for set_name in sets]
    yield from scores
    if len(scores) > 1:
        yield Score.total(scores)


def score_text(score: Score) -> str:
    """Writes a score with its standard error to two digits; without an error, as the commands print it."""
    error = score.natural_error
    if error is None or not 0 < error < math.inf:
        return f"{score.natural:.4f}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{score.natural:.{places}f} ± {error:.{places}f}"


def _count_label(record: Record, name: str, sets: Sequence[str]) -> str:
    """Names what the scores are means over: items, tokens, or something else that is counted."""
    items = {
        item.task: len(item.ids)
        for item in record.items
        if (item.section, item.objective) == (HELD_OUT, name)
    }
    counts = record.main_scores[FOUND][name]
    if all(items.get(set_name) == counts[set_name].count for set_name in sets):
        return "items"
    return "count" if items else "tokens"


def _model_label(model: str, record: Record) -> str:
    layers = record.sizes.get(model, record.sizes.get("base"))
    name = _model(model)
    # What is made of Markdown is a plain str again.
    return type(name)(f"{name} ({layers[0]} layers)") if layers else name


def _model(name: str) -> str:
    return THIS if name == FOUND else name


def shown_name(model: str) -> str:
    """Returns the name of a model in a published recipe without its commit.

    >>> shown_name("org/math@3f2a+./lora")
    'org/math+lora'
    """
    return "+".join(part.removeprefix(LOCAL).split("@")[0] for part in model.split("+"))
