"""Writes runs by hand, with numbers that tests know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.metadata import Metadata
from gptailor_merge.runs.run import Run
from gptailor_merge.search.candidates import Candidate
from tests.conftest import recipe_of

FAMILY = {"base": "/home/alice/models/base", "math": "/home/alice/math", "code": "org/code@v1"}

CONFIG: dict[str, Any] = {
    "family": {"base": FAMILY["base"], "variants": {name: FAMILY[name] for name in ("math", "code")}},
    "target": {"layers": 4},
    "objectives": [{"kind": "kl", "data": {"a": "/home/alice/a.jsonl"}, "weight": 1.0}],
    "operations": {"merge": ["task_arithmetic"]},
    "held_out": [{"kind": "perplexity", "data": {"a": "/home/alice/held/a.jsonl"}}],
    "search": {"optimizer": "default", "budget": 6, "population": 2, "pick": "knee"},
    "seed": 3,
    "dtype": "float32",
    "environment": {"python": "3.11", "gptailor-merge": "0.1.0"},
}


def recipe(weight: float = 0.6, removed: int = 1) -> Recipe:
    """Returns a recipe for a family of 5 layers: slot 0 from math, a merge of two slots, and the last layer."""
    made = recipe_of(FAMILY)
    made["slices"][2]["sources"][0]["parameters"]["weight"] = weight  # type: ignore[index]
    if removed == 0:
        made["slices"] = made["slices"][1:]  # type: ignore[index]
    return Recipe.from_mapping(made)


def candidate(
    number: int, status: str, loss: float | None, weight: float, *, scores: Scores | None = None, **more: Any
) -> Candidate:
    made = recipe(weight)
    given = {"kl": {"a": Score(loss or 0.0, 100)}} if scores is None else scores
    return Candidate(
        number,
        plan(made).digest,
        made.to_yaml(),
        status,
        loss,
        {} if status == "failed" else given,
        more.pop("fingerprint", "f"),
        tokens=more.pop("tokens", 100),
        seconds=more.pop("seconds", 0.5),
        **more,
    )


def deep(depth: int) -> Candidate:
    """Returns a candidate for a family of this depth, which removes layer 1."""
    parts = [
        {
            "sources": [
                {"model": FAMILY["math" if layer % 2 else "base"], "layer_range": [layer, layer + 1]}
            ],
            "parameters": {"op": "remove" if layer == 1 else "select"},
        }
        for layer in range(depth)
    ]
    document = {"merge_method": "tailor", "base_model": FAMILY["base"], "dtype": "float32", "slices": parts}
    made = Recipe.from_mapping(document)
    scores = {"kl": {"a": Score(0.5, 100)}}
    return Candidate(0, plan(made).digest, made.to_yaml(), "scored", 0.5, scores, "f", tokens=1, seconds=1.0)


def one_recipe() -> list[Candidate]:
    return [
        candidate(0, "probe", 0.1, 0.1),
        candidate(1, "scored", 0.5, 0.2),
        candidate(2, "dropped", 0.7, 0.3, tokens=25, seconds=0.1),
        candidate(3, "scored", 0.3, 0.4),
        candidate(4, "failed", None, 0.5, tokens=0, cause="RuntimeError: /home/alice is full"),
        candidate(5, "duplicate", 0.3, 0.4, original=3, tokens=0, seconds=0.0),
    ]


def write(
    directory: Path,
    candidates: Sequence[Candidate],
    *,
    done: bool = True,
    meta: dict[str, Any] | None = None,
    held_out: dict[str, Scores] | None = None,
    **config: Any,
) -> Run:
    """Writes a run directory with these candidates."""
    run = Run(directory)
    directory.mkdir(parents=True, exist_ok=True)
    run.config.write_text(yaml.safe_dump({**CONFIG, **config}, sort_keys=False))
    with Journal(run.journal) as journal:
        journal.record(candidates)
        journal.describe(Metadata(**meta or {}))
        for model, scores in (held_out or {}).items():
            journal.record_held_out(model, scores)
        best = journal.best()
    if done and best is not None:
        run.best.write_text(best.recipe)
    return run


def perplexities(**means: float) -> dict[str, Scores]:
    """Returns held-out scores of each model on two sets, with standard errors."""
    return {
        model: {
            "perplexity": {
                "a": Score(mean, 50, "perplexity", 0.1),
                "b": Score(mean + 1, 150, "perplexity", 0.2),
            }
        }
        for model, mean in means.items()
    }
