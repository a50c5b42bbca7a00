"""One model of a family: its name, config and tensor headers, read without loading a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gptailor_merge.errors import FamilyError, Problem
from gptailor_merge.methods.adapters import unties_head
from gptailor_merge.methods.conversion import can_convert
from gptailor_merge.models.architecture import Architecture, Shape, config_text, on_meta
from gptailor_merge.models.checkpoint import Header, ModelId, headers_in, headers_of, read
from gptailor_merge.models.chosen_weights import ADAPTER
from gptailor_merge.models.configs import bounded_modules, load_config
from gptailor_merge.models.depth import DEPTH, inconsistencies
from gptailor_merge.models.directories import adapter_directory, directory_of
from gptailor_merge.models.nesting import text_of
from gptailor_merge.models.stored_names import WrittenNames, layers_prefix, saved_name, stored_names
from gptailor_merge.models.vocabulary import tokens_of_model


@dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        name: "base", or the variant's name.
        model: the name that recipes use.
        config: the content of config.json, with transformers' defaults filled in.
        headers: tensor name -> header, as the checkpoint lays out its tensors.
    """

    name: str
    model: str
    config: Mapping[str, Any]
    headers: Mapping[str, Header]

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's config: a part of the config, or the config itself."""
        return text_of(self.config)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return int(self.text_config[DEPTH])

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens that the embeddings have rows for."""
        return int(self.text_config["vocab_size"])

    @cached_property
    def architecture(self) -> Architecture:
        """The layers and tensors, as transformers lays them out."""
        return Architecture.of(self.config)

    @property
    def tied(self) -> bool:
        """True if the config says that the head is the embedding matrix."""
        return bool(self.architecture.tied)

    @cached_property
    def tokens(self) -> Mapping[int, str] | None:
        """The token behind each id; None without a tokenizer that can be read."""
        return tokens_of_model(self.model)

    @cached_property
    def dtypes(self) -> frozenset[str]:
        """The dtypes that the model's tensors are stored in, as safetensors writes them, e.g. "BF16"."""
        return frozenset(self.headers[name].dtype for name in self.stored_tensors)

    @cached_property
    def stored_tensors(self) -> frozenset[str]:
        """The names of the checkpoint's tensors that the model is made of; it may hold others.

        Training leaves value heads behind, and old versions of transformers stored buffers.
        """
        return frozenset(stored for name, _, layer in self.tensors() for stored in self.sources(name, layer))

    def tensors(self) -> Iterator[tuple[str, Shape, int | None]]:
        """Yields (name, shape, layer) of the model's tensors; the layer is None outside the layers."""
        architecture = self.architecture
        for name, shape in architecture.outer.items():
            yield name, shape, None
        for index, layer in enumerate(architecture.layers):
            for inner, shape in layer.items():
                yield f"{architecture.prefix}{index}.{inner}", shape, index

    @cached_property
    def stored(self) -> Mapping[str, str]:
        """Tensor of the model -> its name in the checkpoint, for those that loading at most renames."""
        return stored_names(self.config, self.headers)

    @cached_property
    def written(self) -> WrittenNames:
        """The names of tensors in the checkpoints that are made of this one."""
        return WrittenNames.in_checkpoint(self.config, self.headers)

    @cached_property
    def layers_prefix(self) -> str:
        """The part of the checkpoint's names before the layer index, e.g. `model.layers.`."""
        return layers_prefix(self.config, self.headers)

    def layer_tensors(self, index: int) -> dict[str, str]:
        """Returns name inside the layer -> full name, for one layer of the checkpoint."""
        prefix = f"{self.layers_prefix}{index}."
        return {name.removeprefix(prefix): name for name in self.headers if name.startswith(prefix)}

    @cached_property
    def outer_tensors(self) -> tuple[str, ...]:
        """The names of the checkpoint's tensors outside the layers: embeddings, final norm, head."""
        return tuple(name for name in self.headers if not name.startswith(self.layers_prefix))

    def sources(self, name: str, layer: int | None) -> tuple[str, ...]:
        """Returns the checkpoint's tensors that a tensor of the model may be made from.

        A single one is the tensor itself. Several are all those of its layer, or outside the layers, of
        which transformers' conversions pick, e.g. the experts that become one tensor.

        Args:
            layer: the tensor's layer, or None if it is outside the layers.
        """
        if name in self.stored:
            return (self.stored[name],)
        return self.outer_tensors if layer is None else tuple(self.layer_tensors(layer).values())

    @cached_property
    def directory(self) -> Path:
        """The directory with the weights; the first access downloads a Hub model and merges an adapter."""
        return directory_of(ModelId.parse(self.model))

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """Tensor name -> the file that holds it."""
        return {name: self.directory / header.file for name, header in headers_in(self.directory).items()}


