"""GPTailor: prune a family of language models by removing, selecting and merging their layers.

A search, a look at its result, and the result on the Hub:

    import gptailor_merge as gptailor

    run = gptailor.search("recipes/demo/search.yml", "runs/first", device="cpu", budget=32)
    summary = run.summary()
    print(summary.digest, summary.counts.candidates)
    for model, scores in summary.held_out.items():
        print(model, scores["perplexity"]["total"])
    gptailor.report(run)
    print(gptailor.preview_push(run, "me/tailored", license="apache-2.0"))
    gptailor.push(run, "me/tailored", license="apache-2.0")

Every name in `__all__` is loaded when it is first used: pydantic imports this package into every process
that uses pydantic (see host/hook.py), so importing it must cost next to nothing. Functions take paths or
values, their options are keywords with the defaults of the command line, and what goes wrong is raised as a
TailorError, see errors.py. The engine's parts, for people who measure it, are in `gptailor_merge.api.engine`.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from gptailor_merge.api.drafts import DraftedSearch, draft
    from gptailor_merge.api.forecasts import forecast
    from gptailor_merge.api.healings import heal
    from gptailor_merge.api.hub import prepare_push, preview_push, push, reproduce
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.models import check, compose, materialize
    from gptailor_merge.api.open_session import Session, Trace, open_session, recipe_of, space_of
    from gptailor_merge.api.recipes import ExportedRecipe, export_recipe, import_recipe, lint
    from gptailor_merge.api.repairs import repair
    from gptailor_merge.api.reports import report, watch
    from gptailor_merge.api.scores import evaluate, score
    from gptailor_merge.api.searches import baseline, search
    from gptailor_merge.api.tunings import tune
    from gptailor_merge.checking.soundness import SoundnessReport
    from gptailor_merge.config import SearchConfig
    from gptailor_merge.errors import (
        ConfigError,
        DataError,
        FamilyError,
        HubError,
        InputError,
        MergeFailedError,
        RecipeError,
        RunError,
        ScoringError,
        SearchError,
        TailorError,
    )
    from gptailor_merge.forecast.forecast import Forecast
    from gptailor_merge.healing.healed_recipe import HealedRecipe
    from gptailor_merge.host.imported_recipe import Imported
    from gptailor_merge.hub.client import Pushed
    from gptailor_merge.hub.publication import Publication
    from gptailor_merge.hub.reproduce import Comparison
    from gptailor_merge.models.family import Family
    from gptailor_merge.planning.resolve import plan
    from gptailor_merge.recipe.plan import Edit, Operation, Plan, Slot
    from gptailor_merge.recipe.recipe import Recipe
    from gptailor_merge.repair.repaired_recipe import RepairedRecipe
    from gptailor_merge.runs.run import Run
    from gptailor_merge.runs.summary import Summary
    from gptailor_merge.scoring.task_scores import TaskScores
    from gptailor_merge.scoring.text_scores import TextScores
    from gptailor_merge.search.candidates import Candidate, Status
    from gptailor_merge.space.space import Space
    from gptailor_merge.tuning.tuned_recipe import TunedRecipe
else:
    ModuleType = type(sys)

__version__ = "0.1.0"

_ERRORS = (
    *("ConfigError", "DataError", "FamilyError", "HubError", "InputError", "MergeFailedError"),
    *("RecipeError", "RunError", "ScoringError", "SearchError", "TailorError"),
)

_NAMES = {
    "api.drafts": ("DraftedSearch", "draft"),
    "api.forecasts": ("forecast",),
    "api.healings": ("heal",),
    "api.models": ("check", "compose", "materialize"),
    "api.open_session": ("Session", "Trace", "open_session", "recipe_of", "space_of"),
    "api.scores": ("evaluate", "score"),
    "api.reports": ("report", "watch"),
    "api.hub": ("prepare_push", "preview_push", "push", "reproduce"),
    "api.library_logs": ("quiet_libraries",),
    "api.recipes": ("ExportedRecipe", "export_recipe", "import_recipe", "lint"),
    "api.repairs": ("repair",),
    "api.searches": ("baseline", "search"),
    "api.tunings": ("tune",),
    "checking.soundness": ("SoundnessReport",),
    "config": ("SearchConfig",),
    "errors": _ERRORS,
    "forecast.forecast": ("Forecast",),
    "healing.healed_recipe": ("HealedRecipe",),
    "host.imported_recipe": ("Imported",),
    "hub.client": ("Pushed",),
    "hub.publication": ("Publication",),
    "hub.reproduce": ("Comparison",),
    "models.family": ("Family",),
    "planning.resolve": ("plan",),
    "recipe.plan": ("Edit", "Operation", "Plan", "Slot"),
    "recipe.recipe": ("Recipe",),
    "repair.repaired_recipe": ("RepairedRecipe",),
    "runs.run": ("Run",),
    "runs.summary": ("Summary",),
    "scoring.task_scores": ("TaskScores",),
    "scoring.text_scores": ("TextScores",),
    "search.candidates": ("Candidate", "Status"),
    "space.space": ("Space",),
    "tuning.tuned_recipe": ("TunedRecipe",),
}
"""Module below this package -> the public names that it holds."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Candidate",
    "Comparison",
    "ConfigError",
    "DataError",
    "DraftedSearch",
    "Edit",
    "ExportedRecipe",
    "Family",
    "FamilyError",
    "Forecast",
    "HealedRecipe",
    "HubError",
    "Imported",
    "InputError",
    "MergeFailedError",
    "Operation",
    "Plan",
    "Publication",
    "Pushed",
    "Recipe",
    "RecipeError",
    "RepairedRecipe",
    "Run",
    "RunError",
    "ScoringError",
    "SearchConfig",
    "SearchError",
    "Session",
    "Slot",
    "SoundnessReport",
    "Space",
    "Status",
    "Summary",
    "TailorError",
    "TaskScores",
    "TextScores",
    "Trace",
    "TunedRecipe",
    "__version__",
    "baseline",
    "check",
    "compose",
    "draft",
    "evaluate",
    "export_recipe",
    "forecast",
    "heal",
    "import_recipe",
    "lint",
    "materialize",
    "open_session",
    "plan",
    "prepare_push",
    "preview_push",
    "push",
    "quiet_libraries",
    "recipe_of",
    "repair",
    "report",
    "reproduce",
    "score",
    "search",
    "space_of",
    "tune",
    "watch",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `search`, `repair` and `report` the functions that they are, beside rooms of these names.

    Importing a room sets an attribute of its name on this package; a public name is not replaced by it.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
