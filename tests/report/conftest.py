"""Runs of real searches over the tiny family, done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.run import Run
from gptailor_merge.search.baselines.choice import Choice
from tests.report.browser import chromium

__all__ = ["chromium"]


@pytest.fixture(scope="session")
def search_config(
    family: dict[str, str], texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> SearchConfig:
    """A search for one recipe of 3 layers, with a held-out set of two texts."""
    held_out = {}
    for name, file in texts.items():
        rows = [json.loads(line)["text"][::-1] for line in Path(file).read_text().splitlines()]
        path = tmp_path_factory.mktemp("held-out") / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        held_out[name] = str(path)
    return SearchConfig.model_validate(
        {
            "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
            "target": {"layers": 3},
            "repair": {"texts": "scored"},
            "tune": {"steps": 0},
            "writes": {"tokens": 6, "prompts": ["ONCE UPON", "1+2="]},
            "objectives": [{"kind": "kl", "data": texts, "tokens": 256, "sequence_length": 16}],
            "held_out": [{"kind": "perplexity", "data": held_out, "tokens": 128, "sequence_length": 16}],
            "search": {"budget": 16, "population": 4},
        }
    )


@pytest.fixture(scope="session")
def runs(search_config: SearchConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A search for one recipe, a baseline of it, and a search for a front of two objectives and the size."""
    root = tmp_path_factory.mktemp("runs")
    document: dict[str, Any] = search_config.model_dump(mode="json", exclude_none=True)
    (kl,) = document["objectives"]
    (perplexity,) = document["held_out"]
    own = {**perplexity, "data": kl["data"], "tokens": 128}
    open_size = {"target": {"layers": [2, 4]}, "objectives": [kl, own, {"kind": "parameters"}]}
    configs: dict[str, tuple[SearchConfig, Choice | None]] = {
        "search": (search_config, None),
        "random": (search_config, Choice("random")),
        "front": (SearchConfig.model_validate({**document, **open_size}), None),
    }
    made = {name: Run(root / name) for name in configs}
    for name, (config, baseline) in configs.items():
        execute(config, made[name], torch.device("cpu"), baseline=baseline)
    return made
