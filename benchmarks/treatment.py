"""Repairs and tunes the recipes of other methods as a search does its own.

The public functions do so, on the texts, and with the tokens and steps, of the search config.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from quality_methods import Spent

from gptailor_merge import Recipe, RecipeError, Session
from gptailor_merge import repair as repair_recipe
from gptailor_merge import tune as tune_recipe


def repaired(session: Session, recipe: Recipe, directory: Path) -> tuple[Recipe, Spent]:
    """Repairs a recipe as the search repairs its best; one that nothing is missing from stays as it is.

    Args:
        directory: where the maps are, in a directory of their own.
    """
    begun, objective = time.perf_counter(), _objective(session)
    sets = session.workplace.measures.texts
    lengths = [ids.numel() for token_set in sets for ids in token_set.sequences]
    try:
        result = repair_recipe(
            recipe,
            _data(session),
            Path(tempfile.mkdtemp(dir=directory)),
            everywhere=session.config.repair.everywhere is not False,
            tokens=sum(lengths) or objective.tokens,
            sequence_length=max(lengths, default=objective.sequence_length),
            device=str(session.device),
        )
    except RecipeError:
        return recipe, Spent(0, 0.0)
    return result.recipe, Spent(result.spent, time.perf_counter() - begun)


def tuned(session: Session, recipe: Recipe, directory: Path) -> tuple[Recipe, Spent]:
    """Tunes a recipe as the search tunes its own, or would; differentiated tokens count three times.

    Args:
        directory: where the gains are, in a directory of their own.
    """
    begun, section, objective = time.perf_counter(), session.config.tune, _objective(session)
    result = tune_recipe(
        recipe,
        _data(session),
        Path(tempfile.mkdtemp(dir=directory)),
        members=session.config.family.variants,
        teachers=objective.teacher,
        steps=section.steps,
        weights=section.weights,
        norms=section.norms,
        rate=section.rate,
        tokens=section.tokens,
        sequence_length=objective.sequence_length,
        device=str(session.device),
    )
    return result.recipe, Spent(result.tuning.fit.tokens, time.perf_counter() - begun)


def _objective(session: Session) -> Any:
    """Returns the first objective, a KL: what else a search minimises is not calibrated on."""
    return session.config.objectives[0]


def _data(session: Session) -> list[str]:
    return [f"{name}={file}" for name, file in _objective(session).data.items()]
