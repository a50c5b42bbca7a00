"""llama.cpp computes some patterns by itself; models that need others are warned of."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, Exaone4Config, Gemma3TextConfig, MistralConfig, Qwen3Config

from gptailor_merge.checking.llama_cpp import PATTERNS, hazards


@pytest.mark.parametrize("kind", sorted(PATTERNS))
def test_the_patterns_are_those_of_the_published_models(kind: str) -> None:
    """transformers' defaults are the published configs; llama.cpp runs those right."""
    config = AutoConfig.for_model(kind).to_dict()
    assert hazards(config) == []
    key, period = PATTERNS[kind].key, PATTERNS[kind].period
    kept = config[key][1:]
    assert f"every {period}" in hazards({**config, key: kept, "num_hidden_layers": len(kept)})[0]
    whole = config[key][period:]
    assert hazards({**config, key: whole, "num_hidden_layers": len(whole)}) == []


def test_olmo3_runs_by_its_list() -> None:
    """The converter writes it into the GGUF, and llama.cpp reads it."""
    assert "olmo3" not in PATTERNS
    config = AutoConfig.for_model("olmo3").to_dict()
    assert hazards({**config, "layer_types": config["layer_types"][1:]}) == []


def test_the_27b_is_known_by_its_depth_only() -> None:
    """Gemma3 27B: hidden_size / heads = 168 and head_dim = 128."""
    shape = {"hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128, "query_pre_attn_scalar": 168}
    assert hazards(Gemma3TextConfig(num_hidden_layers=62, **shape).to_dict()) == []
    (sentence,) = hazards(Gemma3TextConfig(num_hidden_layers=56, **shape).to_dict())
    assert sentence.startswith("query_pre_attn_scalar: 168 here, but for gemma3_text with 56 layers")


def test_exaone4_slides_at_one_depth_only() -> None:
    assert hazards(Exaone4Config(num_hidden_layers=64, sliding_window=4096).to_dict()) == []
    (sentence,) = hazards(Exaone4Config(num_hidden_layers=60, sliding_window=4096).to_dict())
    assert "a sliding window only with 64 layers, found 60" in sentence


def test_windows_that_llama_cpp_does_not_have_are_told() -> None:
    (sentence,) = hazards(MistralConfig(sliding_window=4096, max_position_embeddings=32768).to_dict())
    assert sentence.startswith("sliding_window: llama.cpp runs mistral without windows; beyond 4,096 tokens")
    assert hazards(MistralConfig(sliding_window=None).to_dict()) == []
    assert hazards(MistralConfig(sliding_window=4096, max_position_embeddings=4096).to_dict()) == []
    windows = {"use_sliding_window": True, "sliding_window": 32, "num_hidden_layers": 8}
    assert len(hazards(Qwen3Config(max_window_layers=4, **windows).to_dict())) == 1
    assert hazards(Qwen3Config(max_window_layers=8, **windows).to_dict()) == []
