"""Adds up plain LoRA adapters, by peft's arithmetic, without a model around the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import peft
import torch
from peft.tuners.lora import Linear
from torch import nn

from gptailor_merge.errors import FamilyError

_NAME = "default"


_FREE = (
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "peft_version",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
)
"""The settings of peft's LoraConfig that a plain adapter may have; all others have their defaults."""


_STARTS = (True, False, "gaussian", "orthogonal")
"""The values of init_lora_weights that leave the model's weights as they are."""


_LARGEST_ALPHA = 1e9


def plain_config(document: Mapping[str, Any]) -> peft.LoraConfig:
    """Reads the content of adapter_config.json.

    Raises:
        FamilyError: it is no LoRA adapter, or one that does more than to add a product of two matrices.
    """
    if document.get("peft_type") != "LORA":
        raise FamilyError(f"peft_type: expected LORA, found {document.get('peft_type')!r}")
    known = {field.name for field in fields(peft.LoraConfig)}
    for name in document:
        if name not in known:
            raise FamilyError(f"{name}: peft {peft.__version__} knows no such setting of LoRA")
    try:
        config = peft.LoraConfig(**{key: value for key, value in document.items() if key != "peft_type"})
        default = peft.LoraConfig()
    except Exception as error:  # peft raises what its config classes raise
        raise FamilyError(f"cannot be read: {error}") from None
    for name in sorted(known.difference(_FREE, ("init_lora_weights",))):
        value, expected = getattr(config, name), getattr(default, name)
        if value != expected and (value or expected):
            text = f"expected {expected!r}, found {value!r}; only plain LoRA can be added to a recipe"
            raise FamilyError(f"{name}: {text}")
    if config.init_lora_weights not in _STARTS:
        text = f"{config.init_lora_weights!r} changes the model's weights as well"
        raise FamilyError(f"init_lora_weights: {text}; only plain LoRA can be added to a recipe")
    for name in ("target_modules", "exclude_modules"):
        # A text would be a regular expression, which may take for ever to match.
        if not isinstance(value := document.get(name, []), (list, type(None))):
            raise FamilyError(f"{name}: expected a list of names, found {value!r}")
    if type(config.r) is not int or config.r < 1:
        raise FamilyError(f"r: expected a number from 1, found {config.r!r}")
    if not (type(config.lora_alpha) in (int, float) and abs(config.lora_alpha) < _LARGEST_ALPHA):
        raise FamilyError(f"lora_alpha: expected a number, found {config.lora_alpha!r}")
    return config


def lora_change(config: peft.LoraConfig, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Returns what an adapter adds to the weight of a linear map, float64 [out, in], on the CPU.

    float64, so that every machine rounds the sum to the same bits.

    Args:
        down: lora_A, [rank, in].
        up: lora_B, [out, rank].
    """
    with torch.device("meta"):
        layer = Linear(
            nn.Linear(down.shape[1], up.shape[0], bias=False),
            _NAME,
            config,
            r=config.r,
            lora_alpha=config.lora_alpha,
        )
    for factors, factor in ((layer.lora_A, down), (layer.lora_B, up)):
        factors[_NAME].weight = nn.Parameter(factor.to("cpu", torch.float64), requires_grad=False)
    return layer.get_delta_weight(_NAME)
