"""The settings of a config that change what a model computes, and those in which two configs differ."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from gptailor_merge.models.depth import DEPTH, PERIODS, per_layer_lists
from gptailor_merge.models.nesting import text_of, text_path

_DESCRIPTIVE = re.compile(
    r"^_|_name_or_path$|^(architectures|model_type|transformers_version|dtype|torch_dtype)$|"
    r"token_ids?$|token_index$|"
    r"^(id2label|label2id|num_labels|problem_type|task_specific_params|tokenizer_class|auto_map)$|"
    r"^(use_cache|return_dict|torchscript|chunk_size_feed_forward|pretraining_tp|is_encoder_decoder)$|"
    r"^output_(attentions|hidden_states|router_logits|scores)$|"
    r"^(attn_implementation|quantization_config|gradient_checkpointing)$|"
    r"(dropout|dropout_prob|dropout_rate|pdrop|layerdrop)$|"
    r"^initializer_|_init_std$|^init_std$|_loss_coef$|^aux_loss_|^router_jitter_noise$|^seq_aux$"
)
"""Matches the entries that compute nothing once a model is trained: names, ids of tokens, dtypes, versions,
what is returned, how weights are initialised, dropout and losses of training."""


_COMPARED_ELSEWHERE = (DEPTH, "vocab_size", "tie_word_embeddings")
"""The entries that Family compares for themselves."""


_ROPE_DEFAULTS: Mapping[str, Any] = {
    "partial_rotary_factor": 1.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}
"""The values that transformers takes where rope parameters lack an entry, see its modeling_rope_utils."""


_MOST_CHARACTERS = 60


def differing_settings(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the settings in which two configs compute differently: key -> (the base's value, the other's).

    Keys of nested entries are joined by dots. A value is None where a config lacks the entry.

    Args:
        base, other: configs of one model type, with transformers' defaults filled in.

    >>> differing_settings({"model_type": "llama", "rms_norm_eps": 1e-5}, {"model_type": "llama"})
    {'rms_norm_eps': (1e-05, None)}
    """
    ours, theirs = dict(_settings(base)), dict(_settings(other))
    texts = (text_of(base), text_of(other))
    listed = {key for text in texts if all(DEPTH in t for t in texts) for key in per_layer_lists(text)}
    return {
        key: (ours.get(key), theirs.get(key))
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and not _is_told_by_list(key, listed)
    }


def in_short(value: Any) -> str:
    """Returns a setting's value for a sentence, without control characters and not too long.

    >>> in_short(1000000.0), in_short([1] * 99)
    ('1000000.0', '[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1…')
    """
    text = "none" if value is None else ascii(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _settings(config: Mapping[str, Any], path: str = "", text: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of every setting, nested ones by their paths.

    Args:
        path: of the config inside the whole.
        text: the path of the language model's config.
    """
    model_type = str(config.get("model_type", ""))
    is_text = not path or path == text
    text = "".join(f"{key}." for key in text_path(config)) if not path else text
    for key, value in config.items():
        if _DESCRIPTIVE.search(key) or (is_text and key in _COMPARED_ELSEWHERE):
            continue
        if not path and not _is_read(model_type, key):
            continue
        if isinstance(value, Mapping):
            nested = _rope(value) if "rope_type" in value else value
            yield from _settings(nested, f"{path}{key}.", text)
        elif value is not None:
            yield path + key, list(value) if isinstance(value, tuple) else value


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns rope parameters with defaults, and without the old spelling of rope_type."""
    given = {key: value for key, value in parameters.items() if key != "type" and value is not None}
    return {**_ROPE_DEFAULTS, **given}


def _is_told_by_list(key: str, listed: set[str]) -> bool:
    """Tells whether a setting has no effect but on a list of the config, which is compared for itself."""
    key = key.rpartition(".")[2]
    if key == "max_window_layers":
        return "layer_types" in listed
    return key in PERIODS and PERIODS[key][0] in listed


def _is_read(model_type: str, key: str) -> bool:
    """Tells whether a model reads an entry: its config class has it, or its code mentions it."""
    fields, code = _readers(model_type)
    return key in fields or not code or re.search(rf"\b{re.escape(key)}\b", code) is not None


@lru_cache(maxsize=32)
def _readers(model_type: str) -> tuple[frozenset[str], str]:
    """Returns the entries that the config class of a model type has, and the source of its model's module.

    The source is empty where transformers has no such model.
    """
    try:
        config = AutoConfig.for_model(model_type)
        module = sys.modules[AutoModelForCausalLM._model_mapping[type(config)].__module__]
        return frozenset(config.to_dict()), Path(str(module.__file__)).read_text(encoding="utf-8")
    except Exception:  # a config class may raise anything where it has to do without values
        return frozenset(), ""
