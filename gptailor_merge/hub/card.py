"""The model card: metadata as the Hub reads it, and the text of model_card_template.md.

Every number comes from the run's journal, its config, or the headers of the model files. What is not
known is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

import gptailor_merge
from gptailor_merge.checking.llama_cpp import hazards
from gptailor_merge.config import SearchConfig
from gptailor_merge.hub.card_tables import (
    held_out_tables,
    latency_table,
    members_table,
    outer_sentence,
    removed_sentence,
    size_table,
    slots_table,
)
from gptailor_merge.hub.citations import CITATIONS
from gptailor_merge.hub.measured_on import described, source_of
from gptailor_merge.hub.model_size import size_of
from gptailor_merge.hub.parents import languages_of
from gptailor_merge.hub.release import MAPS, Release
from gptailor_merge.objectives.configs import CostConfig, ObjectiveConfig, TextConfig
from gptailor_merge.objectives.scores import COSTS, Score
from gptailor_merge.report.pictures import Picture
from gptailor_merge.runs.summary import FOUND
from gptailor_merge.scoring.measures import reported

TEMPLATE = "model_card_template.md"


TAGS = ("mergekit", "merge", "pruned", "gptailor")


TASK = "text-generation"


CUSTOM = "custom"
"""What a model-index calls the data set of a file."""


PLACES = {"map": "removed", "held-out": "held_out"}
"""Name of a picture's file, without its ending -> the section of the card; others stand with the search."""


def template() -> Path:
    """In a wheel it is beside the package's modules, in a checkout at the top."""
    package = Path(gptailor_merge.__file__).parent
    return next(file for file in (package / TEMPLATE, package.parent / TEMPLATE) if file.is_file())


def card_of(release: Release, repo_id: str, pictures: Sequence[Picture] = ()) -> ModelCard:
    """The card of a run's model.

    Args:
        repo_id: where it is published.
        pictures: in the directory `pictures` beside the card; PLACES says which stands where.
    """
    card: ModelCard = ModelCard.from_template(
        metadata(release, repo_id),
        template_path=str(template()),
        **_text(release, repo_id),
        pictures=_placed(pictures),
    )
    return card


