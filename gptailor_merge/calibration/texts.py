"""Turns texts into token sequences, once per run, and digests what they are."""

from __future__ import annotations

import math
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import torch
from transformers import PreTrainedTokenizerBase

from gptailor_merge.calibration.conversations import KNOWN, TEXT, TextDocument, document_of
from gptailor_merge.calibration.text_files import FileRow, rows_in
from gptailor_merge.digests import digest
from gptailor_merge.errors import DataError, FamilyError
from gptailor_merge.models.chat_renderer import ChatRenderer

MOST_EMPTY = 10_000
"""Texts without a character that may follow one another."""


PIECE = 2**16
"""Characters of a text that are tokenised at first; longer texts are tokenised as far as they are needed."""


_CHARACTERS_PER_TOKEN = 6


_MARGIN = 64
"""Tokens before a place where a text was cut that may have come out otherwise without the cut."""


_IDENTITY = 2**16
"""Characters by which a text is known; longer ones that begin alike count as the same."""


@dataclass(frozen=True)
class TextSource:
    """A source of texts: a file, a directory of files, or a data set of the `datasets` library.

    Attributes:
        location: path of the file or directory, or name of the data set.
        is_dataset: tells the two apart.
        config: configuration of a data set.
        split: of a data set.
        column: field or column that holds the text, or messages; see conversations.document_of.
    """

    location: str
    is_dataset: bool = False
    config: str | None = None
    split: str = "test"
    column: str = TEXT

    def documents(self, tokenizer: PreTrainedTokenizerBase) -> Generator[TextDocument, None, None]:
        """Yields the texts in their order.

        Args:
            tokenizer: its chat template renders conversations.

        Raises:
            DataError: names the file, the line, what stands there and what was expected.
        """
        empty = 0
        key = "dataset" if self.is_dataset else "file"
        with ChatRenderer(tokenizer) as renderer:
            for row in self._rows():
                name = f"{key}: {PurePath(self.location).name}"
                document = document_of(row, self.column, renderer, name)
                # A piece of a file that is all white space counts as many.
                empty = 0 if document.text.strip() else empty + 1 + len(document.text) // 1000
                if empty > MOST_EMPTY:
                    raise DataError(f"{row.place}: more than {MOST_EMPTY:,} empty texts in a row")
                yield document

    def _rows(self) -> Iterator[FileRow]:
        if self.is_dataset:
            return self._from_dataset()
        return rows_in(Path(self.location), {self.column, *KNOWN} if self.column == TEXT else {self.column})

    def _from_dataset(self) -> Iterator[FileRow]:
        import datasets  # takes seconds; most runs read files

        name = f"data set {self.location}"
        try:
            rows = datasets.load_dataset(self.location, self.config, split=self.split, streaming=True)
            for number, row in enumerate(rows, start=1):
                yield FileRow(f"{name}: row {number}", row)
        except Exception as error:  # the library raises what its back ends raise
            raise DataError(f"{name}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Token sequences of one text source.

    Attributes:
        name: the user's name for the source.
        sequences: tensors of token ids, shape [length], all of one length.
        digest: of the ids; equal for equal content.
        documents: the texts that were taken, whole or in part, each by its identity.
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

    @property
    def tokens(self) -> int:
        """The number of tokens in all sequences."""
        return sum(ids.numel() for ids in self.sequences)

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
    without: Container[str] = frozenset(),
) -> TokenSet:
    """Cuts a source's first tokens into sequences.

    Documents are tokenised as the tokenizer does by default (with its BOS, where it adds one),
    followed by EOS where the next document does not begin with BOS, joined, and cut. A conversation has the
    special tokens of its chat template and no others. No more is read than is taken.

    Args:
        tokens: most tokens taken.
        sequence_length: tokens in a sequence; what is left at the end of a source is dropped, unless
            the source is shorter than one sequence.
        without: identities of documents that are left out.

    Raises:
        DataError: a source with fewer than two tokens.
    """
    wanted = max(tokens, 2)
    stream: list[int] = []
    known = set()
    ended = True
    with closing(source.documents(tokenizer)) as documents:
        for document in documents:
            name_of_text = identity(document.text)
            if name_of_text in without:
                continue
            known.add(name_of_text)
            ids = first_tokens(tokenizer, document, wanted - len(stream))
            if not ended and tokenizer.eos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
                stream.append(tokenizer.eos_token_id)
            stream += ids
            ended = not stream or document.is_chat
            if len(stream) >= wanted:
                break
    stream = stream[:wanted]
    length = min(sequence_length, len(stream))
    if length < 2:
        raise DataError(f"{source.location}: fewer than two tokens; nothing can be scored")
    starts = range(0, len(stream) - length + 1, length)
    sequences = tuple(torch.tensor(stream[at : at + length]) for at in starts)
    return TokenSet(name, sequences, digest([length, stream]), frozenset(known - {""}))


def first_tokens(tokenizer: PreTrainedTokenizerBase, document: TextDocument, wanted: int) -> list[int]:
    """Returns the token ids that a text begins with: at least as many as are wanted, or all."""
    size = max(PIECE, _CHARACTERS_PER_TOKEN * wanted)
    while size < len(document.text):
        ids = _ids(tokenizer, replace(document, text=document.text[:size]))[:-_MARGIN]
        if len(ids) >= wanted:
            return ids
        size *= 2
    return _ids(tokenizer, document)


def _ids(tokenizer: PreTrainedTokenizerBase, document: TextDocument) -> list[int]:
    try:
        encoded = tokenizer(document.text, add_special_tokens=not document.is_chat, verbose=False)
    except Exception as error:  # a tokenizer's files may say anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FamilyError(f"the tokenizer cannot encode a text: {reason[:200]}") from None
    ids: list[int] = encoded["input_ids"]
    return ids


def identity(text: str) -> str:
    """Returns what two texts have in common that count as the same: their beginning, white space evened out.

    >>> identity("Once  upon\\na time ")
    'Once upon a time'
    """
    return " ".join(text[: 16 * _IDENTITY].split())[:_IDENTITY]


def check_ids(sets: Iterable[TokenSet], rows: int, model: str) -> None:
    """Checks that a model has a row for every token of texts.

    Args:
        rows: of its embeddings.
        model: the word for it in messages.

    Raises:
        DataError: names the texts and the largest id.
    """
    for token_set in sets:
        largest = max((int(ids.max()) for ids in token_set.sequences if len(ids)), default=0)
        if largest >= rows:
            raise DataError(
                f"{token_set.name}: the tokenizer gives the id {largest}, and {model} has rows for {rows} "
                "tokens; its tokenizer is that of another model, or was changed"
            )
