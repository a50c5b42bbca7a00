"""What can be measured, as a search config says it: objectives, gates, the held-out set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

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

from gptailor_merge.documents import explain

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Takes no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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


Data = Annotated[
    dict[str, Annotated[str | DatasetConfig, BeforeValidator(_read_source)]], Field(min_length=1)
]


Weight = Annotated[float, Field(gt=0)]
"""Of an objective in the loss."""


class TextConfig(Section):
    """How a model predicts texts.

    Attributes:
        data: name -> file (.jsonl, .txt) or data set.
        teacher: for kl: the member to stay close to, or name -> member; others: the base.
        tokens: in all, shared evenly by the data.
        top_k: for kl: how many of the teacher's likeliest tokens are stored per position.
    """

    kind: Literal["kl", "perplexity"]
    data: Data
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
        split: of the tasks' data; default what is not their test split, or of what is held out that.
        few_shot: examples before each item; default as the tasks have it.
        limit: so many items of each task, chosen by the seed.
        metric: one of lm-eval's, or margin or choice_loss; default the tasks' first.
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


class RepetitionConfig(Section):
    """How much a model repeats itself: the share of 4-grams that have been there before.

    Attributes:
        data: as of texts; the prompts are the beginnings of its documents.
        prompts: of each of the data.
        prompt_tokens, new_tokens: length of a prompt, and of what is generated after it.
    """

    kind: Literal["repetition"]
    data: Data
    prompts: Positive = 8
    prompt_tokens: Positive = 32
    new_tokens: Annotated[int, Field(ge=4)] = 64
    weight: Weight = 1.0


class CostConfig(Section):
    """What a model costs: memory, or time on this device.

    Attributes:
        tokens: length of the prompt, or of the context; default 512, of kv_cache 4096.
        weight: in the loss; without one it is only one side of a front.
    """

    kind: Literal["parameters", "bytes", "kv_cache", "prefill_latency", "decode_latency"]
    tokens: Positive | None = None
    weight: Weight | None = None


LIMIT = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *x *base")


def _read_limit(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number and not (isinstance(value, str) and LIMIT.fullmatch(value.strip())):
        raise ValueError(
            f"expected a number, or a multiple of the base's as in '1.5 x base', found {value!r}"
        )
    return float(value) if number else value.strip()


Limit = Annotated[float | str, BeforeValidator(_read_limit)]


class Bound(Section):
    """What makes a measure a gate: a candidate beyond it is out. In the units that users see."""

    at_most: Limit | None = None
    at_least: Limit | None = None

    @model_validator(mode="after")
    def _one(self) -> Bound:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(
                "expected one of at_most, at_least, found " + ("none" if self.at_most is None else "both")
            )
        return self

    def threshold(self, of_base: float) -> float:
        """The number that it comes to.

        Args:
            of_base: the base model's own score.
        """
        given = self.at_least if self.at_most is None else self.at_most
        if isinstance(given, str):
            match = LIMIT.fullmatch(given)
            assert match is not None
            return float(match[1]) * of_base
        assert given is not None
        return given

    def holds(self, value: float, of_base: float) -> bool:
        """Whether a score is within it."""
        limit = self.threshold(of_base)
        return value <= limit if self.at_least is None else value >= limit


class TextGate(Bound, TextConfig):
    """A bound on how a model predicts texts."""


class TaskGate(Bound, TaskConfig):
    """A bound on a metric of tasks."""


class RepetitionGate(Bound, RepetitionConfig):
    """A bound on repetition."""


class CostGate(Bound, CostConfig):
    """A bound on a cost."""


_KINDS = {
    "kl": "Text",
    "perplexity": "Text",
    "task": "Task",
    "repetition": "Repetition",
    "parameters": "Cost",
    "bytes": "Cost",
    "kv_cache": "Cost",
    "prefill_latency": "Cost",
    "decode_latency": "Cost",
}


def _kind_of(value: Any) -> str | None:
    """Which of the classes; brackets mark what is in no document, see recipe.explain."""
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return f"[{_KINDS[kind]}]" if isinstance(kind, str) and kind in _KINDS else None


def _known_kind(value: Any) -> Any:
    if _kind_of(value) is None:
        found = value.get("kind") if isinstance(value, Mapping) else value
        raise ValueError(f"expected a mapping with a kind of {', '.join(_KINDS)}, found {found!r}")
    return value


ObjectiveConfig = TextConfig | TaskConfig | RepetitionConfig | CostConfig


Objectives = tuple[
    Annotated[
        Annotated[TextConfig, Tag("[Text]")]
        | Annotated[TaskConfig, Tag("[Task]")]
        | Annotated[RepetitionConfig, Tag("[Repetition]")]
        | Annotated[CostConfig, Tag("[Cost]")],
        Discriminator(_kind_of),
        BeforeValidator(_known_kind),
    ],
    ...,
]


GateConfig = TextGate | TaskGate | RepetitionGate | CostGate


Gates = tuple[
    Annotated[
        Annotated[TextGate, Tag("[Text]")]
        | Annotated[TaskGate, Tag("[Task]")]
        | Annotated[RepetitionGate, Tag("[Repetition]")]
        | Annotated[CostGate, Tag("[Cost]")],
        Discriminator(_kind_of),
        BeforeValidator(_known_kind),
    ],
    ...,
]
