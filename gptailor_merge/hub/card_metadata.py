"""Fills in the metadata of a model card: what the Hub itself reads of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gptailor_merge.host import names_and_commands
from gptailor_merge.hub.objective_sentences import source_of
from gptailor_merge.hub.parents import languages_of
from gptailor_merge.hub.release import Release
from gptailor_merge.objectives.scores import COSTS
from gptailor_merge.report.formatting import plain
from gptailor_merge.runs.record import FOUND
from gptailor_merge.scoring.measures import reported

TAGS = (*names_and_commands.TAGS, "pruned", "gptailor")


TASK = "text-generation"


CUSTOM = "custom"
"""The model-index's name for a data set that is a file."""


def metadata(release: Release, repo_id: str) -> ModelCardData:
    """Returns the metadata of a card; its model-index holds held-out scores only."""
    parts = [part for parent in release.parents for part in parent.parts]
    ids = list(dict.fromkeys(part.hub_id for part in parts if part.hub_id))
    commits = {part.hub_id: part.revision for part in parts if part.hub_id and part.revision}
    results = list(_results(release))
    lineage: dict[str, Any] = {"base_model_revisions": commits} if commits else {}
    if ids and len(release.parents) > 1:
        lineage["base_model_relation"] = "merge"
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
        **lineage,
    )


def _results(release: Release) -> Iterator[EvalResult]:
    """Yields the held-out scores of the model, in the units that users see."""
    splits = {(item.objective, item.task): item.split for item in release.items if item.section == "held_out"}
    configs = reported(release.settings)
    for objective, by_set in release.held_out.get(FOUND, {}).items():
        metric = plain(objective)
        for name, score in by_set.items():
            if score.unit in COSTS or not math.isfinite(score.natural):
                continue
            source = source_of(configs, name)
            dataset: dict[str, Any] = {"dataset_type": CUSTOM, "dataset_config": name}
            if (objective, name) in splits:
                dataset = {"dataset_type": name, "dataset_split": splits[objective, name]}
            elif source is not None and not isinstance(source, str):
                dataset = {
                    "dataset_type": source.dataset,
                    "dataset_config": source.config,
                    "dataset_split": source.split,
                }
            yield EvalResult(
                task_type=TASK,
                dataset_name=name,
                metric_type=metric,
                metric_name=f"{metric} (held out)",
                metric_value=float(f"{score.natural:.6g}"),
                **dataset,
            )
