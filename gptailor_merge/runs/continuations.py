"""The base and the best recipe of a run continue the same prompts, to be shown side by side."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.calibration.conversations import TextDocument
from gptailor_merge.calibration.texts import first_tokens
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.repetition import greedy, repeated_grams
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.workplace import Workplace
from gptailor_merge.search.candidates import Candidate

REPEATS, MORE_THAN_BASE = 0.3, 0.15
"""A model repeats itself where more than this share of its 4-grams has been there before, and the share is
higher than the base's by more than this."""


@dataclass(frozen=True)
class Written:
    """A continuation.

    Attributes:
        grams: the number of its 4-grams of tokens.
        repeated: the number of those that have been there before.
    """

    text: str
    grams: int
    repeated: int


@dataclass(frozen=True)
class Continuation:
    """A prompt, continued by both models."""

    prompt: str
    base: Written
    found: Written


@dataclass(frozen=True)
class Continuations:
    """The prompts of a run, continued by the base and by its best recipe.

    Attributes:
        recipe: digest of the best recipe.
        tokens: the most tokens that were written after a prompt.
    """

    recipe: str
    tokens: int
    rows: tuple[Continuation, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts in their order."""
        return tuple(row.prompt for row in self.rows)

    @property
    def base_share(self) -> float:
        """The share of 4-grams that the base repeats."""
        return _share(row.base for row in self.rows)

    @property
    def found_share(self) -> float:
        """The share of 4-grams that the best recipe repeats."""
        return _share(row.found for row in self.rows)

    @property
    def repeats(self) -> bool:
        """Tells whether the best recipe repeats itself, and much more than the base does."""
        return self.found_share > max(REPEATS, self.base_share + MORE_THAN_BASE)

    @property
    def sentence(self) -> str:
        """States how the texts came about, and how much in them is repetition."""
        return (
            "Both models continue the same prompts with the likeliest token each time, "
            f"{self.tokens} tokens at most. {self._shares}"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence where the best recipe repeats itself."""
        if not self.repeats:
            return ()
        return (
            f"The found model repeats itself when it writes: {self._shares} More than {REPEATS:.0%}, and "
            f"more than the base by {100 * MORE_THAN_BASE:.0f} points, counts as repeating itself.",
        )

    @property
    def _shares(self) -> str:
        return (
            f"{self.found_share:.0%} of the found model’s 4-grams of tokens have been there before in the "
            f"same text, {self.base_share:.0%} of the base’s."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor show --json` prints, and what is published."""
        return {
            "tokens": self.tokens,
            "repeated": {"base": round(self.base_share, 4), "found": round(self.found_share, 4)},
            "prompts": [
                {"prompt": row.prompt, "base": row.base.text, "found": row.found.text} for row in self.rows
            ],
        }


def continuations(
    workplace: Workplace, base: Plan, best: Candidate, known: Continuations | None
) -> Continuations | None:
    """Lets the base and the best recipe continue the prompts of the config; None where it wants none.

    A model that cannot write costs the run nothing but this; the cause is told.

    Args:
        base: the plan of the whole base model.
        known: what an earlier process wrote; it is returned where nothing has changed since.
    """
    section = workplace.config.writes
    if not section.tokens:
        return None
    wanted = (best.digest, section.tokens, section.prompts)
    if known is not None and (known.recipe, known.tokens, known.prompts) == wanted:
        return known
    workplace.progress("writing after prompts, with the base and the best recipe")
    try:
        texts = [_written(workplace, plan, section.prompts, section.tokens) for plan in (base, best.plan)]
    except Exception as error:  # what was found in hours must not be lost to what is only shown
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        workplace.progress(f"warning: what the models write is not shown: {cause}")
        return None
    finally:
        gc.collect()
    rows = map(Continuation, section.prompts, *texts)
    return Continuations(best.digest, section.tokens, tuple(rows))


def _written(workplace: Workplace, plan: Plan, prompts: Sequence[str], tokens: int) -> list[Written]:
    """Returns what the model of a plan writes after each prompt."""
    tokenizer = load_tokenizer(workplace.family.by_model(plan.tokenizer).directory)
    model = workplace.composer.compose(plan)
    return [_continued(model, tokenizer, prompt, tokens) for prompt in prompts]


def _continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int
) -> Written:
    """Returns what a model writes after a prompt, up to a token that ends a text."""
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids = first_tokens(tokenizer, TextDocument(prompt), len(prompt))
    ids = ids[: max(1, room - tokens)] if isinstance(room, int) else ids
    if not ids:  # a tokenizer that knows none of these characters
        return Written("", 0, 0)
    stated = model.generation_config.eos_token_id
    ends = stated if isinstance(stated, list) else [tokenizer.eos_token_id if stated is None else stated]
    prompt_ids = torch.tensor([ids], device=model.device)
    (written,) = greedy(model, prompt_ids, tokens, ends=[end for end in ends if end is not None])
    text = tokenizer.decode(written, skip_special_tokens=True)
    return Written(str(text), *repeated_grams(written))


def _share(texts: Iterable[Written]) -> float:
    counts = [(text.repeated, text.grams) for text in texts]
    grams = sum(count for _, count in counts)
    return sum(count for count, _ in counts) / grams if grams else 0.0
