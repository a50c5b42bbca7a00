"""Reckons from a search config how many tokens each stage of a search sends through a model, at most.

Texts may hold fewer tokens than a config asks for, races end candidates early, and fits stop when nothing
gets better, so that a stage takes less; it does not take more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptailor_merge.calibration.held_back import EVERY
from gptailor_merge.config import SearchConfig
from gptailor_merge.objectives.kinds import ObjectiveConfig
from gptailor_merge.objectives.text_kinds import TextConfig
from gptailor_merge.repair.finalists import FIRST_TOKENS
from gptailor_merge.repair.fitting import LOSS_TOKENS
from gptailor_merge.scoring.batch_size import DEFAULT_BATCH_TOKENS
from gptailor_merge.scoring.measures import reported
from gptailor_merge.tuning.fitting import CHECKS
from gptailor_merge.tuning.tuner import TuneOptions

DIFFERENTIATED = 3
"""A token that is differentiated costs about as much as so many that are not, and counts as as many."""


HELD_OUT = "held out"
"""The name of the last stage, in which whole members are scored as well."""


@dataclass(frozen=True)
class StageTokens:
    """The tokens that a stage of a search sends through models.

    Attributes:
        stage: search, repair, tune, heal or held out, as reports call it.
        tokens: at most; those that are differentiated count three times.
        made_of: says what the number is made of.
        each: True where it is that of each recipe of a front, whose number is known when it is found.
    """

    stage: str
    tokens: int
    made_of: str
    each: bool = False


def stage_tokens(config: SearchConfig, depth: int, sizes: Sequence[int]) -> tuple[StageTokens, ...]:
    """Returns the stages of a search in their order, without those that are off.

    Args:
        depth: layers of the base.
        sizes: numbers of layers that the pruned model may have.
    """
    stages = (
        _search(config),
        _repair(config, depth - min(sizes), max(sizes)),
        _tune(config),
        _heal(config),
        _held_out(config),
    )
    return tuple(stage for stage in stages if stage is not None and stage.tokens)


def scored_tokens(objectives: Iterable[ObjectiveConfig]) -> int:
    """Returns the tokens of texts that go through a model to score it once; equal texts count once."""
    return sum(tokens for _, _, tokens in {text for objective in objectives for text in _texts(objective)})


def first_batch_tokens(config: SearchConfig) -> int:
    """Returns the tokens of a batch; where the config leaves them open, those that a search begins with."""
    tokens = config.batch_tokens
    return tokens if isinstance(tokens, int) else DEFAULT_BATCH_TOKENS


def uncounted(config: SearchConfig) -> tuple[str, ...]:
    """Names what is measured on something else than texts, so that its tokens are known when it is read."""
    measured = (*config.objectives, *config.gates, *reported(config))
    kinds = (o.kind for o in measured if not (isinstance(o, TextConfig) or o.is_cost))
    return tuple(dict.fromkeys(kinds))


def _texts(objective: ObjectiveConfig) -> Iterator[tuple[str, int, int]]:
    """Yields the source, the sequence length and the tokens of each of an objective's texts."""
    if isinstance(objective, TextConfig):
        share, length = max(2, objective.tokens // len(objective.data)), objective.sequence_length
        for source in objective.data.values():
            yield str(source), length, whole_sequences(share, length)


def whole_sequences(tokens: int, length: int) -> int:
    """Returns the tokens of the sequences that a text is cut into; what is left at its end is dropped.

    >>> whole_sequences(1000, 512), whole_sequences(100, 512)
    (512, 100)
    """
    return tokens if tokens < length else tokens - tokens % length


def _search(config: SearchConfig) -> StageTokens:
    tokens, gates = scored_tokens(config.objectives), scored_tokens(config.gates)
    budget = config.search.budget
    made_of = f"{budget:,} candidates of {tokens:,}" + (f" and {gates:,} of gates" if gates else "")
    is_raced = config.search.racing is not False
    return StageTokens(
        "search",
        budget * (tokens + gates),
        f"{made_of}; races end many of them early" if is_raced else made_of,
    )


def _repair(config: SearchConfig, removed: int, slots: int) -> StageTokens | None:
    """Follows repair.finalists and repair.fitting."""
    repair, again = config.repair, scored_tokens((*config.objectives, *config.gates))
    tokens = _repair_tokens(config)
    if not (repair.finalists and tokens):
        return None
    count = 1 if config.pareto else repair.finalists

    def rounds(tokens: int, places: int) -> int:
        """Returns the tokens of one recipe: its way up, and the losses that tell which maps help."""
        return tokens + (1 + places) * min(LOSS_TOKENS, tokens // EVERY) + again

    everywhere = repair.everywhere
    if everywhere == "best":
        first = min(tokens, FIRST_TOKENS)
        total = first + count * rounds(first, removed) + tokens + rounds(tokens, slots)
    else:
        total = tokens + count * rounds(tokens, slots if everywhere else removed)
    recipes = _recipes(config, count)
    return StageTokens("repair", total, f"maps of {recipes}, fitted to {tokens:,}", each=config.pareto)


def _repair_tokens(config: SearchConfig) -> int:
    repair = config.repair
    if repair.data is None and not any(objective.calibrates for objective in config.objectives):
        return 0
    if repair.texts == "scored" and repair.data is None:
        return scored_tokens(objective for objective in config.objectives if objective.calibrates)
    return repair.tokens


def _tune(config: SearchConfig) -> StageTokens | None:
    """Follows tuning.fitting."""
    tune = config.tune
    count = (tune.finalists if config.pareto else config.tuned) or 0
    weighted = [o for o in config.objectives if isinstance(o, TextConfig) and o.weight is not None]
    tokens = sum(
        tokens
        for objective in weighted
        for _, _, tokens in _texts(objective.model_copy(update={"tokens": tune.tokens}))
    )
    if not (count and tune.steps and tokens):
        return None
    held_back, fitted = tokens // EVERY, tokens - tokens // EVERY
    of_step = math.ceil(fitted / max(1, round(fitted / TuneOptions.step_tokens)))
    looks = 1 + math.ceil(tune.steps / max(1, tune.steps // CHECKS))
    again = scored_tokens((*config.objectives, *config.gates))
    of_each = DIFFERENTIATED * tune.steps * of_step + looks * held_back + again
    recipes = _recipes(config, count)
    return StageTokens(
        "tune",
        of_each * (1 if config.pareto else count),
        f"{recipes}, {tune.steps} steps of {of_step:,}, which count three times",
        each=config.pareto,
    )


def _heal(config: SearchConfig) -> StageTokens | None:
    heal = config.heal
    if not heal.tokens:
        return None
    trials = heal.finalists if heal.short else 0
    again = scored_tokens((*config.objectives, *config.gates)) * (trials + 1)
    trained = f"trained on {heal.tokens:,}, which count three times"
    if trials:
        trained = f"{trials} recipes trained on {heal.short:,}, and the best {trained}"
    return StageTokens("heal", DIFFERENTIATED * (heal.tokens + trials * heal.short) + again, trained)


def _held_out(config: SearchConfig) -> StageTokens | None:
    """Follows runs.held_out: members, the recipe that each stage would have chosen, and those of a front."""
    tokens, members = scored_tokens(reported(config)), 1 + len(config.family.variants)
    if not tokens:
        return None
    if config.pareto:
        return StageTokens(HELD_OUT, tokens, "each member and each recipe of the front", each=True)
    stages = 1 + bool(config.repair.finalists) + bool(config.tuned) + bool(config.heal.tokens)
    total = (members + stages) * tokens + scored_tokens(config.objectives)
    made_of = f"{members} members and {_recipes(config, stages)}, {tokens:,} each"
    return StageTokens(HELD_OUT, total, made_of)


def _recipes(config: SearchConfig, count: int) -> str:
    """Writes how many recipes there are; those of a front are not counted yet."""
    if config.pareto:
        return "each recipe of the front"
    return "1 recipe" if count == 1 else f"{count} recipes"
