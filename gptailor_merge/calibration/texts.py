"""Turns texts into token sequences, once per run, and digests what they are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from gptailor_merge.digests import digest
from gptailor_merge.errors import DataError


@dataclass(frozen=True)
class TextSource:
    """A source of texts: a .jsonl or .txt file, or a data set of the `datasets` library.

    Attributes:
        location: path of the file, or name of the data set.
        is_dataset: tells the two apart.
        config: configuration of a data set.
        split: of a data set.
        column: of a data set; also the field of a .jsonl file.
    """

    location: str
    is_dataset: bool = False
    config: str | None = None
    split: str = "test"
    column: str = "text"

    def texts(self) -> Iterator[str]:
        """Yields the documents in their order.

        Raises:
            DataError: names the file, the line and what was expected there.
        """
        if self.is_dataset:
            return self._from_dataset()
        path = Path(self.location)
        if path.suffix not in (".jsonl", ".txt"):
            raise DataError(f"{path}: expected a .jsonl or .txt file")
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        return self._from_jsonl(path) if path.suffix == ".jsonl" else self._from_txt(path)

    def _from_jsonl(self, path: Path) -> Iterator[str]:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    text = json.loads(line)[self.column]
                except (ValueError, KeyError, TypeError):
                    text = None
                if not isinstance(text, str):
                    raise DataError(f'{path}:{number}: expected an object with "{self.column}": "…"')
                yield text

    def _from_txt(self, path: Path) -> Iterator[str]:
        yield path.read_text(encoding="utf-8")

    def _from_dataset(self) -> Iterator[str]:
        import datasets  # takes seconds; most runs read files

        try:
            rows = datasets.load_dataset(self.location, self.config, split=self.split, streaming=True)
            for row in rows:
                yield row[self.column]
        except Exception as error:  # the library raises what its back ends raise
            raise DataError(f"data set {self.location}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Token sequences of one text source.

    Attributes:
        name: the user's name for the source.
        sequences: tensors of token ids, shape [length], all of one length.
        digest: of the ids; equal for equal content.
        documents: the texts that were taken, whole or in part, white space evened out.
    """

    name: str
    sequences: tuple[torch.Tensor, ...]
    digest: str
    documents: frozenset[str] = frozenset()

    @property
    def units(self) -> int:
        """The number of tokens that are predicted: all but the first of each sequence."""
        return sum(len(ids) - 1 for ids in self.sequences)

    @property
    def recorded_digest(self) -> str:
        """The digest that fingerprints hold."""
        return self.digest

    def rows_until(self, share: float) -> int:
        """Returns how many sequences a share is, rounded up."""
        return math.ceil(share * len(self.sequences))


def tokenize(
    name: str,
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    sequence_length: int,
) -> TokenSet:
    """Cuts a source's first tokens into sequences.

    Documents are tokenised as the tokenizer does by default (with its BOS, where it adds one),
    followed by EOS where the next document does not begin with BOS, joined, and cut.

    Args:
        tokens: most tokens taken.
        sequence_length: tokens in a sequence; what is left at the end of a source is dropped, unless
            the source is shorter than one sequence.

    Raises:
        DataError: a source with fewer than two tokens.
    """
    wanted = max(tokens, 2)
    stream: list[int] = []
    documents = set()
    for text in source.texts():
        documents.add(" ".join(text.split()))
        ids = tokenizer(text, verbose=False)["input_ids"]
        if stream and tokenizer.eos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
            stream.append(tokenizer.eos_token_id)
        stream += ids
        if len(stream) >= wanted:
            break
    stream = stream[:wanted]
    length = min(sequence_length, len(stream))
    if length < 2:
        raise DataError(f"{source.location}: fewer than two tokens; nothing can be scored")
    starts = range(0, len(stream) - length + 1, length)
    sequences = tuple(torch.tensor(stream[at : at + length]) for at in starts)
    return TokenSet(name, sequences, digest([length, stream]), frozenset(documents - {""}))
