"""What of a run becomes public: the recipe, and a compact record of how it was found.

Members are called as parents.py says, data files by their names: no path of this machine is in either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from gptailor_merge import __version__
from gptailor_merge.config import SearchConfig
from gptailor_merge.digests import digest
from gptailor_merge.documents import read_yaml
from gptailor_merge.errors import ConfigError
from gptailor_merge.hub.parents import Licence, Parent, licence_of, parents_of
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.edits import map_files
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.directory import RunDirectory
from gptailor_merge.runs.journal import open_existing
from gptailor_merge.runs.summary import BASELINE, FOUND, Summary, summarize
from gptailor_merge.scoring.measures import Items

RECORD = "gptailor_run.json"


MAPS = "repair"
"""Where the maps of repaired layers are published; the recipe names them so."""


FORMAT = 1
"""Of the record."""


RESUMABLE = ("budget", "pick")
"""Keys of `search` that a resumed run may change: it stays the same run."""


@dataclass(frozen=True)
class Release:
    """A finished run, as it is published.

    Attributes:
        recipe: with members as the public calls them.
        maps: file of a repaired layer's map, as the recipe names it -> where it is.
        parents: the members that the recipe names, the base first.
        config: of the run, likewise.
        versions: of the libraries, when it was begun.
        held_out: model -> its scores; models are the members and search.run.FOUND.
        items: which items of tasks were searched on, and held out.
        licence: of the model.
        search_digest: the same for every state of one run, see `search_digest`.
    """

    run: RunDirectory
    summary: Summary
    recipe: Recipe
    maps: Mapping[str, Path]
    parents: tuple[Parent, ...]
    family: tuple[Parent, ...]
    config: Mapping[str, Any]
    settings: SearchConfig
    versions: Mapping[str, str]
    held_out: Mapping[str, Scores]
    items: tuple[Items, ...]
    licence: Licence
    search_digest: str

    @property
    def plan(self) -> Plan:
        """Of the published recipe."""
        return plan(self.recipe)

    @property
    def digest(self) -> str:
        """Of the published recipe: `gptailor recipe lint` prints the same of it."""
        return self.plan.digest

    def record(self) -> dict[str, Any]:
        """What is published beside the model."""
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
            "items": [{**asdict(one), "ids": len(one.ids)} for one in self.items],
            "recipe": self.recipe.to_mapping(),
            "config": self.config,
            "versions": self.versions,
        }

    def record_text(self) -> str:
        """The record as its file has it."""
        return json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n"


def release_of(run: RunDirectory, licence: str | None) -> Release:
    """Read what of a run is published.

    Args:
        licence: chosen by the user; else the members' own.

    Raises:
        InputError: no run, or nothing found yet.
        ConfigError: no licence that all members have.
    """
    summary = summarize(run)
    document = read_yaml(run.config, ConfigError)
    versions = document.pop("environment", {})
    # Not `load`, which looks for the data: they need not be there any more.
    settings = SearchConfig.model_validate(document)
    found = Recipe.load(run.best)
    family = parents_of(members_of(settings))
    used = [parent for parent in family if parent.model in found.models]
    with open_existing(run.journal) as journal:
        held_out = journal.held_out()
        items = tuple(journal.items())
        baseline = journal.meta(BASELINE) or ""
    names = {parent.model: parent.pinned for parent in family}
    files = map_files(found)
    public = {*(parent.member for parent in family), FOUND}
    return Release(
        run=run,
        summary=summary,
        recipe=renamed(found, {**names, **{file: _as_published(file) for file in files}}),
        maps={_as_published(file): Path(file) for file in files},
        parents=tuple(used),
        family=family,
        config=_without_paths(document, names),
        settings=settings,
        versions=versions,
        held_out={model: scores for model, scores in held_out.items() if model in public},
        items=items,
        licence=licence_of(used, licence),
        search_digest=search_digest(settings, family, baseline),
    )


def _as_published(file: str) -> str:
    return f"{MAPS}/{PurePath(file).name}"


def members_of(settings: SearchConfig) -> dict[str, str]:
    """Name -> model of a config's family, the base first."""
    return {"base": settings.family.base, **settings.family.variants}


def search_digest(settings: SearchConfig, family: tuple[Parent, ...], baseline: str = "") -> str:
    """Tells runs apart; equal for one that is resumed with a larger budget or another pick.

    Args:
        baseline: what the run is of, where it is no search.
    """
    document = settings.model_dump(mode="json", exclude_none=True)
    for key in RESUMABLE:
        document["search"].pop(key, None)
    return digest([_without_paths(document, {one.model: one.unpinned for one in family}), baseline])


def renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """A recipe whose models, and maps, are called otherwise.

    Args:
        names: model or file of a map -> its new name; others stay.
    """
    return Recipe.from_mapping(_renamed(recipe.to_mapping(), names))


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        # Of keys only those of `weights` are models.
        return {names.get(key, key): _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_renamed(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def _without_paths(value: Any, names: Mapping[str, str]) -> Any:
    """A document of a config: models by their names, every other path by its last part."""
    if isinstance(value, Mapping):
        return {
            _public(key, names): PurePath(inner).name
            if key == "file" and isinstance(inner, str)
            else _without_paths(inner, names)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_paths(inner, names) for inner in value]
    return _public(value, names) if isinstance(value, str) else value


def _public(text: str, names: Mapping[str, str]) -> str:
    return names.get(text) or (Path(text).name if Path(text).is_absolute() else text)


def _scores(scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
    return {name: {one: _score(score) for one, score in by.items()} for name, by in scores.items()}


def _score(score: Score) -> dict[str, float]:
    numbers = {"score": score.natural, "count": score.count, "error": score.natural_error}
    return {name: number for name, number in numbers.items() if number is not None and math.isfinite(number)}
