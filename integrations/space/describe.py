"""Says what a model or a recipe is made of, from configs and headers alone; the functions behind the Space.

All text comes from strangers: models are named by Hub ids and nothing else, so that no file of this machine
is read, and whatever is shown is escaped.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from gptailor_merge import Family, Recipe, TailorError, lint, plan
from gptailor_merge.checking.llama_cpp import hazards
from gptailor_merge.cli.recipe_table import short_names
from gptailor_merge.hub.markdown import code, plain_text
from gptailor_merge.models.architecture import Kind, difference
from gptailor_merge.recipe.edits import edit_files
from gptailor_merge.report.palette import LIGHT, mixed, readable
from gptailor_merge.report.recipe_map import PALEST, Place, cell, places
from gptailor_merge.visible_text import visible_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""OWNER/NAME, with a revision or without."""

MOST_CHARACTERS = 200_000
"""The longest recipe that is read."""

_KINDS = (LIGHT.base, *LIGHT.variants)


class RefusedError(Exception):
    """Something was asked for that a Space does not do; the message is for the visitor."""


def hub_id(text: str) -> str:
    """Returns a model's Hub id as it was typed, without spaces around it.

    Raises:
        RefusedError: it is none; paths of this machine are not read.
    """
    name = text.strip()
    if not HUB_ID.fullmatch(name) or ".." in name or Path(name).exists():
        raise RefusedError(f"expected a Hub id such as Qwen/Qwen3-0.6B-Base, found {name[:100]!r}")
    return name


def model_page(text: str) -> tuple[str, str]:
    """Returns the facts about a model, in Markdown, and the map of its layers, in HTML."""
    try:
        name = hub_id(text)
        family = Family.load(name, {})
    except (RefusedError, TailorError) as error:
        return plain_text(f"Not read: {error}"), ""
    base = family.base
    kinds = list(dict.fromkeys(family.kinds))
    whole = family.parameters(range(family.depth))
    largest, smallest = max(family.layer_sizes), min(family.layer_sizes)
    size = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    kept = round(0.75 * family.depth)
    sample = family.parameters(range(kept)) if len(kinds) == 1 else 0
    kind_of_model = plain_text(str(base.text_config.get("model_type")))
    facts = [
        f"{code(name)} is a {kind_of_model} of **{family.depth} layers** and {whole:,} parameters: "
        f"{size} in a layer, {family.outer_parameters:,} in embeddings and head"
        f"{' (tied)' if family.tied else ''}.",
    ]
    if sample:
        facts.append(f"With {kept} of its layers it has {sample:,} parameters, {sample / whole:.0%} as many.")
    if len(kinds) > 1:
        facts.append(
            f"Its layers are of {len(kinds)} kinds, coloured below; a layer can take the place of another "
            f"of its kind: {'; '.join(_kinds(family.kinds, kinds))}."
        )
    facts += [plain_text(sentence) for sentence in hazards(base.text_config)]
    colours = {kind: _KINDS[number % len(_KINDS)] for number, kind in enumerate(kinds)}
    sizes = [f"{size / 1e6:.3g}M" if smallest < largest else "" for size in family.layer_sizes]
    columns = [(str(layer), sizes[layer], colours[kind]) for layer, kind in enumerate(family.kinds)]
    return "\n\n".join(facts), _table({"kind and size" if smallest < largest else "kind": columns})


def _kinds(layers: Sequence[Kind], kinds: Sequence[Kind]) -> Iterator[str]:
    """Yields for each kind but the first its layers, and one thing in which they differ from the first's."""
    for kind in kinds[1:]:
        numbers = ", ".join(str(layer) for layer, each in enumerate(layers) if each == kind)
        yield plain_text(f"layers {numbers}: {difference(kind, kinds[0])}")


