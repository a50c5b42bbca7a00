"""Compares what llama.cpp computes by itself, whatever config.json says, with what a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

from gptailor_merge.checking.finding import Finding


@dataclass(frozen=True)
class LayerPattern:
    """A periodic pattern: the last layer of each period is of one kind, all others are of another.

    Attributes:
        key: the list in config.json that tells transformers the kind of each layer.
        last: the entry of that list for the last layer of each period.
    """

    key: str
    period: int
    last: object


# Read in ggml-org/llama.cpp, and run by integrations/interop.py: src/models/{gemma2,gemma3,openai-moe,
# cohere2,smollm3}.cpp. All but SmolLM3 call load_swa_pattern(period), which makes layer il a sliding one
# where il % period < period - 1, unless the GGUF has a list under `attention.sliding_window_pattern` (older
# versions pass lists over). convert_hf_to_gguf.py writes none for these; for Olmo3 it does, which is right.
# SmolLM3 sets n_no_rope_layer_step = 4 and rotates where (il + 1) % 4 != 0; the GGUF has no key for it.
PATTERNS = {
    "gemma2": LayerPattern("layer_types", 2, "full_attention"),
    "gemma3_text": LayerPattern("layer_types", 6, "full_attention"),
    "gpt_oss": LayerPattern("layer_types", 2, "full_attention"),
    "cohere2": LayerPattern("layer_types", 4, "full_attention"),
    "smollm3": LayerPattern("no_rope_layers", 4, 0),
}
"""Model type -> the pattern that llama.cpp computes from the layer index, whatever config.json says."""


# In the same functions, `switch (hparams.n_layer)`: only at this depth is a Gemma the 27B, whose attention
# is scaled by hidden_size / heads; at any other by head_dim. query_pre_attn_scalar is not converted.
_GEMMA_27B = {"gemma2": 46, "gemma3_text": 62}


# src/models/exaone4.cpp: `if (hparams.n_layer() == 64)` guards the whole sliding window.
_EXAONE4_SLIDING = 64


# src/models/{llama,qwen2,qwen2moe,qwen3,qwen3moe,smollm3,starcoder2}.cpp read no window and set no swa_type;
# phi3.cpp reads it, warns, and switches it off. Mistral and Mixtral are llama there.
_WITHOUT_WINDOWS = frozenset(
    ("mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2")
)


def hazards(config: Mapping[str, Any]) -> list[str]:
    """Returns the ways in which llama.cpp would run a model differently from transformers, a sentence each.

    Args:
        config: the config of the text model, with the defaults of its type filled in.
    """
    kind = config.get("model_type")
    layers = config.get("num_hidden_layers")
    sentences = []
    pattern = PATTERNS.get(str(kind))
    entries = config.get(pattern.key) if pattern else None
    if pattern and isinstance(entries, list | tuple):
        wrong = [
            index
            for index, entry in enumerate(entries)
            if (entry == pattern.last) != (index % pattern.period == pattern.period - 1)
        ]
        if wrong:
            remedy = (
                "; newer versions obey attention.sliding_window_pattern in the GGUF, where the converter "
                "writes no such list: see docs/runs-elsewhere.md of gptailor-merge"
            )
            sentences.append(
                f"{pattern.key}: llama.cpp takes every {_ordinal(pattern.period)} layer of {kind} for "
                f"{pattern.last!r} whatever this list says; a GGUF would run layers "
                f"{', '.join(map(str, wrong))} as the wrong kind and answer worse without any error; "
                f"a recipe that removes whole periods of {pattern.period} layers keeps the pattern"
                f"{remedy if pattern.key == 'layer_types' else ''}"
            )
    window = config.get("sliding_window")
    slides = "sliding_attention" in config.get("layer_types", ("sliding_attention",))
    if kind in _WITHOUT_WINDOWS and window and slides and window < config["max_position_embeddings"]:
        sentences.append(
            f"sliding_window: llama.cpp runs {kind} without windows; beyond {window:,} tokens a GGUF would "
            "attend to more than this model does and answer differently without any error"
        )
    if kind in _GEMMA_27B:
        by_head = config["head_dim"]
        by_width = config["hidden_size"] // config["num_attention_heads"]
        taken = by_width if layers == _GEMMA_27B[kind] else by_head
        if not isclose(config["query_pre_attn_scalar"], taken):
            sentences.append(
                f"query_pre_attn_scalar: {config['query_pre_attn_scalar']} here, but for {kind} with "
                f"{layers} layers llama.cpp scales attention by {taken}; it knows the 27B by its "
                f"{_GEMMA_27B[kind]} layers only, so a GGUF would answer worse without any error"
            )
    if kind == "exaone4" and layers != _EXAONE4_SLIDING and "sliding_attention" in config["layer_types"]:
        sentences.append(
            f"layer_types: llama.cpp gives exaone4 a sliding window only with {_EXAONE4_SLIDING} layers, "
            f"found {layers}; a GGUF would attend to everything in the sliding layers"
        )
    return sentences


def check_llama_cpp(config: Mapping[str, Any], kind: object) -> Finding:
    """Checks that llama.cpp would run a model as transformers does.

    Args:
        config: see `hazards`.
        kind: the model type that config.json names.
    """
    sentences = hazards(config)
    if sentences:
        return Finding("llama.cpp", "warn", "; ".join(sentences))
    return Finding("llama.cpp", "ok", f"nothing that it computes for {kind} is different here")


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
