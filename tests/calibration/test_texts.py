"""Texts are tokenised, joined and cut."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, processors, trainers
from transformers import PreTrainedTokenizerFast

from gptailor_merge.calibration import texts as texts_module
from gptailor_merge.calibration.texts import TextSource, TokenSet, check_ids, identity, tokenize
from gptailor_merge.errors import DataError
from gptailor_merge.models.loading import load_tokenizer


@pytest.fixture
def tokenizer(family: dict[str, str]):  # type: ignore[no-untyped-def]
    return load_tokenizer(Path(family["base"]))


def test_documents_are_joined_by_eos_and_cut(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "ABC"}\n\n{"text": "DE"}\n')
    token_set = tokenize("t", TextSource(str(file)), tokenizer, tokens=99, sequence_length=3)
    letters = [[tokenizer.decode([i]) for i in ids] for ids in token_set.sequences]
    assert letters == [["A", "B", "C"], [" ", "D", "E"]]
    assert token_set.units == 4


def test_at_most_so_many_tokens_are_taken(texts: dict[str, str], tokenizer) -> None:  # type: ignore[no-untyped-def]
    token_set = tokenize("t", TextSource(texts["sums"]), tokenizer, tokens=50, sequence_length=16)
    assert [len(ids) for ids in token_set.sequences] == [16, 16, 16]


def test_a_short_source_is_one_short_sequence(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "t.txt"
    file.write_text("ABCD")
    token_set = tokenize("t", TextSource(str(file)), tokenizer, tokens=50, sequence_length=16)
    assert [len(ids) for ids in token_set.sequences] == [4]


def test_the_digest_is_of_the_content(texts: dict[str, str], tokenizer) -> None:  # type: ignore[no-untyped-def]
    def digest(name: str, length: int) -> str:
        return tokenize(name, TextSource(texts[name]), tokenizer, tokens=64, sequence_length=length).digest

    assert digest("sums", 16) == digest("sums", 16)
    assert len({digest("sums", 16), digest("sums", 8), digest("stories", 16)}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "A"}\n{"txt": 1}\n', "t.jsonl:2: found the keys txt; expected text, messages"),
        ("", "fewer than two tokens; nothing can be scored"),
        ('{"text": " "}\n' * 10_001, "t.jsonl:10001: more than 10,000 empty texts in a row"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, tokenizer, content: str, message: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(DataError) as caught:
        tokenize("t", TextSource(str(tmp_path / "t.jsonl")), tokenizer, tokens=20_000, sequence_length=4)
    assert message in str(caught.value)


class Watched:
    """A tokenizer that knows how much it has been given."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self.tokenizer(text, **options)


@pytest.fixture(scope="module")
def merging() -> Any:
    """A tokenizer that merges characters, also across words: a cut changes what stands before it."""
    core = Tokenizer(models.BPE())
    core.train_from_iterator(
        [WORDS * 20], trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"])
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


WORDS = "once upon a time there was a small model that said little and a large one that said much "


@pytest.mark.parametrize("wanted", [50, 20_000, 10**6])
def test_a_long_text_gives_the_tokens_that_the_whole_gives(
    tmp_path: Path, merging: Any, monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    monkeypatch.setattr(texts_module, "PIECE", 1000)
    text = "".join(random.Random(0).choices(WORDS.split(" "), k=40_000))
    (tmp_path / "t.txt").write_text(text)
    watched = Watched(merging)
    token_set = tokenize("t", TextSource(str(tmp_path / "t.txt")), watched, tokens=wanted, sequence_length=25)  # type: ignore[arg-type]
    expected = merging(text)["input_ids"][:wanted]
    length = len(expected) // 25 * 25
    assert [i for ids in token_set.sequences for i in ids.tolist()] == expected[:length]
    if wanted == 50:
        assert watched.characters <= 1000


def test_a_text_that_never_ends_is_read_in_parts(tmp_path: Path, tokenizer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("gptailor_merge.calibration.text_files.LONGEST", 10)
    (tmp_path / "t.txt").write_text("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    source = TextSource(str(tmp_path / "t.txt"))
    assert [d.text for d in source.documents(tokenizer)] == ["ABCDEFGHIJ", "KLMNOPQRST", "UVWXYZ"]


def test_a_long_text_is_known_by_its_beginning(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Else the same text would not be found in the held-out set, where more tokens are taken of it."""
    (tmp_path / "t.txt").write_text("AB  C\n" * 30_000)
    few, many = (
        tokenize("t", TextSource(str(tmp_path / "t.txt")), tokenizer, tokens=n, sequence_length=16)
        for n in (32, 100_000)
    )
    assert few.documents == many.documents
    assert identity("A " * 10) in {identity("A\n\nA " * 5)}


def test_conversations_have_the_special_tokens_of_their_template(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    line = '{"messages": [{"role": "user", "content": "HI"}]}\n'
    (tmp_path / "t.jsonl").write_text(line + line + '{"text": "A"}\n' + line)
    token_set = tokenize("t", TextSource(str(tmp_path / "t.jsonl")), tokenizer, tokens=99, sequence_length=99)
    assert "".join(tokenizer.convert_ids_to_tokens(token_set.sequences[0])) == "<HI><HI>A <HI>"
    assert token_set.documents == {"<HI>", "A"}


def test_a_data_set_in_a_directory_is_read(tmp_path: Path, tokenizer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"content": "A"}\n{"content": "B"}\n')

    def read(column: str) -> list[str]:
        source = TextSource(str(tmp_path / "data"), is_dataset=True, split="train", column=column)
        return [document.text for document in source.documents(tokenizer)]

    assert read("content") == ["A", "B"]
    with pytest.raises(
        DataError, match=r"data: row 1: found the keys content; .*\{dataset: data, column: con"
    ):
        read("text")


def test_an_id_that_the_model_has_no_row_for_is_named(tmp_path: Path) -> None:
    token_set = TokenSet("a", (torch.tensor([1, 95]), torch.tensor([96, 2])), "digest")
    check_ids([token_set], 97, "org/base")
    with pytest.raises(
        DataError, match="a: the tokenizer gives the id 96, and org/base has rows for 96 tokens"
    ):
        check_ids([token_set], 96, "org/base")
