from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from gptailor_merge.models.config_settings import differing_settings, in_short

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def read(directory: Path, model_type: str, **settings: Any) -> dict[str, Any]:
    """A config.json as Member reads it: with transformers' defaults."""
    (directory / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES, **settings}))
    config: dict[str, Any] = AutoConfig.from_pretrained(directory).to_dict()
    return config


def difference(directory: Path, model_type: str, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    configs = [read(directory, model_type, **settings) for settings in (first, second)]
    return list(differing_settings(*configs))


@pytest.mark.parametrize(
    ("model_type", "first", "second", "keys"),
    [
        ("llama", {}, {"rope_theta": 5e5}, ["rope_parameters.rope_theta"]),
        (
            "llama",
            {},
            {"rms_norm_eps": 1e-5, "max_position_embeddings": 99},
            "max_position_embeddings rms_norm_eps",
        ),
        (
            "llama",
            {},
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_parameters.factor rope_parameters.rope_type",
        ),
        (
            "gemma3_text",
            {},
            {"rope_theta": 5e5, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8},
            "final_logit_softcapping query_pre_attn_scalar rope_parameters.full_attention.rope_theta",
        ),
        (
            "qwen3_moe",
            {},
            {"num_experts_per_tok": 2, "norm_topk_prob": True},
            "norm_topk_prob num_experts_per_tok",
        ),
        (
            "granite",
            {},
            {"residual_multiplier": 0.5, "logits_scaling": 2.0, "embedding_multiplier": 3.0},
            "embedding_multiplier logits_scaling residual_multiplier",
        ),
        ("xlstm", {}, {"output_logit_soft_cap": 5.0}, ["output_logit_soft_cap"]),
        ("mistral", {"sliding_window": None}, {"sliding_window": 32}, ["sliding_window"]),
        # An entry that the class does not have, but the model's code asks for.
        ("llama", {}, {"_attn_implementation": "eager", "attention_bias": True}, ["attention_bias"]),
    ],
)
def test_what_changes_the_computation_is_found(
    tmp_path: Path, model_type: str, first: dict[str, Any], second: dict[str, Any], keys: Any
) -> None:
    expected = keys.split() if isinstance(keys, str) else keys
    assert difference(tmp_path, model_type, first, second) == expected


OLD = {
    "rope_theta": 1e6,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}
NEW = {
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 4,
        "rope_theta": 1000000,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
    }
}


@pytest.mark.parametrize(
    ("model_type", "first", "second"),
    [
        ("llama", {}, {"rope_theta": 10000, "rope_scaling": None, "attention_bias": False}),
        ("llama", OLD, NEW),
        ("llama", {"rope_scaling": {"type": "default"}}, {"partial_rotary_factor": 1.0}),
        (
            "llama",
            {"dtype": "float16"},
            {"torch_dtype": "bfloat16", "transformers_version": "4.0", "eos_token_id": 9},
        ),
        (
            "llama",
            {"unsloth_version": "1", "use_mrope": False},
            {"use_cache": False, "attention_dropout": 0.5},
        ),
        (
            "qwen2",
            {"use_sliding_window": False, "sliding_window": 99, "max_window_layers": 1},
            {"sliding_window": 55, "max_window_layers": 28, "initializer_range": 0.5},
        ),
        ("qwen3_moe", {"router_aux_loss_coef": 0.5}, {"output_router_logits": True}),
    ],
)
def test_what_computes_the_same_is_no_difference(
    tmp_path: Path, model_type: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert difference(tmp_path, model_type, first, second) == []


def test_values_cannot_repaint_a_terminal() -> None:
    assert in_short("\x1b[2J") == "'\\x1b[2J'"
    assert len(in_short("x" * 1000)) == 60
