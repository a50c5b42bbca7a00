"""The one reader of a run's files: summary, page, card and release are made from its Record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from gptailor_merge.config import SearchConfig, without_versions
from gptailor_merge.documents import explain, read_yaml
from gptailor_merge.errors import ConfigError, Problem, SearchError
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.continuations import Continuations
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.journal import snapshot
from gptailor_merge.runs.metadata import Dimensions
from gptailor_merge.runs.provenance import Inputs
from gptailor_merge.runs.stages import StageTable, bought_elsewhere, stage_tables, stages_in
from gptailor_merge.scoring.gap import Gap
from gptailor_merge.scoring.gates import PREFIX
from gptailor_merge.scoring.measures import Items
from gptailor_merge.search.candidates import Candidate, Counts
from gptailor_merge.search.front import FrontCandidate, front, pick

FOUND = "found"
"""The name of the best recipe in the held-out table, beside the members' names."""


@dataclass(frozen=True)
class Record:
    """A run at one moment, read once.

    Attributes:
        document: the config as its file has it, without the versions.
        settings: the same, parsed; the data that it names need not exist any more.
        versions: library -> its version when the run was begun.
        candidates: all proposals in order.
        finished: the candidates that were scored on everything, then repaired and tuned ones.
        repairs: the repaired recipes, those included that were of no use.
        tunings: the tuned recipes, likewise.
        healings: the healed recipes, likewise.
        axes: the objectives of the front; empty where one recipe is sought.
        front: the recipes that no other beats in every objective; empty where one recipe is sought.
        best: the recipe that the run chose, or would choose now; None before anything was scored.
        done: whether the search has ended.
        baseline: the baseline that was run instead of a search, or None.
        held_out: model -> its scores on the held-out set.
        items: the items of tasks that are scored.
        sizes: model -> its dimensions; empty until the search has ended.
        gaps: digest of a recipe -> how far its search scores are from its held-out scores.
        stages: the held-out scores at the end of each stage; empty where there is nothing to compare, and
            where an early version measured the last stage only.
        writes: what the base and the best recipe write after the same prompts; None where that is not known.
        warnings: sentences that belong beside every score.
        inputs: what the scores depend on, see provenance; empty where an early version recorded nothing.
    """

    directory: Directory
    document: Mapping[str, Any]
    settings: SearchConfig
    versions: Mapping[str, str]
    candidates: tuple[Candidate, ...]
    finished: tuple[Candidate, ...]
    repairs: tuple[Candidate, ...]
    tunings: tuple[Candidate, ...]
    healings: tuple[Candidate, ...]
    counts: Counts
    axes: tuple[str, ...]
    front: tuple[FrontCandidate, ...]
    best: Candidate | None
    done: bool
    baseline: str | None
    held_out: Mapping[str, Scores]
    items: tuple[Items, ...]
    sizes: Mapping[str, Dimensions]
    gaps: Mapping[str, tuple[Gap, ...]]
    stages: tuple[StageTable, ...]
    writes: Continuations | None
    warnings: tuple[str, ...]
    inputs: Inputs

    @property
    def models(self) -> dict[str, str]:
        """The members: name -> model, the base first."""
        return members_of(self.settings)

    @property
    def main_scores(self) -> dict[str, Scores]:
        """The held-out scores of the members and of the best recipe, without those of the whole front."""
        shown = {*self.models, FOUND}
        return {model: scores for model, scores in self.held_out.items() if model in shown}

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives that are searched on, in the order of the config."""
        scores = {} if self.best is None else self.best.scores
        return _searched(scores)

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of what the candidates were scored on; None before the first."""
        return self.candidates[0].fingerprint if self.candidates else None


def members_of(settings: SearchConfig) -> dict[str, str]:
    """Returns name -> model of a config's family, the base first."""
    return {"base": settings.family.base, **settings.family.variants}


