"""The size of a batch is doubled while that pays; a CPU keeps the one it has always had."""

from __future__ import annotations

import pytest
import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.config_types import AUTO
from gptailor_merge.scoring import batch_size
from gptailor_merge.scoring.batch_size import batch_tokens, climb, seconds_of_pass
from gptailor_merge.scoring.teachers import Teachers

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("speeds", "most", "size"),
    [
        ({1: 1.0, 2: 1.2, 4: 2.4, 8: 2.5}, 99, 4),
        ({1: 1.0, 2: 2.0, 4: None}, 99, 2),
        ({1: 1.0, 2: 2.0, 4: 4.0}, 3, 2),
        ({1: None}, 99, 1),
    ],
)
def test_the_ladder_ends_where_a_step_does_not_pay(
    speeds: dict[int, float | None], most: int, size: int
) -> None:
    asked: list[int] = []

    def speed(tokens: int) -> float | None:
        asked.append(tokens)
        return speeds[tokens]

    assert climb(speed, 1, most) == size
    assert asked == sorted(set(asked))


def test_a_config_says_it_or_a_cpu_takes_the_usual_size(family: dict[str, str]) -> None:
    document = {
        "family": {"base": family["base"]},
        "target": {"layers": 3},
        "objectives": [{"kind": "perplexity", "data": {"a": "a.jsonl"}}],
    }
    loaded = Family.load(family["base"], {})
    teachers = Teachers(loaded, CPU, torch.float32)
    for given, size in ((AUTO, 4096), (64, 64)):
        config = SearchConfig.model_validate({**document, "batch_tokens": given})
        assert batch_tokens(config, loaded, teachers, torch.float32) == size
    assert SearchConfig.model_validate(document).batch_tokens == AUTO
    assert seconds_of_pass(teachers.model("base"), 64, 16, CPU) > 0


def test_a_gpu_measures_the_base_as_far_as_memory_holds(
    family: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounts of the device are made up: a batch takes 1 KiB a token at its peak."""
    loaded = Family.load(family["base"], {})
    teachers, taken = Teachers(loaded, CPU, torch.float32), [0]

    class Card:
        total_memory = batch_size.family_bytes(loaded, torch.float32) + 8 * 2**20

    def seconds(model: object, tokens: int, length: int, device: torch.device) -> float:
        if tokens > 1024:
            raise torch.OutOfMemoryError
        taken[0] = 1024 * tokens
        return 0.5

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: taken[0])
    monkeypatch.setattr(batch_size, "seconds_of_pass", seconds)
    speed = batch_size.speed_on_gpu(loaded, teachers, torch.float32, 16)
    assert speed(512) == 1024.0
    assert speed(2048) is None
    monkeypatch.setattr(Card, "total_memory", Card.total_memory - 7 * 2**20)
    assert batch_size.speed_on_gpu(loaded, teachers, torch.float32, 16)(1024) is None
