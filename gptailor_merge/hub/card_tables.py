"""The tables and sentences of a model card, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gptailor_merge.hub.model_size import Size
from gptailor_merge.hub.parents import LOCAL
from gptailor_merge.hub.release import Release
from gptailor_merge.objectives.scores import COSTS, TOTAL, Score
from gptailor_merge.recipe.grouping import runs
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.wording import component_text, operation_text, range_text, source_text
from gptailor_merge.runs.summary import FOUND

THIS = "**this model**"


HELD_OUT = "held_out"
"""The section of a config."""


@dataclass(frozen=True)
class Table:
    """Held-out scores of one objective.

    Attributes:
        direction: "lower" or "higher" is better.
    """

    name: str
    direction: str
    table: str
    has_errors: bool


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; all columns but the first few to the right."""
    rule = ["---" if place < left else "---:" for place in range(len(header))]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (header, rule, *rows))


def removed_sentence(release: Release) -> str:
    """By original index."""
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
    """What is in each layer of the model, those alike together."""
    rows = []
    for run in runs(plan.slots):
        slot = plan.slots[run.start]
        sources = (
            source_text(f"{public(model)} {range_text(layer, layer + len(run))}", slot.operation, position)
            for position, (model, layer) in enumerate(slot.layers)
        )
        how = operation_text(slot.operation, slot.edits)
        rows.append([range_text(run.start, run.stop), how, ", ".join(sources)])
    return markdown(["layer", "operation", "from layer"], rows, left=3)


def outer_sentence(plan: Plan) -> str:
    """Where embeddings, head and tokenizer come from."""
    parts = [("embeddings", plan.embeddings), ("final norm and head", plan.head)]
    said = [f"{name}: {component_text(component, public)}" for name, component in parts]
    text = "; ".join([*said, f"tokenizer: {public(plan.tokenizer)}"]) + "."
    return text[0].upper() + text[1:]


def members_table(release: Release) -> str:
    """Models and adapters, with what their own cards say."""
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


def size_table(release: Release, before: Size, after: Size) -> str:
    """Of the base and of this model."""
    base, found = (release.summary.sizes.get(name) for name in ("base", FOUND))
    rows = []
    numbers: list[tuple[str, float | None, float | None]] = [
        ("layers", before.layers, after.layers),
        (
            "parameters",
            base[1] if base else before.parameters,
            found[1] if found else after.parameters,
        ),
        ("bytes of the weights", before.bytes, after.bytes),
        ("bytes of KV cache per token", before.kv_cache, after.kv_cache),
    ]
    for name, one, other in numbers:
        if one is not None and other is not None:
            rows.append([name, f"{one:,.0f}", f"{other:,.0f}", f"{100 * (other / one - 1):+.1f} %"])
    return markdown(["", "base", "this model", "change"], rows)


def latency_table(release: Release) -> str:
    """Of what the search measured; empty where it measured none."""
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


def held_out_tables(release: Release) -> list[Table]:
    """A table for each measure of quality: models by sets, with standard errors where the run has them."""
    found = release.held_out.get(FOUND, {})
    return [
        _held_out(release, name, list(by_set))
        for name, by_set in found.items()
        if next(iter(by_set.values())).unit not in COSTS
    ]


def _held_out(release: Release, name: str, sets: Sequence[str]) -> Table:
    rows = []
    errors = False
    for model, scores in release.held_out.items():
        by_set = scores.get(name)
        if by_set is None or not all(one in by_set for one in sets):
            continue
        shown = list(_columns(by_set, sets))
        errors = errors or any(score.natural_error is not None for score in shown)
        rows.append([_with_layers(model, release), *map(_scored, shown)])
    counts = [score.count for score in _columns(release.held_out[FOUND][name], sets)]
    rows.append([_counted(release, name, sets), *(f"{count:,.0f}" for count in counts)])
    several = [TOTAL] if len(sets) > 1 else []
    unit = release.held_out[FOUND][name][sets[0]].unit
    direction = "higher" if unit == "negated" else "lower"
    return Table(name, direction, markdown(["model", *sets, *several], rows), errors)


def _columns(by_set: Mapping[str, Score], sets: Sequence[str]) -> Iterator[Score]:
    yield from (by_set[one] for one in sets)
    if len(sets) > 1:
        yield Score.total([by_set[one] for one in sets])


def _scored(score: Score) -> str:
    """With a standard error as many digits as that has two of; without one as the commands print it."""
    error = score.natural_error
    if error is None or not 0 < error < math.inf:
        return f"{score.natural:.4f}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{score.natural:.{places}f} ± {error:.{places}f}"


def _counted(release: Release, name: str, sets: Sequence[str]) -> str:
    """What the scores are means over."""
    items = {
        one.task: len(one.ids) for one in release.items if (one.section, one.objective) == (HELD_OUT, name)
    }
    counts = release.held_out[FOUND][name]
    if all(items.get(one) == counts[one].count for one in sets):
        return "items"
    return "count" if items else "tokens"


def _with_layers(model: str, release: Release) -> str:
    sizes = release.summary.sizes
    layers = sizes.get(model, sizes.get("base"))
    return f"{_model(model)} ({layers[0]} layers)" if layers else _model(model)


def _model(name: str) -> str:
    return THIS if name == FOUND else name


def public(model: str) -> str:
    """A model of a published recipe, for people."""
    return "+".join(part.removeprefix(LOCAL).split("@")[0] for part in model.split("+"))


def _cell(text: str) -> str:
    """Nothing in it ends a cell or a row."""
    return " ".join(text.replace("|", "\\|").split())