def read_member(name: str, model: str) -> Member:
    """Reads config and headers of a model, and checks that they agree.

    Raises:
        FamilyError: the model is absent, cannot be read, or is not supported.
    """
    config_file, headers = read(ModelId.parse(model))
    # transformers fills in the defaults of the model type, as it will when it loads the model.
    config = load_config(config_file.parent).to_dict()
    text_config = text_of(config)
    for key in (DEPTH, "vocab_size"):
        if not isinstance(text_config.get(key), int):
            text = f"{key} is missing; expected a language model that is a list of layers"
            raise FamilyError(f"{config_file}: {text}")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise FamilyError(
            f"{model}: quantised ({method}), and quantised tensors cannot be merged; "
            "take the model in 16 or 32 bits"
        )
    if contradictions := inconsistencies(text_config):
        raise FamilyError([Problem((), f"{config_file}: {text}") for text in contradictions])
    if text_config[DEPTH] > len(headers):
        text = f"{DEPTH} is {text_config[DEPTH]:,}, and the weight files hold {len(headers):,} tensors"
        raise FamilyError(f"{config_file}: {text}")
    member = Member(name, model, config, headers)
    try:
        with bounded_modules(len(headers)):
            problems = [Problem((), f"{model}: {text}") for text in _misfits(member)]
    except FamilyError as error:
        raise FamilyError(f"{model}: {config.get('model_type')} is not supported: {error}") from None
    if problems:
        raise FamilyError(problems)
    return _with_adapter(member)


def _with_adapter(member: Member) -> Member:
    """Returns a member as it is with its adapter merged: the adapter may give it a head of its own.

    Raises:
        FamilyError: the adapter cannot be merged into this model.
    """
    model = ModelId.parse(member.model)
    if model.adapter is None:
        return member
    directory = adapter_directory(model)
    try:
        shapes = {name: header.shape for name, header in headers_of(directory / ADAPTER[1]).items()}
        unties = unties_head(on_meta(config_text(member.config)), directory, shapes)
    except (OSError, SafetensorError, FamilyError) as error:
        raise FamilyError(f"{member.model}: its adapter cannot be merged: {error}") from None
    if not unties:
        return member
    headers = dict(member.headers)
    for head, embeddings in member.architecture.tied.items():
        (source,) = member.sources(embeddings, None)
        headers[saved_name(member.config, head)] = member.headers[source]
    return replace(member, config={**member.config, "tie_word_embeddings": False}, headers=headers)


def _misfits(member: Member) -> Iterator[str]:
    """Yields the first tensor of the config's model that the checkpoint lacks or has in another shape."""
    for name, shape, index in member.tensors():
        sources = member.sources(name, index)
        if len(sources) == 1:
            if member.headers[sources[0]].shape != shape:
                stored = list(member.headers[sources[0]].shape)
                yield f"tensor {name} has the shape {stored}, by config.json it should have {list(shape)}"
                return
        elif not can_convert(str(member.config["model_type"]), sources, name):
            yield f"the checkpoint has no tensor {name}"
            return  # the first is enough to tell
