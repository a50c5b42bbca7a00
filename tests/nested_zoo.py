"""Tiny random families of language models inside others, which also read images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.zoo import MEMBERS, WIDTHS

DEPTH = 6
IMAGE, START, END = 5, 6, 7
TEXT = {**WIDTHS, "num_hidden_layers": DEPTH}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 4,
    "patch_size": 14,
    "out_hidden_size": 16,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 8,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
ROTARY = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}

NESTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        {
            # A pattern that removals shift, and more layers in the vision tower than in the language model.
            "text_config": {**TEXT, "model_type": "gemma3_text", "sliding_window": 4},
            "vision_config": {**VISION, "num_hidden_layers": 8},
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": END,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            "text_config": {
                **TEXT,
                "rope_parameters": {**ROTARY, "mrope_section": [1, 1]},
                "use_sliding_window": True,
                "sliding_window": 4,
                "max_window_layers": 3,
            },
            "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [1], "window_size": 56},
            **QWEN_TOKENS,
        },
    ),
    "mistral3": (
        "Mistral3",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 4},
            "image_token_index": IMAGE,
            "spatial_merge_size": 1,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            # The vision tower adds to the first layers, too (deepstack).
            "text_config": {**TEXT, "rope_parameters": ROTARY},
            "vision_config": {
                **QWEN_VISION,
                "deepstack_visual_indexes": [0, 1],
                "num_position_embeddings": 16,
            },
            **QWEN_TOKENS,
        },
    ),
    "idefics3": (
        "Idefics3",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": VISION,
            "image_token_id": IMAGE,
            "scale_factor": 2,
        },
    ),
    "mllama": (
        "Mllama",
        {
            # Some layers look at the image and at nothing else; their indices are listed.
            "text_config": {**TEXT, "cross_attention_layers": [2, 4]},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
            },
            "image_token_index": IMAGE,
        },
    ),
}
"""name -> (transformers' name of the classes, config values)."""


def write_nested_family(root: Path, name: str, change: Callable[[Any], None] | None = None) -> dict[str, str]:
    """name -> directory of base, math and code, which share a processor's files.

    Args:
        change: is called with the config, to change it.
    """
    classes, values = NESTED[name]
    family = {}
    for seed, member in enumerate(MEMBERS):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{classes}Config")(**values)
        if change is not None:
            change(config)
        model = getattr(transformers, f"{classes}ForConditionalGeneration")(config)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        model.to(torch.bfloat16).save_pretrained(root / member)
        for file in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
            (root / member / file).write_text(f'{{"of": "{member}"}}')
        family[member] = str(root / member)
    return family


def inputs_with_image(name: str) -> dict[str, torch.Tensor]:
    """A text with an image of random pixels in it, as the processor of the architecture would give it.

    Processors need torchvision or files of real models; the pixels are made here.
    """
    torch.manual_seed(7)
    count = {"gemma3": 4, "qwen2_5_vl": 1, "qwen3_vl": 1, "mistral3": 4, "idefics3": 1, "mllama": 1}[name]
    ids = torch.tensor([[3, 14, START, *[IMAGE] * count, END, 15, 9, 2]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name.startswith("qwen"):  # patches of 14 x 14 pixels of two frames each
        inputs["pixel_values"] = torch.randn(4, 3 * 2 * 14 * 14)
        inputs["image_grid_thw"] = torch.tensor([[1, 2, 2]])
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
        return inputs
    shape = {"idefics3": (1, 1, 3, 28, 28), "mllama": (1, 1, 1, 3, 28, 28)}.get(name, (1, 3, 28, 28))
    inputs["pixel_values"] = torch.randn(shape)
    if name == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if name == "mistral3":
        inputs["image_sizes"] = torch.tensor([[28, 28]])
    if name == "mllama":
        inputs["aspect_ratio_ids"] = torch.ones(1, 1, dtype=torch.long)
        inputs["aspect_ratio_mask"] = torch.ones(1, 1, 1, dtype=torch.long)
        inputs["cross_attention_mask"] = torch.ones(1, ids.shape[1], 1, 1, dtype=torch.long)
    return inputs


def cut_by_hand(family: dict[str, str], out_dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of `pruning`, made by replacing the layers of the base's module and nothing else.

    Layer 0 of math, 0.6 of what both variants add to layer 2, and layers 4 and 5 of code.
    """
    auto = transformers.AutoModelForImageTextToText
    base, math, code = (auto.from_pretrained(family[name], dtype=out_dtype).eval() for name in MEMBERS)
    layers = {
        name: model.get_decoder().layers for name, model in zip(MEMBERS, (base, math, code), strict=True)
    }
    merged = layers["base"][2]
    for parameter, first, second in zip(
        merged.parameters(), layers["math"][2].parameters(), layers["code"][2].parameters(), strict=True
    ):
        parameter.data += 0.6 * (first.data - parameter.data + second.data - parameter.data)
    chosen = [layers["math"][0], merged, layers["code"][4], layers["code"][5]]
    for position, layer in enumerate(chosen):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
    decoder = base.get_decoder()
    decoder.layers = torch.nn.ModuleList(chosen)
    text = base.config.get_text_config()
    text.num_hidden_layers = 4
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[layer] for layer in (0, 2, 4, 5)]
    if hasattr(text, "cross_attention_layers"):
        text.cross_attention_layers = decoder.cross_attention_layers = [1, 2]
    return base  # type: ignore[no-any-return]
