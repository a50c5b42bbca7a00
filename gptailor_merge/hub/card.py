"""Writes the model card: fills in model_card_template.md.

Every number comes from the journal of the run, its config, or the headers of the model files. The card
leaves out what is not known.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import ModelCard

import gptailor_merge
from gptailor_merge.checking.llama_cpp import hazards
from gptailor_merge.config import SearchConfig
from gptailor_merge.host.names_and_commands import STOCK_COMMAND
from gptailor_merge.hub.card_metadata import metadata
from gptailor_merge.hub.card_tables import (
    held_out_tables,
    latency_table,
    members_table,
    outer_sentence,
    removed_sentence,
    size_table,
    slots_table,
    stage_tables,
    writes_table,
)
from gptailor_merge.hub.citations import CITATIONS
from gptailor_merge.hub.markdown import code, fence, plain_text
from gptailor_merge.hub.model_size import size_of
from gptailor_merge.hub.objective_sentences import calibration_texts, described
from gptailor_merge.hub.release import ADAPTER, GAINS, MAPS, Release
from gptailor_merge.models.configs import load_config
from gptailor_merge.objectives.kinds import ObjectiveConfig
from gptailor_merge.objectives.scores import COSTS, Score
from gptailor_merge.report.formatting import plain
from gptailor_merge.report.pictures import Picture
from gptailor_merge.runs.record import FOUND
from gptailor_merge.scoring.measures import reported
from gptailor_merge.search.candidates import Status
from gptailor_merge.visible_text import visible_line

TEMPLATE = "model_card_template.md"


PLACES = {"map": "removed", "held-out": "held_out"}
"""Stem of a picture's file -> the section of the card that shows it; the search section shows all others."""


def template() -> Path:
    """Returns the template's file: inside the package in a wheel, at the top of a checkout."""
    package = Path(gptailor_merge.__file__).parent
    return next(file for file in (package / TEMPLATE, package.parent / TEMPLATE) if file.is_file())


def card_of(release: Release, repo_id: str, pictures: Sequence[Picture] = ()) -> ModelCard:
    """Writes the card of a run's model.

    Args:
        repo_id: the repository of the model.
        pictures: files in the directory `pictures` beside the card; PLACES tells where each is shown.
    """
    card: ModelCard = ModelCard.from_template(
        metadata(release, repo_id),
        template_path=str(template()),
        **_variables(release, repo_id),
        pictures=_by_section(pictures),
    )
    return card


