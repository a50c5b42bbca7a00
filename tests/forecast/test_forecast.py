"""What a search is said to take is no less than what it takes."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import gptailor_merge as gptailor
from gptailor_merge.api import forecasts
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.forecast import forecast as module
from gptailor_merge.forecast import memory_parts
from gptailor_merge.forecast.forecast import Forecast
from gptailor_merge.forecast.speed import MOST_SECONDS, BaseSpeed, measured_speed
from gptailor_merge.models.family import Family

GB = 10**9


@pytest.fixture
def document(family: dict[str, str], texts: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    held_out = {}
    for name, file in texts.items():
        rows = [json.loads(line)["text"][::-1] for line in Path(file).read_text().splitlines()]
        held_out[name] = str(tmp_path / f"{name}.jsonl")
        Path(held_out[name]).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return {
        "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
        "target": {"remove": 2},
        "objectives": [{"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16, "top_k": 8}],
        "held_out": [{"kind": "perplexity", "data": held_out, "tokens": 72, "sequence_length": 16}],
        "search": {"budget": 6, "population": 3, "racing": False, "warm_start": []},
        "repair": {"finalists": 2, "tokens": 128},
        "tune": {"steps": 2, "tokens": 128},
        "writes": {"tokens": 0},
    }


def expected(document: dict[str, Any], **options: Any) -> Forecast:
    options = {"device": "cpu", "measure": False, **options}
    return gptailor.forecast(SearchConfig.model_validate(document), **options)


def tokens(forecast: Forecast) -> dict[str, int]:
    return {stage.stage: stage.tokens for stage in forecast.stages}


def test_no_stage_takes_more_tokens_than_was_said(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor_merge.api.searches.write_report", lambda run: None)  # takes longer
    file = tmp_path / "search.yml"
    file.write_text(yaml.safe_dump(document))
    told: list[Forecast] = []
    run = gptailor.search(file, tmp_path / "run", device="cpu", model=False, on_forecast=told.append)
    said = tokens(told[0])
    assert said == tokens(expected(document))
    taken = {row.stage: row.tokens for row in run.summary().stages[0].rows}
    assert list(taken) == ["found", "repaired", "tuned"]
    assert said["search"] == 6 * 64
    assert taken["found"] == 64 * (6 - run.summary().counts.duplicates)
    assert 64 < taken["repaired"] <= said["repair"]
    assert 64 < taken["tuned"] <= said["tune"]


def test_a_search_that_goes_on_says_nothing(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since what is done already is not subtracted."""
    monkeypatch.setattr("gptailor_merge.api.searches.execute", lambda *_, **__: None)
    told: list[Forecast] = []
    for resume in (True, False):
        config = SearchConfig.model_validate(document)
        gptailor.search(config, tmp_path / "run", device="cpu", resume=resume, on_forecast=told.append)
        assert len(told) == (not resume)


def test_stages_follow_the_config(document: dict[str, Any]) -> None:
    assert tokens(expected(document)) == {
        "search": 6 * 64,
        # 2 finalists on all 128 tokens, up and at most 1 + 2 losses of a quarter; the best at 1 + 3 places.
        "repair": 128 + 2 * (128 + 3 * 32 + 64) + 128 + (128 + 4 * 32 + 64),
        # 2 steps of the 96 that are fitted to, 3 looks at the 32 that are held back.
        "tune": 3 * 2 * 96 + 3 * 32 + 64,
        # 3 members and 3 recipes; the last 4 tokens of each text's share make no sequence.
        "held out": (3 + 3) * 64 + 64,
    }
    assert list(tokens(expected(document, repair=False, tune=False))) == ["search", "held out"]
    assert tokens(expected(document, budget=10))["search"] == 640
    gated = {**document, "gates": [{**document["held_out"][0], "at_most": 9.0}]}
    assert tokens(expected(gated))["search"] == 6 * 128
    document["heal"] = {"tokens": 500, "data": document["held_out"][0]["data"]}
    healed = expected(document)
    assert tokens(healed)["heal"] == 3 * 500 + 64
    assert healed.tokens == sum(tokens(healed).values())
    assert any("training (heal)" in note for note in healed.notes)


def test_equal_texts_go_through_a_model_once(document: dict[str, Any]) -> None:
    again = {
        "kind": "perplexity",
        **{k: document["objectives"][0][k] for k in ("data", "tokens", "sequence_length")},
    }
    document["objectives"] += [again, {**again, "tokens": 32}]
    assert tokens(expected(document))["search"] == 6 * (64 + 32)


