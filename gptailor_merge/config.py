"""The search config, which a user writes for gptailor-evolve and a run records."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from gptailor_merge.documents import explain, read_yaml
from gptailor_merge.errors import ConfigError, Problem
from gptailor_merge.heal_config import HealSection
from gptailor_merge.objectives.config_types import AutoSize, Section, missing_files
from gptailor_merge.objectives.kinds import ObjectiveConfig
from gptailor_merge.objectives.registry import GateConfigs, ObjectiveConfigs
from gptailor_merge.recipe.fields import ModelName
from gptailor_merge.recipe.model_names import renamed, tidy
from gptailor_merge.recipe.recipe import BASE, Recipe
from gptailor_merge.repair_config import RepairSection, of_record, to_record
from gptailor_merge.search_section import RESUMABLE, SearchSection, StartRecipe, read_rule
from gptailor_merge.target_config import Target
from gptailor_merge.tune_config import TuneSection
from gptailor_merge.versions import environment
from gptailor_merge.writes_config import WritesSection

SEEDS = 2**32
"""The number of seeds that there are."""


class FamilyConfig(Section):
    """The models: directories, or Hub ids with an optional @revision; `model+adapter` adds a LoRA adapter.

    Attributes:
        base: the model that the variants were finetuned from.
        variants: a name of your choice -> the finetune.
    """

    base: ModelName
    variants: dict[str, ModelName] = Field(default_factory=dict)


class Protect(Section):
    """The layers that are never removed.

    Attributes:
        first: how many at the beginning.
        last: how many at the end.
    """

    first: Annotated[int, Field(ge=0)] = 1
    last: Annotated[int, Field(ge=0)] = 1


class Operations(Section):
    """The operations that the search may use on layers, and on embeddings and head.

    Attributes:
        merge: mergekit methods; an empty list searches removal and selection only.
        protect: layers that stay.
        removable: layers that may be removed; default all but the protected ones.
        outer: source of embeddings and head: the base, any member, or a merge of members.
        neighbours: how many layers away from its own a slot may take its layer, of any member.
        parts: True lets a slot have the attention of one member and the MLP of another.
    """

    merge: tuple[str, ...] = Field(default=("task_arithmetic", "slerp"), strict=False)
    protect: Protect = Protect()
    removable: tuple[int, ...] | None = Field(default=None, strict=False)
    outer: Literal["base", "select", "merge"] = "base"
    neighbours: Annotated[int, Field(ge=0)] = 0
    parts: bool = False


class SearchConfig(Section):
    """The whole config.

    Attributes:
        family: the models to make it from.
        target: the size of the pruned model.
        objectives: the numbers that are minimised.
        operations: what may happen to layers.
        gates: bounds that a candidate must keep to; one that does not is out.
        held_out: the numbers that are reported, on data that the search has not seen.
        search: settings of the search.
        repair: settings of the repair of the best recipes.
        tune: settings of the tuning of the best recipes.
        heal: settings of the training of the best recipe.
        writes: prompts that base and best recipe continue at the end, to be shown.
        seed: the seed of all random choices.
        dtype: the precision of merge arithmetic.
        out_dtype: the precision of the written model; default the base's.
        batch_tokens: tokens that go through the model at once, about; auto finds them on this device.
        allow_test_split: search on tasks' test splits, which then tell nothing about other models.
        drop_leaks: leave items that are searched on out of the held-out set, instead of refusing the
            config.
    """

    family: FamilyConfig
    target: Target
    objectives: ObjectiveConfigs = Field(min_length=1, strict=False)
    operations: Operations = Operations()
    gates: GateConfigs = Field(default=(), strict=False)
    held_out: ObjectiveConfigs = Field(default=(), strict=False)
    search: SearchSection = SearchSection()
    repair: RepairSection = RepairSection()
    tune: TuneSection = TuneSection()
    heal: HealSection = HealSection()
    writes: WritesSection = WritesSection()
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    out_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_tokens: AutoSize = "auto"
    allow_test_split: bool = False
    drop_leaks: bool = False

    @property
    def pareto(self) -> bool:
        """True where a front is searched for."""
        pareto = self.search.pareto
        return self.target.is_range or self._has_free_cost if pareto is None else pareto

    @property
    def tuned(self) -> int:
        """The number of recipes that are tuned where no front is sought; 0 where none is."""
        if not self.tune.steps:
            return 0
        if self.tune.finalists is not None:
            return self.tune.finalists
        return int(not self.pareto and self.target.remove != 0 and not self._tune_problems())

    @property
    def _has_free_cost(self) -> bool:
        return any(objective.is_cost and objective.weight is None for objective in self.objectives)

    @classmethod
    def load(cls, file: Path) -> SearchConfig:
        """Reads a config and makes its relative paths absolute.

        Raises:
            ConfigError: unknown keys, wrong types or missing files, each with its line in the file.
        """
        document = read_yaml(file, ConfigError)
        if not isinstance(document, Mapping):
            raise ConfigError(f"expected a mapping, found {type(document).__name__}", file=file)
        if "merge_method" in document and "family" not in document:
            text = "this is a recipe, which gptailor merge reads; expected a search config, with a family"
            raise ConfigError([Problem(("merge_method",), text)], file=file)
        try:
            config = cls.model_validate(without_versions(document))
        except ValidationError as error:
            raise ConfigError(explain(error, cls), file=file) from None
        problems = config._problems(file.parent)
        resolved = cls.model_validate(config._resolved(file.resolve().parent))
        problems += resolved._repeated_members()
        if problems:
            raise ConfigError(problems, file=file)
        return resolved

    def override(
        self,
        *,
        budget: int | None = None,
        seed: int | None = None,
        racing: bool | None = None,
        start: Sequence[Path] = (),
        pick: str | None = None,
        workers: int | str | None = None,
        allow_test_split: bool = False,
        repair: bool = True,
        tune: bool = True,
    ) -> SearchConfig:
        """Returns the config with the options of the command line.

        Args:
            budget, seed, racing, pick, workers: take the place of the config's, unless they are None.
            start: recipe files, instead of the config's.
            allow_test_split: True allows it, whatever the config says.
            repair: False repairs nothing.
            tune: False tunes nothing.

        Raises:
            RecipeError: a start that is no recipe.
            ConfigError: a pick that is no rule, or a number that is out of range.
        """
        if seed is not None and not (type(seed) is int and 0 <= seed < SEEDS):
            raise ConfigError(f"--seed: expected a whole number from 0 to {SEEDS - 1}, found {seed}")
        if budget is not None and not (type(budget) is int and budget >= 1):
            raise ConfigError(f"--budget: expected a whole number from 1, found {budget}")
        recipes = tuple(_start(file) for file in start) or None
        if pick is not None:
            try:
                read_rule(pick)
            except ValueError as error:
                raise ConfigError(f"--pick: {error}") from None
        if not (workers is None or workers == "auto" or (type(workers) is int and workers >= 1)):
            raise ConfigError(f"--workers: expected auto or a whole number from 1, found {workers}")
        options = {
            "budget": budget,
            "racing": racing,
            "start": recipes,
            "pick": pick,
            "workers": workers,
        }
        chosen = {name: value for name, value in options.items() if value is not None}
        update = {
            "search": self.search.model_copy(update=chosen),
            "allow_test_split": self.allow_test_split or allow_test_split,
            "seed": self.seed if seed is None else seed,
            "repair": self.repair if repair else self.repair.model_copy(update={"finalists": 0}),
            "tune": self.tune if tune else self.tune.model_copy(update={"finalists": 0}),
        }
        return self.model_copy(update=update)

    def to_yaml(self, versions: Mapping[str, str] | None = None) -> str:
        """Returns the resolved config with the versions of the libraries; `load` reads it back.

        Args:
            versions: library -> its version when the run was begun; default those that are installed.
        """
        recorded = dict(environment() if versions is None else versions)
        document = {**self.recorded(), "environment": recorded}
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    def differences(self, other: SearchConfig) -> list[str]:
        """Returns the top-level keys that differ; a resume may change budget, pick, workers and writes."""
        ours, theirs = without_resumable(self.document()), without_resumable(other.document())
        return [key for key in ours if ours[key] != theirs.get(key)]

    def document(self) -> dict[str, Any]:
        """Returns the config as plain data; a stage that is off is left out, as before there was one."""
        document: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        if not self.tuned:
            del document["tune"]
        if not self.heal.tokens:
            del document["heal"]
        return document

    def recorded(self) -> dict[str, Any]:
        """Returns the config as runs record it, see repair_config."""
        document = self.document()
        return {**document, "repair": to_record(document["repair"])}

    def _problems(self, directory: Path) -> list[Problem]:
        """Returns what is wrong with the values, apart from their types."""
        problems = []
        members = ("base", *self.family.variants)
        sections: dict[str, Sequence[ObjectiveConfig]] = {
            "objectives": self.objectives,
            "gates": self.gates,
            "held_out": self.held_out,
        }
        for section, objectives in sections.items():
            for index, objective in enumerate(objectives):
                problems += objective.problems((section, index), directory, members)
        if self.search.pareto is False and (self.target.is_range or self._has_free_cost):
            message = "a range of sizes, and a cost without a weight, are of use for a front only"
            problems.append(Problem(("search", "pareto"), f"{message}, found false"))
        if self.search.pareto and len(self.objectives) < 2 and not self.target.is_range:
            message = "a front is one of several objectives, or of a range of sizes, found one objective"
            problems.append(Problem(("search", "pareto"), message))
        problems += self._tune_problems() if self.tuned else []
        if "base" in self.family.variants:
            problems.append(Problem(("family", "variants", "base"), "the name base is the base model's"))
        problems += missing_files(("repair", "data"), self.repair.data or {}, directory)
        problems += self.heal.problems(directory, pareto=self.pareto)
        if self.repair.data is not None and self.repair.texts == "scored":
            message = (
                "maps are fitted to data of their own, or to what objectives score; leave one of both out"
            )
            problems.append(Problem(("repair", "texts"), f"{message}, found 'scored' beside data"))
        return problems

    def _tune_problems(self) -> list[Problem]:
        """Returns why recipes cannot be tuned."""
        problems = [
            Problem(
                ("tune", "finalists"),
                "recipes are tuned to objectives with a gradient, on texts, or on tasks by margin or "
                f"choice_loss; {objective.kind} as it is here has none; give it no weight, or leave tune out",
            )
            for objective in self.objectives
            if objective.weight is not None and not objective.has_gradient
        ]
        if not (self.tune.norms or self.family.variants):
            message = "a family without variants has no merge weights to tune; expected true, or no tune"
            problems.append(Problem(("tune", "norms"), message))
        return problems

    def _repeated_members(self) -> list[Problem]:
        names = {self.family.base: "base"}
        problems = []
        for name, model in self.family.variants.items():
            if model in names:
                message = f"the same model as {names[model]}; members must differ"
                problems.append(Problem(("family", "variants", name), message))
            names.setdefault(model, name)
        return problems

    def _resolved(self, directory: Path) -> dict[str, Any]:
        """Returns the document with absolute paths, whole start recipes, and a cost if a front needs one."""
        repair, heal = self.repair.resolved(directory), self.heal.resolved(directory)
        sections = ("objectives", "gates", "held_out")
        measured = {name: tuple(o.resolved(directory) for o in getattr(self, name)) for name in sections}
        document = self.model_copy(update={**measured, "repair": repair, "heal": heal}).document()
        for name, section in (("repair", repair), ("tune", self.tune), ("heal", heal)):
            document[name] = section.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        family = document["family"]
        family["base"] = _absolute(family["base"], directory)
        family["variants"] = {n: _absolute(m, directory) for n, m in family["variants"].items()}
        document["search"]["start"] = [
            _start(directory / os.path.expanduser(start)).model_dump() if isinstance(start, str) else start
            for start in document["search"]["start"]
        ]
        if self.target.is_range and not any(objective.is_cost for objective in self.objectives):
            document["objectives"].append({"kind": "parameters"})
        return document


def without_resumable(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config's plain data without what a resumed search may change."""
    search = {key: value for key, value in document["search"].items() if key not in RESUMABLE}
    return {**{key: value for key, value in document.items() if key != "writes"}, "search": search}


def without_versions(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config without the versions that a run records with it, in the words of today."""
    plain = {key: value for key, value in document.items() if key != "environment"}
    if len(plain) < len(document):
        if isinstance(plain.get("repair"), Mapping):
            plain["repair"] = of_record(plain["repair"])
        plain.setdefault("tune", {"finalists": 0})
    return plain


def _start(file: Path) -> StartRecipe:
    """Reads a recipe file; its models are named as a search config's are."""
    recipe = renamed(
        Recipe.load(file), lambda model: model if model == BASE else _absolute(model, Path.cwd())
    )
    return StartRecipe(file=str(file), recipe=recipe.to_mapping())


def _absolute(model: str, directory: Path) -> str:
    """Returns a model's name; what exists beside the config is a path, on each side of a plus."""
    path = Path(os.path.expanduser(model))
    candidate = path if path.is_absolute() else directory / path
    if candidate.exists() or (path.is_absolute() and "+" not in model):
        return str(candidate.resolve())
    if model.count("+") == 1:
        return "+".join(_absolute(part, directory) for part in model.split("+"))
    return tidy(model)
