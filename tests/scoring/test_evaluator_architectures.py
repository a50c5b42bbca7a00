"""Scoring together equals scoring written models one by one, whatever the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.family import Family
from gptailor_merge.space.space import Space
from tests.scoring.test_evaluator import evaluator_of, scores_of
from tests.scoring.test_evaluator import sets as sets
from tests.zoo import DEPTH, ZOO, write_family


@pytest.mark.parametrize("name", ZOO)
def test_a_generation_is_scored_as_its_written_models(
    name: str,
    sets: tuple[Any, ...],
    tmp_path: Path,
) -> None:
    family = write_family(tmp_path, name, dtype=torch.float32)
    loaded = Family.load(family["base"], {n: family[n] for n in ("math", "code")})
    models = tuple(member.model for member in loaded.members)
    space = Space(models, DEPTH, (6,), tuple(range(1, DEPTH)), ("task_arithmetic",), "float32", "float32")
    rng = np.random.RandomState(1)
    parent = space.random(rng)
    plans = [space.decode(space.mutate(parent, rng)) for _ in range(4)]
    evaluator, streaming = (evaluator_of(loaded, sets, on_host=on_host) for on_host in (False, True))
    together = scores_of(evaluator.score(plans))
    assert len({str(scores) for scores in together}) > 1
    assert scores_of(streaming.score(plans)) == together
    materialize(space.recipe(plans[0]), tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert evaluator.passes.score(written) == together[0]
