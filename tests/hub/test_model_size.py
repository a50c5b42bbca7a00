"""Sizes are measured without loading weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from gptailor_merge.hub.model_size import size_of
from gptailor_merge.objectives.kv_cache import CONTEXT, KVCache
from tests.zoo import write_family


def test_the_kv_cache_of_other_architectures(tmp_path: Path) -> None:
    """Sliding windows, experts, a state of fixed size: measured without weights as with them."""
    for name in ("gemma3", "qwen3_moe", "lfm2"):
        directory = write_family(tmp_path / name, name)["base"]
        size = size_of(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        measure = KVCache("kv_cache", model.dtype, CONTEXT)
        with torch.inference_mode():
            assert size.kv_cache == measure.measure("model", model, 0, 1)[0]
        assert size.layers == model.config.num_hidden_layers
