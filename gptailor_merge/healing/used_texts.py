"""The texts that a search has scored or reported on, which a model must not be trained on afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import DataError
from gptailor_merge.objectives.text_kinds import TextConfig, token_sets

SHOWN = 60
"""Characters of a document that a message shows."""


@dataclass(frozen=True)
class UsedTexts:
    """Documents by their identity, see calibration.texts.identity.

    Attributes:
        used_for: identity of a document -> what it was used for, in words.
    """

    used_for: Mapping[str, str]

    @classmethod
    def of(cls, config: SearchConfig, tokenizer: PreTrainedTokenizerBase) -> UsedTexts:
        """Reads the texts of a search config again, as far as the search has read them.

        Raises:
            DataError: a file cannot be read.
        """
        return cls(dict(_documents(config, tokenizer)))

    def refuse(self, sets: Iterable[TokenSet]) -> None:
        """Refuses texts that hold one of the documents.

        Raises:
            DataError: names the text, how many documents, and how the first begins.
        """
        for token_set in sets:
            if shared := sorted(token_set.documents & self.used_for.keys()):
                raise DataError(
                    f"{token_set.name}: {len(shared)} of {len(token_set.documents)} documents are those that "
                    f"the run {self.used_for[shared[0]]}, the first begins {shared[0][:SHOWN]!a}; expected "
                    "other documents, so that the held-out scores stay honest"
                )


def _documents(config: SearchConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    sections = [(config.objectives, "is calibrated on"), (config.held_out, "is measured on")]
    for objectives, purpose in sections:
        for objective in objectives:
            if isinstance(objective, TextConfig):
                sets = token_sets(objective.data, tokenizer, objective.tokens, objective.sequence_length)
                for token_set in sets:
                    yield from ((document, purpose) for document in token_set.documents)