def test_a_front_has_as_many_recipes_as_it_will_have(document: dict[str, Any]) -> None:
    del document["search"]["racing"]
    front = expected({**document, "target": {"layers": [2, 4]}}, measure=True)
    assert [stage.each for stage in front.stages] == [False, True, True]
    assert list(front.sizes) == [2, 3, 4]
    assert front.tokens is None
    assert front.seconds is None
    assert front.seconds_of(front.stages[0]) is not None


def test_what_is_not_on_texts_is_named(document: dict[str, Any]) -> None:
    document["held_out"].append({"kind": "task", "tasks": ["piqa"]})
    document["search"]["workers"] = 2
    assert expected(document).notes == (
        "what task send through models comes on top; it is known when they are read",
        "memory and time are those of one worker; search.workers is 2",
    )


def test_seconds_follow_the_measured_batch(family: dict[str, str]) -> None:
    times = iter([0.0, 1.0, 1.5, 10.0, 12.0, 13.0])  # 32 tokens in 1.5 seconds, so that 5 have 106
    base = Family.load(family["base"], {}).base
    speed = measured_speed(
        base,
        torch.float32,
        torch.device("cpu"),
        batch_tokens=4096,
        sequence_length=50,
        clock=lambda: next(times),
    )
    assert speed == BaseSpeed(100, 0.02, 0.01)
    assert pytest.approx(106, abs=1) == MOST_SECONDS * 32 / 1.5
    assert speed.seconds(1000, 0.5) == pytest.approx(1000 * (0.5 * 0.02 + 0.01))


def test_the_speed_is_measured_on_what_the_search_scores(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast = expected(document, measure=True)
    assert forecast.speed is not None
    assert forecast.speed.tokens == 64
    assert forecast.seconds is not None
    monkeypatch.setattr(module, "measured_speed", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    (note,) = expected(document, measure=True).notes
    assert note == "no time is said, since cpu cannot hold the base and a batch"
    monkeypatch.setattr(module, "is_on_disk", lambda model: False)
    (note,) = expected(document, measure=True).notes
    assert note == "no time is said, since the base's weights are not on this machine yet"


def test_memory_on_the_cpu_is_the_hosts(document: dict[str, Any]) -> None:
    forecast = expected(document)
    parts = {part.name: part.host for part in forecast.memory}
    family = Family.load(document["family"]["base"], {})
    layers, whole = sum(family.layer_sizes), family.parameters(range(5))
    assert forecast.stored == {"BF16": 3 * 2 * whole}
    assert parts["the family's weights"] == 3 * 2 * whole
    # Three members' layers in float32, the base's embeddings and head; and a cache as large as the family.
    assert parts["layers that are kept to be used again"] == 4 * (3 * layers + family.outer_parameters) + min(
        12 * whole, 4 * 6 * 3 * layers // 5
    )
    assert parts["what teachers predict"] == (64 + 128) * 8 * 8
    assert forecast.peak.device == 0
    assert forecast.peak.host == sum(parts.values())


Free = namedtuple("Free", "available")


@pytest.mark.parametrize(("bank", "on_host"), [("device", False), ("host", True), ("auto", False)])
def test_memory_of_a_gpu(
    document: dict[str, Any], bank: Any, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: as if one had 40 GB free, and the host hardly any memory."""
    monkeypatch.setattr(forecasts, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * GB, 80 * GB))
    monkeypatch.setattr(memory_parts.psutil, "virtual_memory", lambda: Free(1000))
    forecast = expected(document, device="cuda", bank=bank)
    parts = {part.name: part for part in forecast.memory}
    weights = sum(forecast.stored.values())
    assert forecast.on_host == on_host
    assert parts["the family's weights"].host == (weights if on_host else 0)
    assert parts["the family's weights"].device == (0 if on_host else weights)
    # In bfloat16 selected layers are the family's own tensors; only merged ones are kept besides.
    largest = max(Family.load(document["family"]["base"], {}).layer_sizes)
    assert parts["layers that are kept to be used again"].device == min(weights, 6 * 3 * largest * 2)
    assert 0 < forecast.peak.device < 40 * GB
    assert forecast.free.device == 40 * GB
    (note,) = forecast.notes
    assert note.startswith("the host has ")
    assert "less than the " in note


def test_bad_options_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--seed: expected a whole number"):
        expected(document, seed=-1)
    with pytest.raises(ConfigError, match=r"target: expected 1 to 5 layers to keep of 5, found 6"):
        expected({**document, "target": {"layers": 6}})
