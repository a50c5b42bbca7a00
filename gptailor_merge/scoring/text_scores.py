"""Scores one model, or one recipe, on text files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.conversations import TEXT
from gptailor_merge.calibration.text_files import bare_name
from gptailor_merge.calibration.texts import TokenSet, check_ids
from gptailor_merge.errors import ConfigError, FamilyError
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import member_digest
from gptailor_merge.models.vocabulary import tokens_of_model
from gptailor_merge.objectives.config_types import DataSource, FileConfig
from gptailor_merge.objectives.kl import build_kl
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.protocols import Forward, Objective, Prediction
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.scoring.live_models import LiveModel, open_member, open_model, tokenizer_of
from gptailor_merge.scoring.passes import Passes, predictions_alone
from gptailor_merge.scoring.teachers import finite, refuse_other_tokens

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TextScore:
    """Tells how well a model predicts a text.

    Attributes:
        nll: nats per predicted token.
        perplexity: exp(nll).
        kl: KL(reference || model) in nats per predicted token; None without a reference.
        tokens: how many tokens were predicted.
    """

    nll: float
    perplexity: float
    kl: float | None
    tokens: float

    @classmethod
    def of(cls, nll: Score, kl: Score | None) -> TextScore:
        """Joins the scores of the two objectives."""
        return cls(nll.mean, nll.natural, None if kl is None else kl.mean, nll.count)

    def to_json(self) -> dict[str, float]:
        """Returns the numbers by name; `kl` only where there is one."""
        kl = {} if self.kl is None else {"kl": self.kl}
        return {"nll": self.nll, "perplexity": self.perplexity, **kl, "tokens": self.tokens}


@dataclass(frozen=True)
class TextScores:
    """A model's scores on several texts.

    Attributes:
        files: name -> score on that file.
        total: the score over the tokens of all files.
    """

    files: Mapping[str, TextScore]
    total: TextScore

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor score --json` prints."""
        files = {name: score.to_json() for name, score in self.files.items()}
        return {"files": files, "total": self.total.to_json()}


def score_on_texts(
    path: Path,
    data: Sequence[str],
    *,
    column: str,
    tokens: int,
    sequence_length: int,
    reference: str | None,
    top_k: int,
    device: torch.device,
) -> TextScores:
    """Scores a recipe file or a model directory.

    Args:
        data: files or directories, each `path` or `name=path`; see named_files.
        column: the one that holds texts or messages.
        tokens: the number of tokens in all, shared evenly by the files.
        reference: directory or Hub id of the model that KL is measured against.
        top_k: how many of the reference's likeliest tokens are kept for each position.

    Raises:
        InputError: a recipe, model or file that is wrong; two files of one name.
    """
    files = named_files(data, column)
    sets = token_sets(files, tokenizer_of(path), tokens, sequence_length)  # before any weight is loaded
    live = open_model(path, device)
    check_ids(sets, live.model.config.get_text_config().vocab_size, str(path))
    rungs = layout(sets, BATCH_TOKENS, device=device)
    objectives: list[Objective] = [Perplexity("nll", sets)]
    if reference is not None:
        digest, forward = _teacher(reference, live, device)
        teachers = {token_set.name: (digest, forward) for token_set in sets}
        batches = [batch for rung in rungs for batch in rung]
        objectives.append(build_kl("kl", sets, teachers=teachers, top_k=top_k, batches=batches))
    scores = Passes(objectives, rungs).score(live.model)
    return _text_scores(sets, scores["nll"], scores.get("kl"))


def named_files(data: Sequence[str], column: str = TEXT) -> dict[str, DataSource]:
    """Returns name -> file, from values of `--data`: `path` or `name=path`.

    A file without a name is called by its own, without the ending.

    Args:
        column: of all files.

    Raises:
        ConfigError: two files have one name.

    >>> named_files(["texts/stories.jsonl", "sums=more/stories.jsonl.gz"])
    {'stories': 'texts/stories.jsonl', 'sums': 'more/stories.jsonl.gz'}
    """
    files: dict[str, DataSource] = {}
    for item in data:
        has_name = "=" in item and not Path(item).exists()
        name, path = item.split("=", 1) if has_name else (bare_name(item), item)
        if name in files:
            raise ConfigError(f"two files are called {name!r}; name them: --data NAME={path}")
        file = os.path.expanduser(path)
        files[name] = file if column == TEXT else FileConfig(file=file, column=column)
    return files


def _teacher(reference: str, scored: LiveModel, device: torch.device) -> tuple[str, Forward]:
    """Returns the digest of a reference model's weights, and its forward pass.

    Args:
        scored: the model whose tokenizer reads the texts.
    """
    vocabulary = int(scored.model.config.get_text_config().vocab_size)
    tokens = tokens_of_model(str(scored.tokenizer_directory))
    member = Family.load(reference, {}).base
    if member.vocabulary_size < vocabulary:
        raise FamilyError(f"{reference}: its vocabulary is smaller than the model's, {vocabulary}")
    dense = open_member(member, device).model

    def forward(batch: Batch) -> Iterator[Prediction]:
        refuse_other_tokens(tokens, member.tokens, reference, batch.ids)
        return (finite(reference, p) for p in predictions_alone(dense, batch, vocabulary=vocabulary))

    return member_digest(member.directory), forward


def _text_scores(
    sets: Sequence[TokenSet], nll: Mapping[str, Score], kl: Mapping[str, Score] | None
) -> TextScores:
    files = {s.name: TextScore.of(nll[s.name], None if kl is None else kl[s.name]) for s in sets}
    total_kl = None if kl is None else Score.total(list(kl.values()))
    return TextScores(files, TextScore.of(Score.total(list(nll.values())), total_kl))