def _by_section(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Groups pictures by the section of the card that shows them."""
    placed: dict[str, list[Picture]] = {"removed": [], "held_out": [], "search": []}
    for picture in pictures:
        shown = picture._replace(title=plain_text(picture.title), alt=plain_text(picture.alt))
        placed[PLACES.get(Path(picture.file).stem, "search")].append(shown)
    return placed


def _variables(release: Release, repo_id: str) -> dict[str, Any]:
    """Returns the variables of the template."""
    settings, versions = release.settings, release.versions
    summary = release.summary
    sizes = {"before": size_of(settings.family.base), "after": size_of(str(release.run.model))}
    tables = held_out_tables(release.source)
    recipe, commands = release.recipe.to_yaml().rstrip(), _commands(release, repo_id)
    config = load_config(release.run.model)
    return {
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "result": plain_text(_headline(release)),
        "warnings": _plain_texts(summary.warnings),
        "members": [code(parent.name) for parent in release.parents],
        "removed": removed_sentence(release),
        "slots_table": slots_table(release.plan),
        "outer": outer_sentence(release.plan),
        "members_table": members_table(release),
        "licence_note": _licence_note(release),
        "size_table": size_table(release, sizes["before"], sizes["after"]),
        "kv_note": "" if sizes["after"].kv_cache is None else _KV_NOTE,
        "latency_table": latency_table(release),
        "held_out": tables,
        "stages": stage_tables(summary.stages),
        "held_out_settings": _plain_texts(described("held_out", _quality(settings), release.items, versions)),
        "writes": "" if summary.writes is None else plain_text(summary.writes.sentence),
        "writes_table": "" if summary.writes is None else writes_table(summary.writes),
        "has_errors": any(table.has_errors for table in tables),
        "gaps": _plain_texts(_gaps(release)),
        "search": plain_text(_search(release)),
        "baseline": plain_text(plain(release.summary.baseline or "")),
        "searched_on": _plain_texts(described("objectives", settings.objectives, release.items, versions)),
        "gates": _plain_texts(described("gates", settings.gates, release.items, versions)),
        "hazards": _plain_texts(hazards(config.get_text_config().to_dict())),
        "has_chat_template": _has_chat_template(release.run.model),
        "digest": release.digest,
        "repairs": _repairs(release),
        "fitted_norms": _fitted_norms(release),
        "training": _training(release),
        "healed": release.lora is not None,
        "recipe": recipe,
        "recipe_fence": fence(recipe),
        "versions": plain_text(", ".join(f"{name} {version}" for name, version in versions.items())),
        "commands": commands,
        "commands_fence": fence(commands),
        "citations": CITATIONS,
        "member_links": [
            f"[{plain_text(part.hub_id)}](https://huggingface.co/{quote(part.hub_id)})"
            for parent in release.parents
            for part in parent.parts
            if part.hub_id
        ],
    }


def _plain_texts(sentences: Iterable[str]) -> list[str]:
    return [plain_text(sentence) for sentence in sentences]


def _quality(settings: SearchConfig) -> list[ObjectiveConfig]:
    """Returns the objectives that are held out, without costs."""
    return [config for config in reported(settings) if not config.is_cost]


_KV_NOTE = "KV cache: bytes per token of context, averaged over a context of 4,096 tokens."


def _headline(release: Release) -> str:
    """States in one line how much smaller the model is, and what it lost."""
    sizes = release.summary.sizes
    parts = [f"{len(release.plan.slots)} layers"]
    if "base" in sizes and FOUND in sizes:
        (layers, parameters), (left, kept) = sizes["base"], sizes[FOUND]
        share = 100 * (1 - kept / parameters)
        parts = [f"{left} of {layers} layers, {kept:,} of {parameters:,} parameters ({share:.1f} % less)"]
    fitted = _fitted_by_gradient(release)
    lora = release.lora
    if lora is not None:
        parts.append(f"healed: trained after pruning, with {lora.words}")
    elif not fitted:
        parts.append("no training")
    if fitted:
        other = "" if lora else ", no other training"
        parts.append(f"{' and '.join(fitted)} fitted by gradient{other}")
    scores = release.held_out.get(FOUND, {})
    measured = [name for name, by_set in scores.items() if next(iter(by_set.values())).unit not in COSTS]
    if measured:
        name = measured[0]
        text = f"held-out {plain(name)} on {', '.join(scores[name])} {_total(scores[name]):.4g}"
        before = release.held_out.get("base", {}).get(name)
        parts.append(f"{text}, the base model's is {_total(before):.4g}" if before else text)
    if release.summary.writes is not None and release.summary.writes.repeats:
        parts.append("it repeats itself when it writes")
    return "; ".join(parts) + "."


def _total(by_set: Mapping[str, Score]) -> float:
    return Score.total(list(by_set.values())).natural


def _search(release: Release) -> str:
    counts, search = release.summary.counts, release.settings.search
    baseline = release.summary.baseline
    method = f"the baseline {baseline}" if baseline else f"gptailor-evolve (optimizer {search.optimizer})"
    refined = [f"{counts.repaired} of them repaired"] if counts.repaired else []
    refined += [f"{counts.tuned} tuned"] if counts.tuned else []
    refined += [f"{counts.healed} healed"] if counts.healed else []
    at_the_end = f"; {' and '.join(refined)} at the end" if refined else ""
    return (
        f"Found by {method} with seed {release.settings.seed}: {counts.candidates:,} candidates "
        f"({counts.failures} failed, {counts.gated} kept out by gates, {counts.duplicates} duplicates, "
        f"{counts.dropped} dropped early{at_the_end}), "
        f"{counts.tokens:,} tokens scored in {counts.seconds:,.0f} s."
    )


def _fitted_by_gradient(release: Release) -> list[str]:
    """Names the numbers that were fitted by gradient."""
    best = release.source.best
    fitted = ["merge weights"] if best is not None and best.status == Status.TUNED else []
    return fitted + (["gains of norms"] if _fitted_norms(release) else [])


def _training(release: Release) -> str:
    """States what was fitted, how, and whether anything else was trained."""
    if release.lora is not None:
        return _healed(release)
    fitted, maps = " and ".join(_fitted_by_gradient(release)), bool(release.plan.repaired)
    if not fitted:
        though = ", though maps were fitted to calibration texts in closed form (see below)" if maps else ""
        return (
            f"No weight was trained{though}, and the model was **not healed**: "
            "no training followed the pruning."
        )
    also = ", and maps in closed form" if maps else ""
    return (
        f"{fitted.capitalize()} were fitted to calibration texts by gradient{also} (see below). No other "
        "weight was trained, and the model was **not healed**: no training of all weights followed."
    )


def _healed(release: Release) -> str:
    """States that the model was trained, on what, and what was fitted before."""
    assert release.lora is not None
    sentences = [
        "The model was **healed**: after the layers were chosen, "
        f"{plain_text(release.lora.words)} was trained (`{ADAPTER}/`) and is added to its weights."
    ]
    if release.healing is not None:
        sentences.append(f"{plain_text(release.healing.sentence())}.")
    before = [f"{' and '.join(fitted)} by gradient"] if (fitted := _fitted_by_gradient(release)) else []
    before += ["maps in closed form"] if release.plan.repaired else []
    if before:
        sentences.append(f"Before that, {' and '.join(before)} were fitted to calibration texts (see below).")
    return " ".join(sentences)


def _repairs(release: Release) -> str:
    """States which slots are repaired, and on which data; empty where none is."""
    slots = release.plan.repaired
    if not slots:
        return ""
    layers = f"layer {slots[0]}" if len(slots) == 1 else f"layers {', '.join(map(str, slots))}"
    repair = release.settings.repair
    data = repair.data or calibration_texts(release.settings.objectives)
    taken = f", at most {repair.tokens:,} tokens," if repair.texts == "own" else ""
    return (
        f"In {layers} of this model, the last weight of the MLP is multiplied by a linear map that makes up "
        f"for removed layers. The maps (`{MAPS}/`) solve a regression on the calibration texts "
        f"({plain_text(', '.join(data))}){taken} without gradients, as in [ReplaceMe](https://arxiv.org/abs/2505.02819)."
    )


def _fitted_norms(release: Release) -> str:
    """States which norms have gains of a file; empty where none has."""
    resolved = release.plan
    layers = resolved.fitted_norms
    places = [f"in {len(layers)} of its {len(resolved.slots)} layers"] if layers else []
    places += ["outside the layers"] if resolved.gains else []
    if not places:
        return ""
    return (
        f"The gains of norms {' and '.join(places)} are fitted numbers (`{GAINS}/`), not those of a member."
    )


def _gaps(release: Release) -> Iterator[str]:
    for gap in release.summary.gaps:
        yield (
            f"{gap.objective} on {', '.join(gap.sets)}: search score minus held-out score is "
            f"{gap.difference:+.4g} (95 % interval {gap.low:+.4g} to {gap.high:+.4g})"
        )


def _licence_note(release: Release) -> str:
    """States that the publisher chose the licence, where the members do not all have it."""
    stated = {part.licence for parent in release.parents for part in parent.parts}
    if stated == {release.licence}:
        return ""
    return (
        f"The licence of this model, {plain_text(release.licence.key)}, was chosen by whoever published it."
    )


def _commands(release: Release, repo_id: str) -> str:
    local = [part.name for parent in release.parents for part in parent.parts if part.hub_id is None]
    members = "".join(f" --member {shlex.quote(visible_line(name))}=PATH" for name in local)
    lines = [f"gptailor reproduce {repo_id}{members}"]
    if not local:
        lines.append(STOCK_COMMAND)
    baseline = release.summary.baseline
    lines.append(
        f"# baseline: {visible_line(baseline)}" if baseline else "gptailor-evolve search.yml --out RUN"
    )
    return "\n".join(lines)


def _has_chat_template(model: Path) -> bool:
    if (model / "chat_template.jinja").is_file():
        return True
    file = model / "tokenizer_config.json"
    return file.is_file() and '"chat_template"' in file.read_text(encoding="utf-8")
