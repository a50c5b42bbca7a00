"""Writes a search config with a line on each choice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptailor_merge.config import SearchConfig
from gptailor_merge.drafting.texts import NamedTexts
from gptailor_merge.json_schemas import modeline
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.family import Family

TOKENS = 16384
"""Tokens that candidates are scored on; with fewer, chance decides between good ones."""


TOKENS_OF_TEXT = 2048
"""Tokens of each text at least."""


HELD_OUT_TOKENS = 65536


LONGEST = 512
"""Tokens that a model sees at once, where it can see as many."""


BUDGET, POPULATION = 240, 16


_WIKITEXT: Mapping[str, Any] = {
    "dataset": "EleutherAI/wikitext_document_level",
    "config": "wikitext-2-raw-v1",
}
"""A data set of the Hub in place of texts of the user's."""


@dataclass(frozen=True)
class SearchDraft:
    """The choices that a search config is written from.

    Attributes:
        family: the members; their names are those that the config uses.
        base, variants: the models as the user names them.
        size: layers that stay.
        texts: those of the user; a data set of the Hub is taken where there are none.
        teachers: name of a text -> member that teaches it, where it is not the base.
        out_dtype: dtype of the written model.
        command: runs the search.
        bank: says where the weights stay.
        directory: the config will be in it.
    """

    family: Family
    base: str
    variants: Mapping[str, str]
    size: int
    texts: NamedTexts
    teachers: Mapping[str, str]
    out_dtype: str
    command: str
    bank: str
    directory: Path

    def text(self) -> str:
        """Returns the config as YAML."""
        sections = (
            self._head(),
            self._family(),
            self._target(),
            self._objectives(),
            self._held_out(),
            self._rest(),
        )
        return "\n".join(line for section in sections for line in section) + "\n"

    def _head(self) -> Iterator[str]:
        family = self.family
        count, parameters = len(family.members), family.parameters(range(family.depth))
        yield modeline("search", self.directory)
        yield f"# The best {self.size} of {family.depth} layers of {count} models, by gptailor init."
        yield "#"
        yield f"#     {self.command}"
        yield "#"
        yield f"# Memory: {count} members x {parameters:,} parameters in {self.out_dtype}. {self.bank}"
        yield "# With --dry-run the command says what the search will take. Every key but family, target and"
        yield "# objectives has a default."

    def _family(self) -> Iterator[str]:
        yield "family:"
        yield f"  base: {scalar(self._path(self.base))}  # gives config, tokenizer, embeddings and head"
        if self.variants:
            yield "  variants:  # layers may come from each of them, and from merges of all"
        for name, model in self.variants.items():
            yield f"    {scalar(name)}: {scalar(self._path(model))}"

    def _target(self) -> Iterator[str]:
        family = self.family
        kept, whole = family.parameters(range(self.size)), family.parameters(range(family.depth))
        yield (
            f"target: {{layers: {self.size}}}  # {kept / whole:.0%} of the parameters; a range, as in "
            f"[{self.size}, {family.depth - 1}], asks for the front of sizes"
        )

    def _objectives(self) -> Iterator[str]:
        count = max(1, len(self.texts.searched))
        yield "objectives:"
        yield "  - kind: kl  # stay close to what the teachers predict of these texts"
        yield "    data:"
        yield from self._data(self.texts.searched, "train")
        if self.teachers:
            yield "    teacher:  # who knows a text best; without an entry the base teaches it"
            yield from (f"      {scalar(name)}: {scalar(member)}" for name, member in self.teachers.items())
        elif self.variants:
            yield "    # teacher: {NAME: MEMBER}  # who teaches a text; without it the base does"
        tokens = max(TOKENS, TOKENS_OF_TEXT * count)
        yield f"    tokens: {tokens}  # of all texts together; fewer are faster, and noisier"
        yield f"    sequence_length: {self._length}  # tokens that a model sees at once"

    def _held_out(self) -> Iterator[str]:
        if self.texts.searched and not self.texts.held_out:
            yield "# held_out:  # other texts, to report on and never to search on"
            yield f"#   - {{kind: perplexity, data: {{NAME: FILE}}, tokens: {HELD_OUT_TOKENS}}}"
            return
        yield "held_out:  # reported, and never searched on: a document that is in both is refused"
        yield "  - kind: perplexity"
        yield "    data:"
        yield from self._data(self.texts.held_out, "test")
        yield f"    tokens: {HELD_OUT_TOKENS}"
        yield f"    sequence_length: {self._length}"

    def _rest(self) -> Iterator[str]:
        batch = SearchConfig.model_fields["batch_tokens"].default
        merge = "[task_arithmetic, slerp]" if self.variants else "[]"
        yield f"operations: {{merge: {merge}}}  # merge methods; [] only removes and selects layers"
        yield f"search: {{budget: {BUDGET}, population: {POPULATION}}}  # candidates: all, and a generation"
        if self.size < self.family.depth:
            yield "repair: {finalists: 8}  # the best recipes get a map at each cut; 0 repairs none"
            yield "tune: {steps: 60}  # merge weights and norms of the best one are fitted; 0 tunes none"
        yield "dtype: float32  # in which merges are calculated"
        yield f"out_dtype: {self.out_dtype}  # of the model that is written, as the base is stored"
        yield f"batch_tokens: {batch}  # tokens that go through a model at once; auto finds what is fast"
        yield "seed: 0  # of all random choices"

    def _data(self, texts: Mapping[str, Path], split: str) -> Iterator[str]:
        if not texts:
            source = {**_WIKITEXT, "split": split, "column": "page"}
            yield f"      wikitext: {scalar(source)}"
        for name, file in texts.items():
            yield f"      {scalar(name)}: {scalar(self._relative(file))}"

    @property
    def _length(self) -> int:
        longest = self.family.base.text_config.get("max_position_embeddings")
        return min(LONGEST, longest) if isinstance(longest, int) and longest > 1 else LONGEST

    def _path(self, model: str) -> str:
        """Returns a model's name as the config has it, with the paths of directories from the config's."""
        parsed = ModelId.parse(model)
        if parsed.adapter is not None:
            return f"{self._path(parsed.path)}+{self._path(parsed.adapter.text)}"
        return self._relative(Path(model)) if parsed.is_local else model

    def _relative(self, file: Path) -> str:
        """Returns a path from the config's directory if it lies below it, and else the whole path."""
        whole, here = Path(os.path.abspath(file)), Path(os.path.abspath(self.directory))
        if not whole.is_relative_to(here):
            return str(whole)
        return str(whole.relative_to(here))


def scalar(value: Any) -> str:
    """Writes a value as YAML on one line.

    >>> scalar("org/name"), scalar("yes"), scalar({"split": "test"})
    ('org/name', "'yes'", '{split: test}')
    """
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.strip()[1:-1]