def recipe_page(text: str) -> tuple[str, str]:
    """Returns what is to be said of a recipe, in Markdown, and its map, in HTML; nothing is downloaded."""
    told: list[str] = []
    try:
        recipe = _recipe(text)
        resolved = lint(recipe, on_warning=told.append)
    except (RefusedError, TailorError) as error:
        lines = str(error).splitlines()
        return "\n".join(["Not sound:", "", *(f"- {plain_text(line)}" for line in lines)]), ""
    columns = places(recipe, {model: model for model in recipe.models})
    removed = [str(column.layer) for column in columns if column.slot is None]
    gone = f"; layers {', '.join(removed)} of the family are gone" if removed else ""
    facts = [f"Sound: **{len(resolved.slots)} layers**{gone}. Digest {code(plan(recipe).digest)}."]
    facts += [plain_text(sentence) for sentence in told]
    return "\n\n".join(facts), _map(columns, recipe.models)


def config_page(base: str, variants: str, target: float) -> tuple[str, str]:
    """Returns a search config for a family, and what a search will take, in Markdown.

    Args:
        variants: Hub ids, one a line.
        target: the share of the base's parameters to keep at most.
    """
    try:
        names = [hub_id(line) for line in variants.splitlines() if line.strip()]
        members = hub_id(base), names
    except RefusedError as error:
        return "", plain_text(f"Not read: {error}")
    return _drafted(*members, target)


def _drafted(base: str, variants: Sequence[str], target: float) -> tuple[str, str]:
    """Has the config written as `gptailor init` writes it, where this version has it."""
    try:
        from gptailor_merge import draft
    except ImportError:
        return "", "This version of gptailor-merge has no `gptailor init` yet."
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "search.yml"
        try:
            drafted = draft(base, variants, out=out, target=target)
        except TailorError as error:
            return "", plain_text(f"Not possible: {error}".replace(f"{directory}/", ""))
        text, command = out.read_text(encoding="utf-8"), drafted.command
    hidden = f"{directory}/"
    text = re.sub(r"^# yaml-language-server: .*\n", "", text)  # where the schema is on this machine
    return text.replace(hidden, ""), f"Save it as `search.yml`, then {code(command.replace(hidden, ''))}."


def _recipe(text: str) -> Recipe:
    """Reads a recipe whose models are all on the Hub and which names no files.

    Raises:
        RefusedError: it is too long, or it names something of this machine.
        RecipeError: it is no recipe.
    """
    if len(text) > MOST_CHARACTERS:
        raise RefusedError(f"expected at most {MOST_CHARACTERS:,} characters, found {len(text):,}")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "recipe.yml"
        file.write_text(text, encoding="utf-8")
        recipe = Recipe.load(file)
    for model in recipe.models:
        for part in model.split("+"):
            hub_id(part)
    if edit_files(recipe) or recipe.parameters.adapter is not None:
        raise RefusedError(
            "this recipe names files (maps, gains or an adapter), which a Space does not have; "
            "`gptailor recipe lint` checks it beside them"
        )
    return recipe


def _map(columns: Sequence[Place], models: Sequence[str]) -> str:
    """Draws a recipe: a row for each model, a column for each slot and each removed layer."""
    colours = LIGHT.members(list(models))
    shown = short_names(models)
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for model in models:
        cells = []
        for column in columns:
            takes = [take for take in column.takes if take.member == model]
            share = max((take.shade for take in takes), default=0.0)
            colour = mixed(LIGHT.tile, colours[model], PALEST + (1 - PALEST) * share if takes else 0.0)
            text = "×" if column.slot is None else cell(column, takes)
            cells.append((str(column.layer), text, colour))
        rows[shown[model]] = cells
    return _table(rows)


def _table(rows: Mapping[str, Sequence[tuple[str, str, str]]]) -> str:
    """Draws rows of (heading, text, colour) as an HTML table that scrolls where it is too wide."""
    first = next(iter(rows.values()), ())
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading, _, _ in first)
    body = "".join(
        f'<tr><th scope="row">{escape(visible_line(name))}</th>'
        + "".join(
            f'<td style="background:{colour};color:{readable(colour)}">{escape(text)}</td>'
            for _, text, colour in cells
        )
        + "</tr>"
        for name, cells in rows.items()
    )
    return (
        '<div class="map" tabindex="0" role="region" aria-label="map of the layers">'
        f'<table><thead><tr><th scope="col">layer</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
