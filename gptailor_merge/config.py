"""The search config: what a user writes for gptailor-evolve, and what a run records of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from gptailor_merge.errors import ConfigError, KeyPath, Problem
from gptailor_merge.recipe.recipe import ModelName, Recipe, explain, read_yaml

VERSIONED = ("gptailor-merge", "mergekit", "torch", "transformers", "nevergrad", "numpy", "lm-eval")

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Takes no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FamilyConfig(Section):
    """The models: each a directory, or a Hub id with an optional @revision."""

    base: ModelName
    variants: dict[str, ModelName] = {}


class Target(Section):
    """The size of the pruned model, in one of three ways."""

    layers: Positive | None = None
    remove: Positive | None = None
    parameters: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Target:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of layers, remove, parameters, found {given or 'none'}")
        return self


class Protect(Section):
    """How many of the first and last layers are never removed."""

    first: Annotated[int, Field(ge=0)] = 1
    last: Annotated[int, Field(ge=0)] = 1


class Operations(Section):
    """What may happen to a layer.

    Attributes:
        merge: mergekit methods; an empty list searches removal and selection only.
        removable: layers that may be removed; default all but the protected ones.
    """

    merge: tuple[str, ...] = Field(default=("task_arithmetic", "slerp"), strict=False)
    protect: Protect = Protect()
    removable: tuple[int, ...] | None = Field(default=None, strict=False)


class DatasetConfig(Section):
    """A data set of the `datasets` library."""

    dataset: str
    config: str | None = None
    split: str = "test"
    column: str = "text"


def _read_source(value: Any) -> Any:
    """Decide between the two by hand: pydantic would report the failures of both."""
    if isinstance(value, Mapping):
        try:
            return DatasetConfig.model_validate(value)
        except ValidationError as error:
            problems = explain(error, DatasetConfig)
            raise ValueError("; ".join(f"{p.where}: {p.message}" for p in problems)) from None
    if not isinstance(value, (str, DatasetConfig)):
        raise ValueError(f"expected a file, or {{dataset: name, …}}, found {value!r}")
    return value


Data = dict[str, Annotated[str | DatasetConfig, BeforeValidator(_read_source)]]
Weight = Annotated[float, Field(ge=0)]
"""Of an objective in the loss; 0 measures it only, for a gate."""


class TextConfig(Section):
    """How a model predicts texts.

    Attributes:
        data: name -> file (.jsonl, .txt) or data set.
        teacher: for kl: the member to stay close to, or name -> member; others: the base.
        tokens: in all, shared evenly by the data.
        top_k: for kl: how many of the teacher's likeliest tokens are stored per position.
    """

    kind: Literal["kl", "perplexity"]
    data: Data = Field(min_length=1)
    teacher: str | dict[str, str] | None = None
    tokens: Annotated[int, Field(ge=2)] = 32768
    sequence_length: Annotated[int, Field(ge=2)] = 512
    top_k: Positive = 128
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _teacher_of_known_data(self) -> TextConfig:
        if self.teacher is not None and self.kind != "kl":
            raise ValueError(f"only kl takes a teacher, found kind: {self.kind}")
        unknown = set(self.teacher if isinstance(self.teacher, dict) else ()) - set(self.data)
        if unknown:
            raise ValueError(f"teacher names data that is not there, found {sorted(unknown)}")
        return self

    def teacher_of(self, name: str) -> str:
        """The member that the model is compared with on this data."""
        if isinstance(self.teacher, dict):
            return self.teacher.get(name, "base")
        return self.teacher or "base"


class TaskConfig(Section):
    """A metric of lm-eval's tasks.

    Attributes:
        tasks: names of tasks or groups.
        include_path: a directory with further tasks, YAML files of lm-eval.
        split: of the tasks' data; default the validation split, else the training split.
        few_shot: examples before each item; default as the tasks have it.
        limit: so many items of each task, chosen by the seed.
        metric: one of lm-eval's, or margin; default the tasks' first.
    """

    kind: Literal["task"]
    tasks: tuple[str, ...] = Field(min_length=1, strict=False)
    include_path: str | None = None
    split: str | None = None
    few_shot: Annotated[int, Field(ge=0)] | None = None
    chat_template: bool = False
    limit: Positive | None = None
    metric: str | None = None
    weight: Weight = 1.0


_KINDS: dict[str, type[Section]] = {"kl": TextConfig, "perplexity": TextConfig, "task": TaskConfig}


def _kind_of(value: Any) -> str | None:
    """Which of the objectives' classes; brackets mark what is in no document, see recipe.explain."""
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return f"[{_KINDS[kind].__name__}]" if isinstance(kind, str) and kind in _KINDS else None