def read(directory: Directory) -> Record:
    """Reads a run, also while a search writes it.

    Raises:
        InputError: the directory holds no run.
        ConfigError: the config cannot be read by this version, or needs a package that is missing.
        SearchError: the journal cannot be read by this version.
    """
    with snapshot(directory.journal) as journal:
        document = _document(directory)
        settings = _settings(document, directory)
        versions = document.pop("environment", {})
        if not isinstance(versions, dict):
            message = f"expected library: version, found {type(versions).__name__}"
            raise ConfigError(Problem(("environment",), message), file=directory.config)
        metadata, counts = journal.metadata(), journal.counts()
        finished = tuple(journal.finished())
        _check(finished, metadata.axes, directory)
        points = tuple(front(finished, metadata.axes)) if metadata.axes else ()
        # A resumed run has a best recipe from before; a baseline decides itself how many it proposes.
        best = _chosen(directory, points, metadata.axes, settings) if points else journal.best()
        stages = stage_tables(
            stages_in(journal, metadata.axes, settings.search.pick),
            metadata.stages or {},
            _calibrated(settings, {} if best is None else best.scores),
        )
        writes = metadata.writes
        if writes is not None and (best is None or writes.recipe != best.digest):
            writes = None  # a search that goes on has found a better recipe since
        complete = bool(metadata.baseline) or counts.candidates >= settings.search.budget
        return Record(
            directory=directory,
            document=document,
            settings=settings,
            versions=versions,
            candidates=tuple(journal.candidates()),
            finished=finished,
            repairs=tuple(journal.repairs().values()),
            tunings=tuple(journal.tunings().values()),
            healings=tuple(journal.healings().values()),
            counts=counts,
            axes=metadata.axes,
            front=points,
            best=best,
            done=complete and directory.best.exists(),
            baseline=metadata.baseline or None,
            held_out=journal.held_out(),
            items=tuple(journal.items()),
            sizes=metadata.sizes or {},
            gaps=metadata.gaps or {},
            stages=stages,
            writes=writes,
            warnings=(*metadata.warnings, *bought_elsewhere(stages), *(writes.warnings if writes else ())),
            inputs=metadata.inputs or {},
        )


def _searched(scores: Scores) -> tuple[str, ...]:
    return tuple(name for name in scores if not name.startswith(PREFIX))


def _calibrated(settings: SearchConfig, scores: Scores) -> set[str]:
    """Returns the names of the sets that recipes were chosen by or fitted to.

    Args:
        scores: a recipe's, on the calibration set.
    """
    named = zip(_searched(scores), settings.objectives, strict=False)
    counted = [name for name, config in named if config.weight is not None or settings.pareto]
    fitted = settings.repair.data or {} if settings.repair.finalists else {}
    return {set_name for name in counted for set_name in scores[name]} | {*fitted}


def _check(finished: Sequence[Candidate], axes: Sequence[str], directory: Directory) -> None:
    """Refuses candidates that no search would leave.

    Raises:
        SearchError: one lacks an objective of the front.
    """
    missing = [name for name in axes if any(name not in candidate.scores for candidate in finished)]
    if missing:
        raise SearchError(f"{directory.journal}: a candidate has no score on {missing[0]}")


def _document(directory: Directory) -> dict[str, Any]:
    document = read_yaml(directory.config, ConfigError)
    if not isinstance(document, dict):
        raise ConfigError(f"expected a mapping, found {type(document).__name__}", file=directory.config)
    return document


def _settings(document: Mapping[str, Any], directory: Directory) -> SearchConfig:
    """Parses a stored config. SearchConfig.load would look for the data, which may be gone."""
    try:
        return SearchConfig.model_validate(without_versions(document))
    except ValidationError as error:
        raise ConfigError(explain(error, SearchConfig), file=directory.config) from None


def _chosen(
    directory: Directory, points: tuple[FrontCandidate, ...], axes: tuple[str, ...], settings: SearchConfig
) -> Candidate:
    """Returns the candidate of best.yml; while there is none, the one that the run would choose now."""
    if directory.best.exists():
        digest = plan(Recipe.load(directory.best)).digest
        for point in points:
            if point.candidate.digest == digest:
                return point.candidate
    return pick(points, settings.search.pick, axes).candidate