def _placed(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Section -> its pictures."""
    placed: dict[str, list[Picture]] = {"removed": [], "held_out": [], "search": []}
    for picture in pictures:
        placed[PLACES.get(Path(picture.file).stem, "search")].append(picture)
    return placed


def metadata(release: Release, repo_id: str) -> ModelCardData:
    """What the Hub reads: the model-index is made of held-out scores only."""
    parts = [part for parent in release.parents for part in parent.parts]
    ids = list(dict.fromkeys(part.hub_id for part in parts if part.hub_id))
    commits = {part.hub_id: part.revision for part in parts if part.hub_id and part.revision}
    results = list(_results(release))
    further: dict[str, Any] = {"base_model_revisions": commits} if commits else {}
    if ids and len(release.parents) > 1:
        further["base_model_relation"] = "merge"
    return ModelCardData(
        base_model=ids or None,
        language=languages_of(release.parents) or None,
        license=release.licence.key,
        license_name=release.licence.name,
        license_link=release.licence.link,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=list(TAGS),
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
        **further,
    )


def _results(release: Release) -> Iterator[EvalResult]:
    """Held-out scores of the found model, in the units that users see."""
    splits = {(one.objective, one.task): one.split for one in release.items if one.section == "held_out"}
    configs = reported(release.settings)
    for objective, by_set in release.held_out.get(FOUND, {}).items():
        for name, score in by_set.items():
            if score.unit in COSTS or not math.isfinite(score.natural):
                continue
            source = source_of(configs, name)
            about: dict[str, Any] = {"dataset_type": CUSTOM, "dataset_config": name}
            if (objective, name) in splits:
                about = {"dataset_type": name, "dataset_split": splits[objective, name]}
            elif source is not None and not isinstance(source, str):
                about = {
                    "dataset_type": source.dataset,
                    "dataset_config": source.config,
                    "dataset_split": source.split,
                }
            metric = _metric(objective)
            yield EvalResult(
                task_type=TASK,
                dataset_name=name,
                metric_type=metric,
                metric_name=f"{metric} (held out)",
                metric_value=float(f"{score.natural:.6g}"),
                **about,
            )


def _text(release: Release, repo_id: str) -> dict[str, Any]:
    """What the template has places for."""
    settings, versions = release.settings, release.versions
    harness = versions.get("lm-eval")
    summary = release.summary
    sizes = {"before": size_of(settings.family.base), "after": size_of(str(release.run.model))}
    tables = held_out_tables(release)
    config = AutoConfig.from_pretrained(release.run.model, trust_remote_code=False)
    return {
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "result": _result(release),
        "warnings": summary.warnings,
        "members": [f"`{parent.name}`" for parent in release.parents],
        "removed": removed_sentence(release),
        "slots_table": slots_table(release.plan),
        "outer": outer_sentence(release.plan),
        "members_table": members_table(release),
        "licence_note": _licence_note(release),
        "size_table": size_table(release, sizes["before"], sizes["after"]),
        "kv_note": "" if sizes["after"].kv_cache is None else _KV_NOTE,
        "latency_table": latency_table(release),
        "held_out": tables,
        "held_out_settings": described("held_out", _quality(settings), release.items, harness),
        "has_errors": any(table.has_errors for table in tables),
        "gaps": list(_gaps(release)),
        "search": _search(release),
        "searched_on": described("objectives", settings.objectives, release.items, harness),
        "gates": described("gates", settings.gates, release.items, harness),
        "hazards": hazards(config.get_text_config().to_dict()),
        "has_chat_template": _has_chat_template(release.run.model),
        "digest": release.digest,
        "repairs": _repairs(release),
        "recipe": release.recipe.to_yaml().rstrip(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commands": _commands(release, repo_id),
        "citations": CITATIONS,
        "member_links": [
            f"[{part.hub_id}](https://huggingface.co/{part.hub_id})"
            for parent in release.parents
            for part in parent.parts
            if part.hub_id
        ],
    }


def _quality(settings: SearchConfig) -> list[ObjectiveConfig]:
    """What is held out, without costs."""
    return [one for one in reported(settings) if not isinstance(one, CostConfig)]


_KV_NOTE = "KV cache: bytes per token of context, averaged over a context of 4,096 tokens."


def _result(release: Release) -> str:
    """One line: how much smaller, and at what price."""
    sizes = release.summary.sizes
    parts = [f"{len(release.plan.slots)} layers"]
    if "base" in sizes and FOUND in sizes:
        (layers, parameters), (left, kept) = sizes["base"], sizes[FOUND]
        share = 100 * (1 - kept / parameters)
        parts = [f"{left} of {layers} layers, {kept:,} of {parameters:,} parameters ({share:.1f} % less)"]
    parts.append("no training")
    found = release.held_out.get(FOUND, {})
    measured = [name for name, by_set in found.items() if next(iter(by_set.values())).unit not in COSTS]
    if measured:
        name = measured[0]
        text = f"held-out {_metric(name)} on {', '.join(found[name])} {_total(found[name]):.4g}"
        before = release.held_out.get("base", {}).get(name)
        parts.append(f"{text}, the base model's is {_total(before):.4g}" if before else text)
    return "; ".join(parts) + "."


def _metric(objective: str) -> str:
    """Its name without the number that tells several of one metric apart."""
    return re.sub(r"-\d+$", "", objective)


def _total(by_set: Mapping[str, Score]) -> float:
    return Score.total(list(by_set.values())).natural


def _search(release: Release) -> str:
    counts, search = release.summary.counts, release.settings.search
    how = release.summary.baseline
    begun = f"By the baseline {how}" if how else f"By gptailor-evolve (optimizer {search.optimizer})"
    repaired = f"; {counts.repaired} of them repaired at the end" if counts.repaired else ""
    return (
        f"{begun} with seed {release.settings.seed}: {counts.candidates:,} candidates "
        f"({counts.failures} failed, {counts.gated} kept out by gates, {counts.duplicates} duplicates, "
        f"{counts.dropped} dropped early{repaired}), "
        f"{counts.tokens:,} tokens scored in {counts.seconds:,.0f} s."
    )


def _repairs(release: Release) -> str:
    """Which cuts are repaired, and from what."""
    slots = release.plan.repaired
    if not slots:
        return ""
    layers = f"layer {slots[0]}" if len(slots) == 1 else f"layers {', '.join(map(str, slots))}"
    data = release.settings.repair.data
    if data is None:
        texts = (one for one in release.settings.objectives if isinstance(one, TextConfig))
        data = {name: source for one in texts for name, source in one.data.items()}
    return (
        f"In {layers} of this model the last weight of the MLP is multiplied with a linear map that makes up "
        f"for the layers that are missing behind it. The maps (`{MAPS}/`) solve a regression on the "
        f"calibration texts ({', '.join(data)}), without gradients; the idea is "
        "[ReplaceMe](https://arxiv.org/abs/2505.02819)'s."
    )


def _gaps(release: Release) -> Iterator[str]:
    for one in release.summary.gaps:
        yield (
            f"{one.objective} on {', '.join(one.sets)}: search score minus held-out score is "
            f"{one.difference:+.4g} (95 % interval {one.low:+.4g} to {one.high:+.4g})"
        )


def _licence_note(release: Release) -> str:
    """Where it is not simply that of all members."""
    stated = {part.licence for parent in release.parents for part in parent.parts}
    if stated == {release.licence}:
        return ""
    return f"The licence of this model, {release.licence.key}, was chosen by whoever published it."


def _commands(release: Release, repo_id: str) -> str:
    local = [part.name for parent in release.parents for part in parent.parts if part.hub_id is None]
    members = "".join(f" --member {name}=PATH" for name in local)
    lines = [f"gptailor reproduce {repo_id}{members}"]
    if not local:
        lines.append(
            "mergekit-yaml mergekit_config.yml DIR   # here: stock mergekit, with gptailor-merge installed"
        )
    how = release.summary.baseline
    lines.append("gptailor-evolve search.yml --out RUN" if not how else f"# baseline: {how}")
    return "\n".join(lines)


def _has_chat_template(model: Path) -> bool:
    if (model / "chat_template.jinja").is_file():
        return True
    file = model / "tokenizer_config.json"
    return file.is_file() and '"chat_template"' in file.read_text(encoding="utf-8")
