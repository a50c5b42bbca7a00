"""The search config: what a user writes for gptailor-evolve, and what a run records of it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from gptailor_merge.documents import explain, read_yaml
from gptailor_merge.errors import ConfigError, KeyPath, Problem
from gptailor_merge.objectives.configs import (
    CostConfig,
    Data,
    Gates,
    ObjectiveConfig,
    Objectives,
    Positive,
    RepetitionConfig,
    Section,
    TaskConfig,
    TextConfig,
)
from gptailor_merge.recipe.fields import ModelName
from gptailor_merge.recipe.recipe import Recipe

VERSIONED = ("gptailor-merge", "mergekit", "torch", "transformers", "nevergrad", "numpy", "lm-eval")


class FamilyConfig(Section):
    """The models: each a directory, or a Hub id with an optional @revision."""

    base: ModelName
    variants: dict[str, ModelName] = Field(default_factory=dict)


def _read_size(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if len(value) != 2 or not all(type(one) in (int, float) for one in value) or value[0] >= value[1]:
            raise ValueError(f"expected one size or a range [smallest, largest], found {list(value)!r}")
        return tuple(value)
    return value


def _form_of_size(value: Any) -> str:
    return "[range]" if isinstance(value, tuple) else "[one]"


Share = Annotated[float, Field(gt=0, lt=1)]


Layers = Annotated[
    Annotated[Positive, Tag("[one]")] | Annotated[tuple[Positive, Positive], Tag("[range]")],
    Discriminator(_form_of_size),
    BeforeValidator(_read_size),
]


Shares = Annotated[
    Annotated[Share, Tag("[one]")] | Annotated[tuple[Share, Share], Tag("[range]")],
    Discriminator(_form_of_size),
    BeforeValidator(_read_size),
]


class Target(Section):
    """The size of the pruned model, in one of three ways; a range asks for the front of its sizes."""

    layers: Layers | None = None
    remove: Layers | None = None
    parameters: Shares | None = None

    @model_validator(mode="after")
    def _one(self) -> Target:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of layers, remove, parameters, found {given or 'none'}")
        return self

    @property
    def is_range(self) -> bool:
        """Whether several sizes are asked for."""
        return any(isinstance(value, tuple) for _, value in self)


class Protect(Section):
    """How many of the first and last layers are never removed."""

    first: Annotated[int, Field(ge=0)] = 1
    last: Annotated[int, Field(ge=0)] = 1


class Operations(Section):
    """What may happen to a layer, and to embeddings and head.

    Attributes:
        merge: mergekit methods; an empty list searches removal and selection only.
        removable: layers that may be removed; default all but the protected ones.
        outer: what embeddings and head are: the base's, selected from a member, or selected or merged.
        neighbours: how far from its own layer a slot may take one, of any member.
        parts: whether a slot may have the attention of one member and the MLP of another.
    """

    merge: tuple[str, ...] = Field(default=("task_arithmetic", "slerp"), strict=False)
    protect: Protect = Protect()
    removable: tuple[int, ...] | None = Field(default=None, strict=False)
    outer: Literal["base", "select", "merge"] = "base"
    neighbours: Annotated[int, Field(ge=0)] = 0
    parts: bool = False


class StartRecipe(Section):
    """A recipe that the search starts from, whole, so that a run holds all that it depends on."""

    file: str
    recipe: dict[str, Any]


KNEE = "knee"


RULE = re.compile(rf"{KNEE}|best:(\S+)|layers=([1-9]\d*)")


RULES = f"{KNEE}, best:OBJECTIVE or layers=N"


def _read_rule(value: Any) -> Any:
    if not isinstance(value, str) or not RULE.fullmatch(value):
        raise ValueError(f"expected {RULES}, found {value!r}")
    return value


class SearchSection(Section):
    """How the space is searched.

    Attributes:
        start: recipe files that the first generation begins with.
        budget: candidates that are proposed, duplicates included.
        population: candidates in a generation.
        max_failures: so many failed candidates in a row stop the run.
        racing: drop candidates that cannot win before they are scored on everything; default where
            it is known how many candidates the optimiser keeps.
        pareto: find the front of several objectives, instead of the best weighted sum; default where
            the target is a range, or a cost has no weight.
        pick: which recipe of the front is the run's best, see search.front.
        warm_start: baselines whose recipes the first generation begins with, see search.baselines;
            default one_shot, where it takes no more than a quarter of the budget.
    """

    optimizer: str = "default"
    budget: Positive = 200
    population: Positive = 16
    max_failures: Positive = 16
    racing: bool | None = None
    pareto: bool | None = None
    pick: Annotated[str, BeforeValidator(_read_rule)] = KNEE
    start: tuple[str | StartRecipe, ...] = Field(default=(), strict=False)
    warm_start: tuple[str, ...] | None = Field(default=None, strict=False)


class RepairSection(Section):
    """How the best recipes are repaired when the search is over, see search.finalists.

    Attributes:
        finalists: so many recipes, the best for each choice of layers, are repaired; of a front all its
            recipes are. 0 repairs none.
        everywhere: also behind slots where no layer is missing.
        data: texts that maps are fitted to; default those of the objectives.
        tokens, sequence_length: of these, as of an objective's.
    """

    finalists: Annotated[int, Field(ge=0)] = 8
    everywhere: bool = False
    data: Data | None = None
    tokens: Annotated[int, Field(ge=2)] = 32768
    sequence_length: Annotated[int, Field(ge=2)] = 512


class SearchConfig(Section):
    """The whole config. `directory` is where relative paths start; it is not written by users.

    Attributes:
        dtype: of merge arithmetic.
        out_dtype: of the written model; default the base's.
        allow_test_split: search on tasks' test splits, which then tell nothing about other models.
        gates: what a candidate must keep to besides; one that does not is out.
        drop_leaks: leave items of tasks that are searched on out of what is held out, instead of
            refusing the config.
        batch_tokens: about so many tokens go through the model at once.
    """

    family: FamilyConfig
    target: Target
    objectives: Objectives = Field(min_length=1, strict=False)
    operations: Operations = Operations()
    gates: Gates = Field(default=(), strict=False)
    held_out: Objectives = Field(default=(), strict=False)
    search: SearchSection = SearchSection()
    repair: RepairSection = RepairSection()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    out_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_tokens: Positive = 4096
    allow_test_split: bool = False
    drop_leaks: bool = False

    @property
    def pareto(self) -> bool:
        """Whether a front is searched for."""
        asked = self.search.pareto
        return self.target.is_range or self._has_free_cost if asked is None else asked

    @property
    def _has_free_cost(self) -> bool:
        return any(isinstance(one, CostConfig) and one.weight is None for one in self.objectives)

    @classmethod
    def load(cls, file: Path) -> SearchConfig:
        """Read a config; relative paths become absolute.

        Raises:
            ConfigError: unknown keys, wrong types, missing files, with the file's lines.
        """
        document = read_yaml(file, ConfigError)
        if not isinstance(document, Mapping):
            raise ConfigError(f"expected a mapping, found {type(document).__name__}", file=file)
        document = {key: value for key, value in document.items() if key != "environment"}
        try:
            config = cls.model_validate(document)
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
        allow_test_split: bool = False,
        repair: bool = True,
    ) -> SearchConfig:
        """The config with what the command line says otherwise.

        Args:
            repair: False repairs nothing.

        Raises:
            RecipeError: a start that is no recipe.
            ConfigError: a pick that is no rule.
        """
        read = tuple(_start(file) for file in start) or None
        if pick is not None:
            try:
                _read_rule(pick)
            except ValueError as error:
                raise ConfigError(f"--pick: {error}") from None
        options = {"budget": budget, "racing": racing, "start": read, "pick": pick}
        given = {name: value for name, value in options.items() if value is not None}
        search = self.search.model_copy(update=given)
        allowed = self.allow_test_split or allow_test_split
        update: dict[str, Any] = {"search": search, "allow_test_split": allowed}
        if not repair:
            update["repair"] = self.repair.model_copy(update={"finalists": 0})
        return self.model_copy(update=update if seed is None else {**update, "seed": seed})

    def to_yaml(self) -> str:
        """Everything resolved, with the versions of the libraries, as `load` reads it back."""
        document = {**self._document(), "environment": environment()}
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    def differences(self, other: SearchConfig) -> list[str]:
        """The top-level keys that differ, but for what a resumed run may change: the budget and the pick."""
        ours, theirs = self._document(), other._document()
        for document in (ours, theirs):
            for key in ("budget", "pick"):
                document["search"].pop(key)
        return [key for key in ours if ours[key] != theirs.get(key)]

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return document

    def _problems(self, directory: Path) -> list[Problem]:
        found = []
        sections: dict[str, Sequence[ObjectiveConfig]] = {
            "objectives": self.objectives,
            "gates": self.gates,
            "held_out": self.held_out,
        }
        for section, objectives in sections.items():
            for index, objective in enumerate(objectives):
                found += self._problems_of((section, index), objective, directory)
        if self.search.pareto is False and (self.target.is_range or self._has_free_cost):
            message = (
                "a range of sizes, and a cost without a weight, are of use for a front only, found false"
            )
            found.append(Problem(("search", "pareto"), message))
        if self.pareto and self.search.racing:
            message = "candidates of a front cannot be raced: each may be the best in something, found true"
            found.append(Problem(("search", "racing"), message))
        if self.search.pareto and len(self.objectives) < 2 and not self.target.is_range:
            message = "a front is one of several objectives, or of a range of sizes, found one objective"
            found.append(Problem(("search", "pareto"), message))
        if "base" in self.family.variants:
            found.append(Problem(("family", "variants", "base"), "the name base is the base model's"))
        found += _missing(("repair", "data"), self.repair.data or {}, directory)
        return found

    def _problems_of(self, path: KeyPath, objective: ObjectiveConfig, directory: Path) -> list[Problem]:
        """What is wrong in one objective, gate or held-out measure."""
        found = []
        if isinstance(objective, TaskConfig):
            where = objective.include_path
            if where is not None and not (directory / where).is_dir():
                message = f"no such directory, found {where!r}; looked for {directory / where}"
                found.append(Problem((*path, "include_path"), message))
        if isinstance(objective, (TextConfig, RepetitionConfig)):
            found += _missing((*path, "data"), objective.data, directory)
        if isinstance(objective, TextConfig):
            members = {"base", *self.family.variants}
            teachers = objective.teacher
            by_name = teachers if isinstance(teachers, dict) else {"": teachers or "base"}
            for name, teacher in by_name.items():
                if teacher not in members:
                    message = f"no such member, found {teacher!r}; known are {', '.join(sorted(members))}"
                    found.append(Problem((*path, "teacher", *([name] if name else [])), message))
        return found

    def _repeated_members(self) -> list[Problem]:
        names = {self.family.base: "base"}
        found = []
        for name, model in self.family.variants.items():
            if model in names:
                message = f"the same model as {names[model]}; members must differ"
                found.append(Problem(("family", "variants", name), message))
            names.setdefault(model, name)
        return found

    def _resolved(self, directory: Path) -> dict[str, Any]:
        document = self._document()
        family = document["family"]
        family["base"] = _absolute(family["base"], directory)
        family["variants"] = {n: _absolute(m, directory) for n, m in family["variants"].items()}
        document["search"]["start"] = [
            _start(directory / start).model_dump() if isinstance(start, str) else start
            for start in document["search"]["start"]
        ]
        if self.target.is_range and not any(isinstance(one, CostConfig) for one in self.objectives):
            document["objectives"].append({"kind": "parameters"})
        measured = (*document["objectives"], *document["gates"], *document["held_out"])
        for part in (*measured, document["repair"]):
            if "data" in part:
                part["data"] = {
                    name: str(directory / source) if isinstance(source, str) else source
                    for name, source in part["data"].items()
                }
            if "include_path" in part:
                part["include_path"] = str(directory / part["include_path"])
        return document


def _missing(path: KeyPath, data: Mapping[str, Any], directory: Path) -> list[Problem]:
    """Files that are not there."""
    return [
        Problem((*path, name), f"no such file, found {source!r}; looked for {directory / source}")
        for name, source in data.items()
        if isinstance(source, str) and not (directory / source).is_file()
    ]


def environment() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}}


def _start(file: Path) -> StartRecipe:
    """A recipe's file; its models are named as a search config's are."""
    document = Recipe.load(file).to_mapping()

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        is_model = ("model", "base_model")
        return {k: _absolute(v, Path.cwd()) if k in is_model else named(v) for k, v in value.items()}

    return StartRecipe(file=str(file), recipe=named(document))


def _absolute(model: str, directory: Path) -> str:
    """A model as the config names it; what exists beside the config is a path, each side of a plus."""
    path = Path(os.path.expanduser(model))
    candidate = path if path.is_absolute() else directory / path
    if candidate.exists() or (path.is_absolute() and "+" not in model):
        return str(candidate.resolve())
    if model.count("+") == 1:
        return "+".join(_absolute(part, directory) for part in model.split("+"))
    return model
