"""Everything that the scores of a run depend on, as the run remembers it to be compared when it is resumed.

Other models or other data are refused, since their scores would stand beside those of before. Other versions
of the libraries are told, and kept as the history of the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from gptailor_merge.scoring.workplace import ScoredSection, Workplace

Inputs = Mapping[str, str]
"""The words for a thing that scores depend on -> a digest of its content, or its Hub commit."""


@dataclass(frozen=True)
class Period:
    """A part of a run in which the same libraries computed.

    Attributes:
        candidates: how many the run had when the period began.
        versions: library -> its version.
        recorded: False where nothing was recorded of what the scores depended on, as before 0.2.
    """

    candidates: int
    versions: Mapping[str, str]
    recorded: bool = True


History = tuple[Period, ...]
"""The periods of a run in order."""


def inputs_of(workplace: Workplace, contents: Inputs) -> dict[str, str]:
    """Returns what scores depend on: models, tokenizer, data, and what they are computed with.

    Args:
        contents: of the members, see models.contents.
    """
    inputs = dict(contents)
    sections: tuple[ScoredSection, ...] = get_args(ScoredSection)
    for section in sections:
        for objective in workplace.passes(section).objectives:
            name = f"{section}: {objective.name}"
            inputs[name] = objective.fingerprint
            inputs |= {f"{name} on {units.name}": units.digest for units in objective.sets}
    inputs |= {f"repair: {texts.name}": texts.digest for texts in workplace.measures.texts}
    inputs |= {
        f"tune: {texts.name} of objective {position}": texts.digest
        for position, sets in workplace.measures.tuned_on.items()
        for texts in sets
    }
    inputs["device and dtype"] = f"{workplace.device.type} {workplace.compute}"
    return inputs


def changed(before: Inputs, now: Inputs) -> list[str]:
    """Returns the things that have changed; an objective whose data have changed is named by these alone.

    >>> changed({"kl": "1", "kl on a": "2", "base: config.json": "3"}, {"kl": "4", "kl on a": "5"})
    ['kl on a', 'base: config.json']
    """
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return [name for name in names if not any(other.startswith(f"{name} on ") for other in names)]


def continued(history: History, candidates: int, versions: Mapping[str, str]) -> History:
    """Returns the history of a run that goes on with these versions."""
    if history and history[-1].recorded and history[-1].versions == versions:
        return history
    if history and history[-1].recorded and history[-1].candidates == candidates:
        history = history[:-1]  # nothing was computed in it
        return continued(history, candidates, versions)
    return (*history, Period(candidates, versions))


def sentences(history: Sequence[Period]) -> tuple[str, ...]:
    """Returns what has to be said beside the scores of a run with this history; nothing where it is plain."""
    told = []
    for earlier, later in itertools.pairwise(history):
        if not earlier.recorded:
            told.append(
                f"the first {later.candidates} candidates come from a version that did not record what "
                "models and data hold; nothing can tell whether the later ones were scored on the same"
            )
        before, now = earlier.versions, later.versions
        differences = [
            f"{name} {before.get(name, 'none')} → {now.get(name, 'none')}"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        if differences:
            told.append(
                f"resumed after {later.candidates} candidates with other versions "
                f"({', '.join(differences)}): scores from before and after may differ in their last digits"
            )
    return tuple(told)
