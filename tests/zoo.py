"""Tiny random families of the architectures that people merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

DEPTH = 8
MEMBERS = ("base", "math", "code")

WIDTHS: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
_WINDOW = {"sliding_window": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_FULL_AT = ["full_attention" if i in (1, 2, 5) else "sliding_attention" for i in range(DEPTH)]

ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", _WINDOW),
    "qwen2": ("Qwen2", {**_WINDOW, "use_sliding_window": True, "max_window_layers": 3}),
    "qwen3": ("Qwen3", {**_WINDOW, "use_sliding_window": True, "layer_types": _FULL_AT}),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "mlp_only_layers": [0, 5]}),
    "gemma2": ("Gemma2", _WINDOW),
    "gemma3": ("Gemma3Text", _WINDOW),
    "phi3": ("Phi3", {"sliding_window": None}),
    "smollm3": ("SmolLM3", {}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", _WINDOW),
    "gpt_oss": ("GptOss", {**_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "cohere2": ("Cohere2", _WINDOW),
    "granite": ("Granite", {}),
    "lfm2": ("Lfm2", {"full_attn_idxs": [1, 2, 5], "block_multiple_of": 8}),
    "gpt_neox": ("GPTNeoX", {}),
    "starcoder2": ("Starcoder2", _WINDOW),
}
"""name -> (transformers' name of the classes, config values besides the common ones)."""

FIXED: dict[str, tuple[str, dict[str, Any]]] = {
    # Dense and sparse layers in turn, computed from the index; no list says so.
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        {
            "moe_num_experts": 2,
            "moe_k": 1,
            "moe_intermediate_size": 8,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 7,
            "moe_layer_interval": 2,
        },
    ),
    # The decay of its attention is computed from the number of layers.
    "minimax": ("MiniMax", {"num_local_experts": 2}),
    # The width of its second embeddings is that of all layers together.
    "gemma4": (
        "Gemma4Text",
        {
            "head_dim": 8,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 64,
        },
    ),
}
"""The same of architectures whose layers depend on their index or their number."""


def config_of(name: str, **more: Any) -> Any:
    """The tiny config of an architecture."""
    classes, values = {**ZOO, **FIXED}[name]
    return getattr(transformers, f"{classes}Config")(
        **{**WIDTHS, "num_hidden_layers": DEPTH, **values, **more}
    )


def write_family(root: Path, name: str, dtype: torch.dtype = torch.bfloat16, **more: Any) -> dict[str, str]:
    """name -> directory of base, math and code."""
    classes, _ = {**ZOO, **FIXED}[name]
    model_class = getattr(transformers, f"{classes.removesuffix('Text')}ForCausalLM")
    family = {}
    for seed, member in enumerate(MEMBERS):
        torch.manual_seed(seed)
        model = model_class(config_of(name, **more))
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        model.to(dtype).save_pretrained(root / member)
        family[member] = str(root / member)
    return family
