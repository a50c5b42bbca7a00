"""The bases of the kinds on texts: their keys in the config, and tokenised texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.calibration.held_back import divided
from gptailor_merge.calibration.texts import TextSource, TokenSet, tokenize
from gptailor_merge.errors import KeyPath, Problem
from gptailor_merge.objectives.config_types import (
    Data,
    DataSource,
    FileConfig,
    Positive,
    absolute_files,
    missing_files,
    source_in_words,
)
from gptailor_merge.objectives.kinds import Context, ObjectiveConfig, PreparedObjective, Weight
from gptailor_merge.objectives.protocols import Objective


class DataConfig(ObjectiveConfig):
    """An objective whose data are texts.

    Attributes:
        data: a name of your choice -> a file, a directory of files, or a data set.
    """

    data: Data

    source_key: ClassVar[str | None] = "data"

    def problems(self, path: KeyPath, directory: Path, members: Sequence[str]) -> list[Problem]:
        """Returns a problem for each file that does not exist."""
        return missing_files((*path, "data"), self.data, directory)

    def resolved(self, directory: Path) -> Self:
        """Returns the config with absolute paths of files."""
        return self.model_copy(update={"data": absolute_files(self.data, directory)})

    def sources(self) -> Mapping[str, DataSource]:
        """Returns the data."""
        return self.data

    def data_in_words(self) -> str:
        """Names each of the data and its source: `stories (stories.jsonl), sums (sums.jsonl)`."""
        return ", ".join(f"{name} ({source_in_words(source)})" for name, source in self.data.items())


class TextConfig(DataConfig):
    """An objective on what a model predicts of texts, token by token.

    Attributes:
        tokens: how many in all, shared evenly by the data.
        sequence_length: tokens that a model sees at once.
    """

    tokens: Annotated[int, Field(ge=2)] = 32768
    sequence_length: Annotated[int, Field(ge=2)] = 512
    weight: Weight = 1.0

    calibrates: ClassVar[bool] = True

    def prepare(self, context: Context) -> PreparedObjective:
        """Tokenises the texts.

        Raises:
            DataError: a text cannot be read, or is too short.
        """
        sets = token_sets(self.data, context.tokenizer, self.tokens, self.sequence_length)
        return self._on(sets, context)

    @property
    def has_gradient(self) -> bool:
        """True for a mean over tokens."""
        return self.calibrates

    def divided(
        self, context: Context, texts: tuple[TokenSet, ...]
    ) -> tuple[PreparedObjective, PreparedObjective]:
        """Returns the objective on three of four sequences, and on every fourth."""
        parts = (self._on(tuple(part), context) for part in divided(texts))
        return next(parts), next(parts)

    def _on(self, sets: tuple[TokenSet, ...], context: Context) -> PreparedObjective:
        return PreparedObjective(
            self.kind, sets, lambda name, batches: self.build(name, sets, batches, context)
        )

    @abstractmethod
    def build(
        self, name: str, sets: tuple[TokenSet, ...], batches: Sequence[Batch], context: Context
    ) -> Objective:
        """Makes the objective.

        Args:
            name: unique in the run.
            sets: the tokenised data.
            batches: all batches of its section; those with segments of the sets are the objective's.
        """

    def size_in_words(self) -> str:
        """Says how many tokens are taken, in sequences of which length."""
        return f"{self.tokens:,} tokens in all, in sequences of {self.sequence_length}"


class RecordedTextKeys(ObjectiveConfig):
    """The keys of `kl` and `perplexity`, in the order in which runs record them.

    The digest by which the Hub tells runs apart depends on the order, and on `top_k`, which every run with
    perplexity has recorded, too. A new kind needs none of this.

    Attributes:
        teacher: the member to stay close to, or the name of a text -> its member; default the base.
        top_k: the number of the teacher's likeliest tokens that are stored for each position.
    """

    data: Data
    teacher: str | dict[str, str] | None = None
    tokens: Annotated[int, Field(ge=2)] = 32768
    sequence_length: Annotated[int, Field(ge=2)] = 512
    top_k: Positive = 128
    weight: Weight = 1.0


def token_sets(
    data: Mapping[str, DataSource],
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    sequence_length: int,
    without: Container[str] = frozenset(),
) -> tuple[TokenSet, ...]:
    """Tokenises every source.

    Args:
        tokens: taken in all, shared evenly by the sources.
        sequence_length: tokens in a sequence.
        without: documents that are left out, see calibration.texts.

    Raises:
        DataError: a source cannot be read, or has fewer than two tokens.
    """
    share = max(2, tokens // len(data))
    return tuple(
        tokenize(
            name,
            text_source(source),
            tokenizer,
            tokens=share,
            sequence_length=sequence_length,
            without=without,
        )
        for name, source in data.items()
    )


def text_source(source: DataSource) -> TextSource:
    """Returns the texts of a file or a data set."""
    if isinstance(source, str):
        return TextSource(source)
    if isinstance(source, FileConfig):
        return TextSource(source.file, column=source.column)
    return TextSource(
        source.dataset, is_dataset=True, config=source.config, split=source.split, column=source.column
    )
