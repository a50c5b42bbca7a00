"""The protocol of a kind of objective: how its config is read, built and described.

A kind is one class, the config of its objectives, registered under a name (see registry). Nothing else
in the package knows kinds apart: whatever differs between them is asked of this class. The smallest kind on
texts is this, with an objective `Entropy` beside it:

    class EntropyConfig(TextConfig):
        kind: Literal["entropy"]

        def build(self, name, sets, batches, context):
            return Entropy(name, sets)

        def sentence(self):
            return f"entropy on {self.data_in_words()}; {self.size_in_words()}"

Bases to start from are text_kinds.TextConfig, costs.CostConfig, and ObjectiveConfig for anything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, cast

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.errors import ConfigError, KeyPath, Problem
from gptailor_merge.objectives.config_types import DataSource, Section
from gptailor_merge.objectives.protocols import Forward, Objective, UnitSet

Purpose = Literal["searched", "held_out"]
"""The use of data: objectives and gates look at them during the search, or they are only reported on."""


Weight = Annotated[float, Field(gt=0)]
"""The factor of an objective in the loss."""


Value = TypeVar("Value")


@dataclass(frozen=True)
class Context:
    """The means that a run gives to the kinds to build their objectives.

    Attributes:
        tokenizer: the base model's.
        directory: of the base model.
        teacher: member's name -> (digest of its weights, its forward pass).
        device: models run on it.
        out_dtype: dtype of the model that will be written.
        seed: the run's.
        purpose: the use of the data that are read.
        divided: names of the sources that serve both purposes; see ObjectiveConfig.splits.
        without: documents that are left out, because the search has seen them.
    """

    tokenizer: PreTrainedTokenizerBase
    directory: Path
    teacher: Callable[[str], tuple[str, Forward]]
    device: torch.device
    out_dtype: torch.dtype
    seed: int = 0
    purpose: Purpose = "searched"
    divided: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def for_purpose(self, purpose: Purpose) -> Context:
        """Returns the same context for data of a purpose."""
        return replace(self, purpose=purpose)

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Returns what `make` gave when the key was first asked for: objectives of a run share it.

        Args:
            key: begins with the kind, so that kinds do not meet.
        """
        if key not in self._memory:
            self._memory[key] = make()
        return cast(Value, self._memory[key])


@dataclass(frozen=True)
class SplitItems:
    """The items of a benchmark that an objective is measured on.

    Attributes:
        name: the benchmark's, and that of the set in the objective.
        split: which of its splits they come from; its config key is `split`.
        is_test: True where results on this split are what people compare models by.
        ids: positions in the split, in the order in which rungs take them.
    """

    name: str
    split: str
    is_test: bool
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PreparedObjective:
    """An objective whose data are read, and which is built when the batches are laid out.

    Attributes:
        metric: its name, unless several objectives have it: `kl`, `acc`.
        sets: the data that it is measured on.
        build: makes the objective, given its name and the batches that hold its token sets.
        items: which items it is measured on, where a benchmark has them.
    """

    metric: str
    sets: Sequence[TokenSet | UnitSet]
    build: Callable[[str, Sequence[Batch]], Objective]
    items: tuple[SplitItems, ...] = ()

    @staticmethod
    def ready(objective: Objective, items: tuple[SplitItems, ...] = ()) -> PreparedObjective:
        """Wraps an objective that needs no batches; it is called by its metric until it gets a name."""

        def renamed(name: str, batches: Sequence[Batch]) -> Objective:
            return replace(objective, name=name)  # type: ignore[type-var]  # objectives are dataclasses

        return PreparedObjective(objective.name, objective.sets, renamed, items)


class ObjectiveConfig(Section, ABC):
    """One objective in the config; each kind is a subclass.

    A kind declares its keys (`kind`, a Literal of its name; its own; and last `weight`) and implements
    `prepare` and `sentence`. The other methods have answers that fit a kind without files.

    Attributes:
        weight: the factor in the loss.
        source_key: key under which the data stand, in messages about them.
        is_cost: True for what a model costs, as against how good it is.
        calibrates: True where repairs may be fitted to its texts.
        has_items: True where it is measured on items of a split, which the run records and the card names.
    """

    kind: str
    if TYPE_CHECKING:  # declared by each kind, so that it stands last in a recorded config
        weight: float | None

    source_key: ClassVar[str | None] = None
    is_cost: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    has_items: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, context: Context) -> PreparedObjective:
        """Reads the data.

        Raises:
            InputError: they cannot be read, or do not fit; the key path is added by the caller.
        """

    @abstractmethod
    def sentence(self) -> str:
        """Says on the model card what was measured and on what, without a full stop."""

    def describe(self) -> str:
        """Returns the sentence, with the bound where the objective is a gate."""
        return self.sentence()

    def problems(self, path: KeyPath, directory: Path, members: Sequence[str]) -> list[Problem]:
        """Returns what is wrong with the values, apart from their types.

        Args:
            path: key of the objective in the config.
            directory: relative paths start here.
            members: names of the family's members.
        """
        return []

    def resolved(self, directory: Path) -> Self:
        """Returns the config with absolute paths; relative ones start at `directory`."""
        return self

    @property
    def has_gradient(self) -> bool:
        """True where recipes can be tuned to it."""
        return False

    def divided(
        self, context: Context, texts: tuple[TokenSet, ...]
    ) -> tuple[PreparedObjective, PreparedObjective]:
        """Returns the objective on data to fit to, and on data that are held back from the fit.

        Args:
            texts: the texts to divide; data of another form are those of `prepare`.

        Raises:
            ConfigError: it has no gradient.
            DataError: too few data to hold some back.
        """
        raise ConfigError(f"an objective of the kind {self.kind} has no gradient")

    def sources(self) -> Mapping[str, DataSource]:
        """Returns name -> texts, for the sets that are made of texts."""
        return {}

    def splits(self, context: Context) -> Mapping[str, str]:
        """Returns name -> split, for sources that can be divided.

        Where the search and the held-out set take the same split of a source, its name will be in
        `Context.divided`, and `prepare` must take a part of the split that depends on the purpose.
        """
        return {}

    def comparable_on(self, set_name: str) -> Hashable:
        """Returns what a counterpart must share, besides the metric's name, to measure the same on a set."""
        return self.kind

    @classmethod
    def reported_besides(cls, searched: Sequence[Self], held_out: Sequence[Self]) -> Sequence[Self]:
        """Returns what is reported although the held-out section does not ask for it.

        Args:
            searched: the objectives of this kind.
            held_out: the entries of this kind in the held-out section.
        """
        return ()

    @classmethod
    def shared_settings(cls, configs: Sequence[Self], versions: Mapping[str, str]) -> Sequence[str]:
        """Returns what the card says once of all objectives with items in a section.

        Args:
            versions: library -> the version that the run used.
        """
        return ()
