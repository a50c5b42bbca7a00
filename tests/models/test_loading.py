"""Models are loaded whole, layer by layer where a GPU has too little room, or in 8 bits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.models import loading
from gptailor_merge.scoring.passes import predictions_alone
from tests.conftest import DEMO

BASE = DEMO / "family" / "base"
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_model_whose_layers_wait_on_the_disk_predicts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ((batch,),) = layout([TokenSet("text", (torch.arange(32),), "0")], 64, device=CPU, rungs=(1.0,))
    whole = loading.load_model(BASE, torch.float32, CPU)
    parts = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    on_disk = {f"model.layers.{index}": "disk" if index % 2 else "cpu" for index in range(12)}
    placed = {"device_map": {**parts, **on_disk}}
    monkeypatch.setattr(loading, "_placed", lambda *_: placed)
    streamed = loading.load_model(BASE, torch.float32, CPU)
    assert [next(layer.parameters()).is_meta for layer in streamed.model.layers] == [False, True] * 6
    ((one,), (other,)) = (list(predictions_alone(model, batch)) for model in (whole, streamed))
    assert torch.equal(one.log_probabilities, other.log_probabilities)


def test_a_model_that_does_not_fit_its_gpu_waits_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(loading.psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    assert loading._placed(700, GPU, False) == {}
    assert loading._placed(701, CPU, False) == {}
    room: dict[Any, int] = {1: 700, "cpu": 5000}
    assert loading._placed(701, GPU, False) == {"device_map": "auto", "max_memory": room}
    in_8bit = [loading._placed(701, device, True) for device in (GPU, CPU)]
    assert [settings["device_map"] for settings in in_8bit] == [{"": 1}, {"": "cpu"}]
    assert all(settings["quantization_config"].load_in_8bit for settings in in_8bit)
