"""Chooses the class by which transformers builds and loads a model: of text, or of text and images."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto as names

_CLASSES = (
    (AutoModelForCausalLM, names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForImageTextToText, names.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    (AutoModelForMultimodalLM, names.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
)


def auto_class(config: PreTrainedConfig) -> Any:
    """Returns the auto class that makes the model which a config names in `architectures`.

    Where the config names none that transformers knows for its type, the first auto class that has the
    type is returned, and AutoModelForCausalLM where none has; its refusal then names the type.
    """
    return (*_named(config), *_fitting(config), AutoModelForCausalLM)[0]


def loading_class(config: PreTrainedConfig) -> Any:
    """Returns the class that loads any model of transformers: an auto class, or the one that it names."""
    of_library = [getattr(transformers, str(name), None) for name in config.architectures or ()]
    classes = [c for c in of_library if isinstance(c, type) and issubclass(c, PreTrainedModel)]
    return (*_named(config), *classes, *_fitting(config), AutoModelForCausalLM)[0]


def _named(config: PreTrainedConfig) -> list[Any]:
    named = config.architectures or ()
    return [auto for auto, mapping in _CLASSES if mapping.get(config.model_type) in named]


def _fitting(config: PreTrainedConfig) -> list[Any]:
    return [auto for auto, mapping in _CLASSES if mapping.get(config.model_type) is not None]
