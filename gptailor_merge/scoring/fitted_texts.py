"""The texts that maps, merge weights and gains are fitted to, apart from those that recipes are scored on."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from gptailor_merge.calibration.held_back import beyond
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import located
from gptailor_merge.objectives.config_types import DataSource
from gptailor_merge.objectives.kinds import ObjectiveConfig, PreparedObjective
from gptailor_merge.objectives.text_kinds import TextConfig, token_sets
from gptailor_merge.repair_config import LENGTH

Searched = tuple[ObjectiveConfig, PreparedObjective]
"""An objective that is searched on, and its data."""


def given(config: SearchConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenSet, ...]:
    """Returns the texts of `repair.data`; none where nothing is repaired or there are no such data."""
    repair = config.repair
    if not repair.finalists or repair.data is None:
        return ()
    with located(("repair", "data")):
        length = repair.sequence_length or LENGTH
        return token_sets(repair.data, tokenizer, repair.tokens, length)


def shared(
    config: SearchConfig,
    searched: Sequence[Searched],
    tokenizer: PreTrainedTokenizerBase,
    held_out: Container[str],
) -> Iterator[TokenSet]:
    """Yields the texts of the objectives that maps are fitted to, where they have none of their own.

    Args:
        held_out: documents that are left out.
    """
    repair = config.repair
    if not repair.finalists or repair.data is not None:
        return
    measured = [(objective, prepared) for objective, prepared in searched if objective.calibrates]
    if repair.texts == "scored":
        sources = (source for _, prepared in measured for source in prepared.sets)
        yield from (source for source in sources if isinstance(source, TokenSet))
        return
    configs = [objective for objective, _ in measured if isinstance(objective, TextConfig)]
    data = [
        (name, source, repair.sequence_length or objective.sequence_length)
        for objective in configs
        for name, source in objective.data.items()
    ]
    distinct = [entry for position, entry in enumerate(data) if entry not in data[:position]]
    scored = _scored(searched)
    for name, source, length in distinct:
        with located(("repair",)):
            share = repair.tokens // len(distinct)
            yield _own_draw(name, source, tokenizer, share, length, held_out, scored[name, str(source)])


def tuned_on(
    config: SearchConfig,
    searched: Sequence[Searched],
    tokenizer: PreTrainedTokenizerBase,
    held_out: Container[str],
) -> dict[int, tuple[TokenSet, ...]]:
    """Returns position of an objective -> the texts that recipes are tuned on; none without tuning.

    Args:
        held_out: documents that are left out.
    """
    if not config.tuned:
        return {}
    scored = _scored(searched)
    sets = {}
    for position, objective in enumerate(config.objectives):
        if isinstance(objective, TextConfig) and objective.weight is not None:
            share = max(2, config.tune.tokens // len(objective.data))
            with located(("objectives", position, "data")):
                sets[position] = tuple(
                    _own_draw(
                        name,
                        source,
                        tokenizer,
                        share,
                        objective.sequence_length,
                        held_out,
                        scored[name, str(source)],
                    )
                    for name, source in objective.data.items()
                )
    return sets


def _scored(searched: Sequence[Searched]) -> Mapping[tuple[str, str], int]:
    """Returns (name, source) of the objectives' texts -> the most tokens of it that are scored."""
    tokens: dict[tuple[str, str], int] = {}
    for objective, prepared in searched:
        if isinstance(objective, TextConfig):
            counts = {
                token_set.name: sum(ids.numel() for ids in token_set.sequences)
                for token_set in prepared.sets
                if isinstance(token_set, TokenSet)
            }
            for name, source in objective.data.items():
                key = name, str(source)
                tokens[key] = max(tokens.get(key, 0), counts.get(name, 0))
    return tokens


def _own_draw(
    name: str,
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    length: int,
    held_out: Container[str],
    scored: int,
) -> TokenSet:
    """Returns sequences of a text behind those that are scored, so that scores tell what a fit is worth."""
    (whole,) = token_sets({name: source}, tokenizer, scored + tokens, length, held_out)
    return beyond(whole, scored, tokens)
