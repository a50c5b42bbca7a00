"""Merges adapters into models as mergekit does, and tells beforehand whether that gives the right model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from mergekit.common import ModelPath, ModelReference
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import PreTrainedModel

from gptailor_merge.errors import FamilyError

_NAME = "default"
"""The name that peft gives an adapter while it is loaded; names in its file lack it."""


_WRAPPED = re.compile(r"^base_model\.model\.|\.(modules_to_save|original_module|base_layer)(?=\.)")
"""Matches what peft adds to the names of a model's own tensors."""


_CHANGED_MODEL = ("pissa_niter", "corda", "loftq", "lora_ga")
"""The initialisations that change the model's weights by random numbers or by data. Those named pissa and
olora change them, too, and peft does so again when it loads the adapter."""


_MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)")


def merge_adapter(model: Path, adapter: Path, out: Path) -> Path:
    """Merges an adapter into a model; returns the new directory below `out`."""
    reference = ModelReference(model=ModelPath(path=str(model)), lora=ModelPath(path=str(adapter)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unties_head has told what peft warns of
        return Path(reference.merged(cache_dir=str(out)).model.path)


def unties_head(model: PreTrainedModel, adapter: Path, stored: Mapping[str, tuple[int, ...]]) -> bool:
    """Merges an adapter without weights, and tells whether the model's tied head becomes one of its own.

    Args:
        model: the model on the meta device; it is changed.
        adapter: the directory with adapter_config.json.
        stored: name -> shape of each tensor in the adapter's file.

    Raises:
        FamilyError: the adapter was trained on another model, or merging it would give another model than
            the one that was trained.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for problem in _unlike_tensors(shapes, stored):
        raise FamilyError(problem)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(str(adapter))
    except Exception as error:  # peft raises what its config classes raise
        raise FamilyError(f"adapter_config.json cannot be read: {_first_line(error)}") from None
    if config.is_prompt_learning:
        raise FamilyError(f"its kind is {config.peft_type.value}, which adds no weights that can be merged")
    _check_config(config, rows=model.get_input_embeddings().weight.shape[0])
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _merged_head(model, config, stored, shapes) and tied
    except FamilyError:
        raise
    except Exception as error:  # the code of peft's many kinds
        raise FamilyError(_mismatch(error) or f"peft cannot merge it: {_first_line(error)}") from None


def _unlike_tensors(
    shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Yields the whole tensors in the adapter's file that do not have the shapes of the model's."""
    for name, shape in stored.items():
        inner = _WRAPPED.sub("", name)
        expected = shapes.get(inner)
        if expected is None or expected == shape:
            continue
        if len(shape) == len(expected) and shape[1:] == expected[1:]:
            module = inner.rpartition(".")[0]
            yield (
                f"{module} has {shape[0]} rows, the model that it is merged into has {expected[0]}; tokens "
                "were added before it was trained: resize the model first "
                f"(resize_token_embeddings({shape[0]})), and name that"
            )
        yield f"{inner} has the shape {list(shape)}, in the model that it is merged into {list(expected)}"


def _check_config(config: Any, rows: int) -> None:
    """Checks settings that peft would accept or ignore.

    Raises:
        FamilyError: the merged model would have other layers, or tokens that the model does not have.
    """
    if getattr(config, "layer_replication", None):
        raise FamilyError("it repeats layers (layer_replication), and a family has layers of one depth")
    if getattr(config, "megatron_config", None):
        raise FamilyError("it was made for Megatron (megatron_config); expected an adapter of transformers")
    indices = getattr(config, "trainable_token_indices", None) or ()
    lists = indices.values() if isinstance(indices, Mapping) else [indices]
    beyond = [index for each in lists for index in each if not 0 <= index < rows]
    if beyond:
        raise FamilyError(f"trainable_token_indices names token {beyond[0]}, the model has {rows} tokens")
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.startswith(_CHANGED_MODEL):
        raise FamilyError(
            f"it was trained on a model that init_lora_weights: {start} had changed, and the change cannot "
            "be computed again; convert it first (path_initial_model_for_weight_conversion of peft's "
            "save_pretrained)"
        )
    # Otherwise peft would compute initial values from weights that are not there.
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False
    config.inference_mode = True


def _merged_head(
    model: PreTrainedModel,
    config: Any,
    stored: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
) -> bool:
    """Merges an adapter into a model without weights, and tells whether head and embeddings part.

    Raises:
        FamilyError: the adapter does not fit the model, or was trained on a tied head.
    """
    is_tied = bool(getattr(model.config, "tie_word_embeddings", False))
    adapted = peft.get_peft_model(model, config)
    weights = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    report: Any = peft.set_peft_model_state_dict(adapted, weights, adapter_name=_NAME)
    if report.unexpected_keys:
        name = _in_file(report.unexpected_keys[0])
        raise FamilyError(f"{name} has no place in the model that it is merged into")
    expected = set(peft.get_peft_model_state_dict(adapted, adapter_name=_NAME, save_embedding_layers=False))
    missing = [key for key in report.missing_keys if key.replace(f".{_NAME}", "") in expected]
    if missing:
        name = _in_file(missing[0])
        raise FamilyError(f"{name} is missing in its file, and adapter_config.json says that it is there")
    embeddings, head = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    if is_tied and (isinstance(embeddings, BaseTunerLayer) or isinstance(head, BaseTunerLayer)):
        raise FamilyError(
            "it changes the embeddings or the head by factors, and the model's head is its embedding matrix "
            "(tie_word_embeddings), so that merging would change both; untie the model first, and name that"
        )
    merged = adapted.merge_and_unload()
    written = {name: tuple(tensor.shape) for name, tensor in merged.state_dict().items()}
    if odd := sorted(written.items() ^ shapes.items()):
        raise FamilyError(f"merging it gives {odd[0][0]} another shape, or adds or removes it")
    if not is_tied or merged.get_input_embeddings().weight is merged.get_output_embeddings().weight:
        return False
    if isinstance(embeddings, TrainableTokensWrapper) or isinstance(head, TrainableTokensWrapper):
        adapters = [getattr(part, "token_adapter", None) for part in (embeddings, head)]
        indices = [None if part is None else part.token_indices for part in adapters]
        if None in indices or indices[0] != indices[1]:
            raise FamilyError(
                "it trains other tokens in the head than in the embeddings, which are one matrix"
            )
        return False
    return isinstance(embeddings, ModulesToSaveWrapper) or isinstance(head, ModulesToSaveWrapper)


def _mismatch(error: Exception) -> str | None:
    """Returns a sentence about the first tensor whose shape torch complains about, if it does."""
    match = _MISMATCH.search(" ".join(str(error).split()))
    if match is None:
        return None
    name, stored, expected = _in_file(match[1]), match[2], match[3]
    return f"{name} has the shape {stored}, by the model that it is merged into it should have {expected}"


def _in_file(name: str) -> str:
    """Returns the name of an adapter's tensor without what peft puts before and into it."""
    return name.removeprefix("base_model.model.").replace(f".{_NAME}", "")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
