"""The texts that maps, merge weights and gains are fitted to, apart from those that recipes are scored on."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from gptailor_merge.calibration.held_back import beyond
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import errors_at
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
    with errors_at(("repair", "data")):
        length = repair.sequence_length or LENGTH
        return token_sets(repair.data, tokenizer, repair.tokens, length)


class OwnDraws:
    """Draws sequences of texts behind those that are scored, so that scores tell what a fit is worth.

    The same draw is read once, also where maps and weights are fitted to it.

    Args:
        searched: the objectives whose texts are scored.
        held_out: documents that are left out.
    """

    def __init__(
        self, searched: Sequence[Searched], tokenizer: PreTrainedTokenizerBase, held_out: Container[str]
    ) -> None:
        self._tokenizer, self._held_out = tokenizer, held_out
        self._scored = _scored(searched)
        self._drawn: dict[tuple[str, str, int, int], TokenSet] = {}

    def draw(self, name: str, source: DataSource, tokens: int, length: int) -> TokenSet:
        """Returns at most so many tokens of a text, in sequences of a length."""
        key = name, str(source), tokens, length
        if key not in self._drawn:
            scored = self._scored[name, str(source)]
            (whole,) = token_sets({name: source}, self._tokenizer, scored + tokens, length, self._held_out)
            self._drawn[key] = beyond(whole, scored, tokens)
        return self._drawn[key]


def shared(config: SearchConfig, searched: Sequence[Searched], draws: OwnDraws) -> Iterator[TokenSet]:
    """Yields the texts of the objectives that maps are fitted to, where they have none of their own."""
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
    for name, source, length in distinct:
        with errors_at(("repair",)):
            yield draws.draw(name, source, repair.tokens // len(distinct), length)


def tuned_on(config: SearchConfig, draws: OwnDraws) -> dict[int, tuple[TokenSet, ...]]:
    """Returns position of an objective -> the texts that recipes are tuned on; none without tuning."""
    if not config.tuned:
        return {}
    sets = {}
    for position, objective in enumerate(config.objectives):
        if isinstance(objective, TextConfig) and objective.weight is not None:
            share, length = max(2, config.tune.tokens // len(objective.data)), objective.sequence_length
            with errors_at(("objectives", position, "data")):
                sets[position] = tuple(
                    draws.draw(name, source, share, length) for name, source in objective.data.items()
                )
    return sets


def _scored(searched: Sequence[Searched]) -> Mapping[tuple[str, str], int]:
    """Returns (name, source) of the objectives' texts -> the most tokens of it that are scored."""
    tokens: dict[tuple[str, str], int] = {}
    for objective, prepared in searched:
        if isinstance(objective, TextConfig):
            counts = {s.name: s.tokens for s in prepared.sets if isinstance(s, TokenSet)}
            for name, source in objective.data.items():
                key = name, str(source)
                tokens[key] = max(tokens.get(key, 0), counts.get(name, 0))
    return tokens
