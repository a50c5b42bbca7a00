"""The settings of a search: as the config has them, and an identity of what is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptailor_merge.digests import digest
from gptailor_merge.objectives.scores import Weights
from gptailor_merge.scoring.workplace import Workplace
from gptailor_merge.search.front import check_rule


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search.

    Attributes:
        optimizer: a name, see search.optimizers.registry.
        budget: candidates in all.
        population: candidates that are proposed together.
        weights: objective -> its weight in the loss.
        fingerprint: identifies what the scores depend on; stored scores count only under the same one.
        axes: the objectives of which a front is sought; none where the loss is minimised.
        max_failures: failures in a row that stop the search.
        racing: whether generations are raced; None races them where it is known what the optimiser keeps.
    """

    optimizer: str
    budget: int
    population: int
    seed: int
    weights: Weights
    fingerprint: str
    axes: tuple[str, ...] = ()
    max_failures: int = 16
    racing: bool | None = None


def settings_for(workplace: Workplace, sizes: Sequence[int]) -> SearchSettings:
    """Returns how to search with the objectives and gates of a workplace.

    Args:
        sizes: the target sizes.

    Raises:
        ConfigError: search.pick names what no front of this search has.
    """
    config, measured = workplace.config, workplace.measures
    objectives = measured.searched.objectives
    weight_of = {o.name: c.weight for o, c in zip(objectives, config.objectives, strict=True)}
    weights = {name: weight for name, weight in weight_of.items() if weight is not None}
    parts: list[object] = [(o.name, o.fingerprint, weight_of[o.name]) for o in objectives]
    gates = zip(measured.gates.objectives, config.gates, strict=True)
    parts += [(o.name, o.fingerprint, c.at_most, c.at_least) for o, c in gates]
    axes = tuple(weight_of) if config.pareto else ()
    check_rule(config.search.pick, axes, sizes)
    return SearchSettings(
        optimizer=config.search.optimizer,
        budget=config.search.budget,
        population=config.search.population,
        seed=config.seed,
        weights=weights,
        axes=axes,
        fingerprint=digest([parts, str(workplace.compute), workplace.device.type]),
        max_failures=config.search.max_failures,
        racing=config.search.racing,
    )
