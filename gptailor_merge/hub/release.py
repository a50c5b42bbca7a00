"""A run as it is published: the recipe, and a compact record of how it was found.

Members are called as parents.py says, and everything passes through runs/redaction.py: no path of this
machine is in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from gptailor_merge import __version__
from gptailor_merge.composing.adapting import WEIGHTS_FILE, LoraAdapter, load_adapter
from gptailor_merge.config import SearchConfig, without_resumable
from gptailor_merge.digests import digest
from gptailor_merge.documents import json_text
from gptailor_merge.errors import ConfigError
from gptailor_merge.healing.facts import HealingFacts, facts_on
from gptailor_merge.hub.parents import Licence, Parent, licence_of, parents_of
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.edits import gains_files, map_files, with_whole_paths
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.record import FOUND, Record
from gptailor_merge.runs.redaction import public
from gptailor_merge.runs.summary import Summary, summarize
from gptailor_merge.scoring.measures import Items

RECORD = "gptailor_run.json"
"""The file of the published record."""


MAPS = "repair"
"""The directory in which the maps of repaired layers are published; the recipe names them so."""


GAINS = "gains"
"""The directory in which the gains of norms are published."""


ADAPTER = "adapter"
"""The directory in which the adapter of a healed recipe is published; the recipe names it so."""


FORMAT = 1
"""The format of the published record."""


@dataclass(frozen=True)
class Release:
    """A finished run, as it is published.

    Attributes:
        source: the run as it was read.
        recipe: the best recipe, with members as the public calls them.
        files: file of an edit, as the published recipe names it -> where it is.
        parents: the members that the recipe names, the base first.
        family: all members, the base first.
        config: the search config, with members as the public calls them.
        licence: the licence of the model.
        search_digest: the same for every state of one run, see `search_digest`.
        adapter: the directory of the recipe's adapter on this machine; None where it has none.
        healing: how the model was healed, as far as the run says it.
    """

    source: Record
    summary: Summary
    recipe: Recipe
    files: Mapping[str, Path]
    parents: tuple[Parent, ...]
    family: tuple[Parent, ...]
    config: Mapping[str, Any]
    licence: Licence
    search_digest: str
    adapter: Path | None
    healing: HealingFacts | None

    @property
    def run(self) -> Directory:
        """The directory of the run."""
        return self.source.directory

    @property
    def settings(self) -> SearchConfig:
        """The search config, which may name paths of this machine."""
        return self.source.settings

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of the libraries when the run was begun."""
        return self.source.versions

    @property
    def held_out(self) -> Mapping[str, Scores]:
        """Model -> its scores; the models are the members and FOUND."""
        return self.source.main_scores

    @property
    def items(self) -> tuple[Items, ...]:
        """The items of tasks that were searched on, and held out."""
        return self.source.items

    @property
    def plan(self) -> Plan:
        """The plan of the published recipe."""
        return plan(self.recipe)

    @property
    def lora(self) -> LoraAdapter | None:
        """The adapter of the recipe."""
        edit = self.plan.adapter
        if self.adapter is None or edit is None or edit.digest is None:
            return None
        return load_adapter(str(self.adapter), edit.digest)

    @property
    def digest(self) -> str:
        """The digest of the published recipe, as `gptailor recipe lint` prints it."""
        return self.plan.digest

    def record(self) -> dict[str, Any]:
        """Returns the record that is published beside the model."""
        shown = self.summary.to_json()
        taken = ("loss", "scores", "candidates", "failures", "duplicates", "dropped", "gated", "tokens")
        return {
            "format": FORMAT,
            "made_by": f"gptailor-merge {__version__}",
            "digest": self.digest,
            "digest_in_run": self.summary.digest,
            "search": self.search_digest,
            "licence": self.licence.key,
            "members": {parent.member: parent.pinned for parent in self.family},
            **{key: shown[key] for key in (*taken, "seconds", "gaps", "warnings")},
            **({} if self.summary.baseline is None else {"baseline": self.summary.baseline}),
            "held_out": {model: _scores(scores) for model, scores in self.held_out.items()},
            "sizes": {n: size for n, size in shown["sizes"].items() if n in ("base", FOUND)},
            "front": [{**asdict(row), "recipe": row.recipe.name} for row in self.summary.front],
            **({"stages": shown["stages"]} if "stages" in shown else {}),
            **({"writes": shown["writes"]} if "writes" in shown else {}),
            **({} if self.healing is None else {"healed": self.healing.to_public()}),
            "items": [{**asdict(items), "ids": len(items.ids)} for items in self.items],
            "recipe": self.recipe.to_mapping(),
            "config": self.config,
            "versions": self.versions,
        }

    def record_text(self) -> str:
        """Returns the record as its file has it."""
        return json_text(self.record(), indent=1, ensure_ascii=False) + "\n"


def release_of(record: Record, licence: str | None) -> Release:
    """Turns a run into what is published of it.

    Args:
        licence: the licence that the user chose; by default the one that all members state.

    Raises:
        ConfigError: nothing has been scored yet, or the members do not state one licence.
        RecipeError: the best recipe cannot be read.
    """
    summary = summarize(record)
    file = record.directory.best
    recipe = with_whole_paths(Recipe.load(file), file.parent)
    if (written := plan(recipe).digest) != summary.digest:
        raise ConfigError(
            f"{file} is recipe {written}, and the run's numbers are those of {summary.digest}; write "
            "the file again with --resume, and keep what you have changed under another name"
        )
    family = parents_of(record.models)
    used = tuple(parent for parent in family if parent.model in recipe.models)
    names = {parent.model: parent.pinned for parent in family}
    files = {**_published(map_files(recipe), MAPS), **_published(gains_files(recipe), GAINS)}
    adapter = recipe.parameters.adapter
    if adapter is not None:
        files[str(Path(adapter) / WEIGHTS_FILE)] = f"{ADAPTER}/{WEIGHTS_FILE}"
        names[adapter] = ADAPTER
    return Release(
        source=record,
        summary=summary,
        recipe=Recipe.from_mapping(public(recipe.to_mapping(), {**names, **files})),
        files={published: Path(file) for file, published in files.items()},
        parents=used,
        family=family,
        config=public(record.document, names),
        licence=licence_of(used, licence),
        search_digest=search_digest(record.settings, family, record.baseline or ""),
        adapter=None if adapter is None else Path(adapter),
        healing=facts_on(recipe, file.parent),
    )


def search_digest(settings: SearchConfig, family: tuple[Parent, ...], baseline: str = "") -> str:
    """Returns what tells runs apart; a run that is resumed with a larger budget or another pick keeps it.

    Args:
        baseline: the baseline that was run instead of a search.
    """
    document = without_resumable(settings.recorded())
    return digest([public(document, {parent.model: parent.unpinned for parent in family}), baseline])


def _published(files: Iterable[str], directory: str) -> dict[str, str]:
    """Returns file -> the name that it is published by, which no other has."""
    published: dict[str, str] = {}
    for number, file in enumerate(dict.fromkeys(files)):
        name = PurePath(file).name
        while f"{directory}/{name}" in published.values():
            name = f"{number}-{name}"
        published[file] = f"{directory}/{name}"
    return published


def _scores(scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
    return {
        objective: {name: _score(score) for name, score in by_set.items()}
        for objective, by_set in scores.items()
    }


def _score(score: Score) -> dict[str, float]:
    numbers = {"score": score.natural, "count": score.count, "error": score.natural_error}
    return {name: number for name, number in numbers.items() if number is not None and math.isfinite(number)}
