"""Baselines where tasks are searched on, several sizes are wanted, and gates keep candidates out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import SearchError
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.record import FOUND
from gptailor_merge.runs.run import Run
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.baselines.registry import BASELINES

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")


@pytest.fixture
def document(family: dict[str, str], texts: dict[str, str], tasks: Path) -> dict[str, Any]:
    """Items alone are searched on: hidden states are those of their rows."""
    of_task = {"kind": "task", "include_path": str(tasks), "split": "test"}
    gate = {"kind": "perplexity", "data": texts, "tokens": 64, "sequence_length": 16}
    return {
        "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
        "target": {"layers": [2, 4]},
        "repair": {"texts": "scored"},
        "tune": {"steps": 0},
        "writes": {"tokens": 0},
        "objectives": [{**of_task, "tasks": ["tiny_choice"], "metric": "margin"}, {"kind": "parameters"}],
        "gates": [{**gate, "at_most": "1.2 x base"}],
        "search": {"budget": 12, "population": 4},
        "allow_test_split": True,
    }


@pytest.mark.parametrize("name", [name for name in BASELINES if BASELINES[name].in_space])
def test_a_front_of_sizes_is_left(name: str, document: dict[str, Any], tmp_path: Path) -> None:
    document["gates"] = []
    run = Run(tmp_path / "run")
    summary = execute(SearchConfig.model_validate(document), run, CPU, baseline=Choice(name)).summary()
    assert summary.baseline == name
    files = {file.stem: Recipe.load(file) for file in run.pareto.glob("*.yml")}
    assert {len(plan(recipe).slots) for recipe in files.values()} <= {2, 3, 4}
    assert set(summary.held_out) == {"base", "math", "code", FOUND, *files}
    assert run.summary() == summary
    with Journal(run.journal) as journal:
        assert {len(c.plan.slots) for c in journal.finished()} == {2, 3, 4}


def test_what_a_gate_keeps_out_is_not_left(document: dict[str, Any], tmp_path: Path) -> None:
    document |= {"target": {"layers": 3}, "search": {"budget": 12}}
    document["objectives"] = document["objectives"][:1]
    document["gates"] = [{**document["gates"][0], "at_most": 0.5}]
    config = SearchConfig.model_validate(document)
    with pytest.raises(SearchError, match="none of 2 candidates could be scored, 1 were kept out by gates"):
        execute(config, Run(tmp_path / "one"), CPU, baseline=Choice("shortgpt"))
    with pytest.raises(SearchError, match="could be scored; the last: gate: perplexity is"):
        execute(config, Run(tmp_path / "other"), CPU, baseline=Choice("sleb"))