def _known_kind(value: Any) -> Any:
    if _kind_of(value) is None:
        found = value.get("kind") if isinstance(value, Mapping) else value
        raise ValueError(f"expected a mapping with a kind of {', '.join(_KINDS)}, found {found!r}")
    return value


ObjectiveConfig = TextConfig | TaskConfig
Objectives = tuple[
    Annotated[
        Annotated[TextConfig, Tag("[TextConfig]")] | Annotated[TaskConfig, Tag("[TaskConfig]")],
        Discriminator(_kind_of),
        BeforeValidator(_known_kind),
    ],
    ...,
]


class StartRecipe(Section):
    """A recipe that the search starts from, whole, so that a run holds all that it depends on."""

    file: str
    recipe: dict[str, Any]


class SearchSection(Section):
    """How the space is searched.

    Attributes:
        start: recipe files that the first generation begins with.
        budget: candidates that are proposed, duplicates included.
        population: candidates in a generation.
        max_failures: so many failed candidates in a row stop the run.
        racing: drop candidates that cannot win before they are scored on everything; default where
            it is known how many candidates the optimiser keeps.
    """

    optimizer: str = "default"
    budget: Positive = 200
    population: Positive = 16
    max_failures: Positive = 16
    racing: bool | None = None
    start: tuple[str | StartRecipe, ...] = Field(default=(), strict=False)


class SearchConfig(Section):
    """The whole config. `directory` is where relative paths start; it is not written by users.

    Attributes:
        dtype: of merge arithmetic.
        out_dtype: of the written model; default the base's.
        allow_test_split: search on tasks' test splits, which then tell nothing about other models.
        batch_tokens: about so many tokens go through the model at once.
    """

    family: FamilyConfig
    target: Target
    objectives: Objectives = Field(min_length=1, strict=False)
    operations: Operations = Operations()
    held_out: Objectives = Field(default=(), strict=False)
    search: SearchSection = SearchSection()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    out_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_tokens: Positive = 4096
    allow_test_split: bool = False

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
        allow_test_split: bool = False,
    ) -> SearchConfig:
        """The config with what the command line says otherwise.

        Raises:
            RecipeError: a start that is no recipe.
        """
        read = tuple(_start(file) for file in start) or None
        options = {"budget": budget, "racing": racing, "start": read}
        given = {name: value for name, value in options.items() if value is not None}
        search = self.search.model_copy(update=given)
        allowed = self.allow_test_split or allow_test_split
        update = {"search": search, "allow_test_split": allowed}
        return self.model_copy(update=update if seed is None else {**update, "seed": seed})

    def to_yaml(self) -> str:
        """Everything resolved, with the versions of the libraries, as `load` reads it back."""
        document = {**self._document(), "environment": environment()}
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    def differences(self, other: SearchConfig) -> list[str]:
        """The top-level keys that differ, but for the budget, which a resumed run may raise."""
        ours, theirs = self._document(), other._document()
        ours["search"].pop("budget")
        theirs["search"].pop("budget")
        return [key for key in ours if ours[key] != theirs.get(key)]

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return document

    def _problems(self, directory: Path) -> list[Problem]:
        found = []
        for section, objectives in (("objectives", self.objectives), ("held_out", self.held_out)):
            for index, objective in enumerate(objectives):
                path: KeyPath = (section, index)
                if isinstance(objective, TaskConfig):
                    where = objective.include_path
                    if where is not None and not (directory / where).is_dir():
                        message = f"no such directory, found {where!r}; looked for {directory / where}"
                        found.append(Problem((*path, "include_path"), message))
                    continue
                for name, source in objective.data.items():
                    if isinstance(source, str) and not (directory / source).is_file():
                        message = f"no such file, found {source!r}; looked for {directory / source}"
                        found.append(Problem((*path, "data", name), message))
                members = {"base", *self.family.variants}
                teachers = objective.teacher
                for name, teacher in (
                    teachers.items() if isinstance(teachers, dict) else [("", teachers or "base")]
                ):
                    if teacher not in members:
                        message = f"no such member, found {teacher!r}; known are {', '.join(sorted(members))}"
                        found.append(Problem((*path, "teacher", *([name] if name else [])), message))
        if "base" in self.family.variants:
            found.append(Problem(("family", "variants", "base"), "the name base is the base model's"))
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
        for objective in (*document["objectives"], *document["held_out"]):
            if "data" in objective:
                objective["data"] = {
                    name: str(directory / source) if isinstance(source, str) else source
                    for name, source in objective["data"].items()
                }
            if "include_path" in objective:
                objective["include_path"] = str(directory / objective["include_path"])
        return document


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
