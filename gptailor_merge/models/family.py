"""A family: names, configs and tensor headers of its members, and whether they fit together.

Reads config.json and the headers of the safetensors files; no weight is loaded. What a member is
called, and where its files are, is checkpoint.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from gptailor_merge.errors import FamilyError, Problem
from gptailor_merge.methods.conversion import can_convert
from gptailor_merge.models.architecture import Architecture, Kind
from gptailor_merge.models.checkpoint import Header, ModelId, directory_of, headers_in, read
from gptailor_merge.models.depth import DEPTH, inconsistencies, per_layer_lists
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe

BASE_NAME = "base"


_FORM = ("architectures", "model_type", DEPTH, "tie_word_embeddings")


_BEHAVIOUR = ("rope_parameters", "rms_norm_eps", "hidden_act", "sliding_window")
"""Config values that a layer was trained with and that the base's config overrides."""


_BUFFERS = ("rotary_emb.inv_freq", "masked_bias", "attention.bias")
"""Buffers that old checkpoints carry and that no model reads any more."""


@dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        name: "base", or the variant's name.
        model: as recipes name it.
        config: the content of config.json, with transformers' defaults filled in.
        headers: tensor name -> header, as the checkpoint lays its tensors out.
    """

    name: str
    model: str
    config: Mapping[str, Any]
    headers: Mapping[str, Header]

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.config[DEPTH])

    @cached_property
    def architecture(self) -> Architecture:
        """Its layers and tensors, as transformers lays them out."""
        return Architecture.of(self.config)

    @cached_property
    def dtypes(self) -> frozenset[str]:
        """The dtypes that its tensors are stored in, as safetensors calls them, e.g. "BF16"."""
        return frozenset(header.dtype for header in self.headers.values())

    @cached_property
    def layers_prefix(self) -> str:
        """What stands before the layer index in the checkpoint's names, e.g. `model.layers.`."""
        prefixes = {name[: name.index(".0.") + 1] for name in self.headers if ".0." in name}
        found = [p for p in prefixes if any(n.startswith(f"{p}{self.depth - 1}.") for n in self.headers)]
        if not found:
            raise FamilyError(f"{self.model}: no tensors named like layers 0 to {self.depth - 1}")
        return min(found, key=len)

    def layer_tensors(self, index: int) -> dict[str, str]:
        """name inside the layer -> full name, for one layer of the checkpoint."""
        prefix = f"{self.layers_prefix}{index}."
        return {name.removeprefix(prefix): name for name in self.headers if name.startswith(prefix)}

    @cached_property
    def outer_tensors(self) -> tuple[str, ...]:
        """Names of the checkpoint's tensors outside the layers: embeddings, final norm, head."""
        return tuple(name for name in self.headers if not name.startswith(self.layers_prefix))

    def sources(self, name: str, layer: int | None) -> tuple[str, ...]:
        """The checkpoint's tensors that a tensor of the model may be made from.

        One alone is it; else those of its layer, of which transformers' conversions pick, e.g.
        single experts that become one tensor.
        """
        for own in (name, self.architecture.stored.get(name, name)):
            if own in self.headers:
                return (own,)
        return self.outer_tensors if layer is None else tuple(self.layer_tensors(layer).values())

    @cached_property
    def directory(self) -> Path:
        """The directory with the weights; downloads a Hub model, merges an adapter, when first asked."""
        return directory_of(ModelId.parse(self.model))

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """tensor name -> the file that holds it."""
        return {name: self.directory / header.file for name, header in headers_in(self.directory).items()}


@dataclass(frozen=True)
class Family:
    """One base model and its variants: same architecture, shapes and depth.

    Attributes:
        members: the base first.
        warnings: what is sound but may surprise, one sentence each.
    """

    members: tuple[Member, ...]
    warnings: tuple[str, ...] = ()

    @property
    def base(self) -> Member:
        """The base model."""
        return self.members[0]

    @property
    def depth(self) -> int:
        """Number of layers of every member."""
        return self.base.depth

    def by_model(self, model: str) -> Member:
        """The member that a recipe names so."""
        return next(member for member in self.members if member.model == model)

    def by_name(self, name: str) -> Member | None:
        """The member of that name, if there is one."""
        return next((member for member in self.members if member.name == name), None)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding matrix."""
        return bool(self.base.config.get("tie_word_embeddings", False))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each layer; a layer can take the place of one of the same kind."""
        return self.base.architecture.kinds

    def parameters(self, layers: Sequence[int]) -> int:
        """Number of parameters of the pruned model of these layers."""
        return self.outer_parameters + sum(self.layer_sizes[layer] for layer in layers)

    @cached_property
    def layer_sizes(self) -> tuple[int, ...]:
        """Parameters of each layer."""
        return tuple(sum(map(math.prod, layer.values())) for layer in self.base.architecture.layers)

    @cached_property
    def outer_parameters(self) -> int:
        """Parameters outside the layers."""
        outer = self.base.architecture
        return sum(map(math.prod, (*outer.before.values(), *outer.after.values())))

    @classmethod
    def load(cls, base: str, variants: Mapping[str, str]) -> Family:
        """Read and compare the members.

        Args:
            base: directory or Hub id (`id@revision`) of the base.
            variants: name -> directory or Hub id.

        Raises:
            FamilyError: a member that cannot be read or does not fit; says which tensor of which.
        """
        first = _read(BASE_NAME, base)
        members = [first, *(_read(name, model) for name, model in variants.items())]
        warnings: list[str] = []
        problems: list[Problem] = []
        for member in members[1:]:
            found = _differences(first, member)
            problems += [Problem((), text) for text in found]
            warnings += _surprises(first, member)
        if problems:
            raise FamilyError(problems)
        return cls(tuple(members), tuple(warnings))

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Family:
        """The family that a recipe takes its layers from."""
        return cls.load(recipe.base_model, {m: m for m in recipe.models if m != recipe.base_model})

    def component_problems(self, plan: Plan) -> list[Problem]:
        """What is wrong with where a plan takes embeddings, head and tokenizer from; they must fit."""
        found = []
        tokenizer = self.by_model(plan.tokenizer)
        size = self._vocabulary(tokenizer)
        for key, (models, _) in (("embeddings", plan.embeddings), ("head", plan.head)):
            for model in models:
                member = self.by_model(model)
                if self._vocabulary(member) != size:
                    found.append(
                        Problem(
                            ("parameters", key),
                            f"{model} has a vocabulary of {self._vocabulary(member)}, and {tokenizer.model}, "
                            f"whose tokenizer the model gets, one of {size}; embeddings, head and tokenizer "
                            "must come from members with vocabularies of one size",
                        )
                    )
        if self.tied and plan.embeddings != plan.head:
            found.append(
                Problem(
                    ("parameters", "head"),
                    "differs from embeddings, but this architecture's head is its embedding matrix "
                    "(tie_word_embeddings); give both the same value",
                )
            )
        return found

    def _vocabulary(self, member: Member) -> int:
        return int(member.config["vocab_size"])


def _read(name: str, model: str) -> Member:
    config_file, headers = read(ModelId.parse(model))
    if not config_file.exists():
        raise FamilyError(f"{model}: no config.json; expected a transformers model directory")
    try:
        # transformers fills in the defaults of the model type, as it will when it loads the model
        config = AutoConfig.from_pretrained(config_file.parent, trust_remote_code=False).to_dict()
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise FamilyError(f"{config_file}: cannot be read: {' '.join(str(error).split())}") from None
    for key in (DEPTH, "vocab_size"):
        if not isinstance(config.get(key), int):
            text = f"{key} is missing; expected a text model that is a list of layers"
            raise FamilyError(f"{config_file}: {text}")
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise FamilyError(
            f"{model}: quantised ({method}), and quantised tensors cannot be merged; "
            "take the model in 16 or 32 bits"
        )
    if contradictions := inconsistencies(config):
        raise FamilyError([Problem((), f"{config_file}: {text}") for text in contradictions])
    member = Member(name, model, config, headers)
    try:
        problems = [Problem((), f"{model}: {text}") for text in _lacks(member)]
    except FamilyError as error:
        raise FamilyError(f"{model}: {config.get('model_type')} is not supported: {error}") from None
    if problems:
        raise FamilyError(problems)
    return member


def _lacks(member: Member) -> Iterator[str]:
    """What the config's model has and the checkpoint does not, or has in another shape."""
    architecture = member.architecture
    wanted = [
        (name, shape, None) for name, shape in (*architecture.before.items(), *architecture.after.items())
    ]
    layers = [
        (f"{architecture.prefix}{index}.{inner}", shape, index)
        for index, layer in enumerate(architecture.layers)
        for inner, shape in layer.items()
    ]
    for name, shape, index in (*wanted, *layers):
        sources = member.sources(name, index)
        if len(sources) == 1:
            if member.headers[sources[0]].shape != shape:
                found = list(member.headers[sources[0]].shape)
                yield f"tensor {name} has the shape {found}, by config.json it should have {list(shape)}"
                return
        elif not can_convert(str(member.config["model_type"]), sources, name):
            yield f"the checkpoint has no tensor {name}"
            return  # one tells the story


def _differences(base: Member, member: Member) -> list[str]:
    """What keeps a variant out of the family."""
    label = f"{member.name} ({member.model})"
    for key in _FORM:
        ours, theirs = base.config.get(key), member.config.get(key)
        if ours != theirs:
            return [f"{label}: {key} is {theirs!r}, the base has {ours!r}; a family shares them"]
    if set(base.outer_tensors) != set(member.outer_tensors) and not base.config.get("tie_word_embeddings"):
        odd = sorted(set(base.outer_tensors) ^ set(member.outer_tensors))
        return [f"{label}: tensor {odd[0]} is in only one of it and the base"]
    lists, theirs_lists = per_layer_lists(base.config), per_layer_lists(member.config)
    for key in sorted({*lists, *theirs_lists}):
        if lists.get(key) != theirs_lists.get(key):
            return [f"{label}: {key} differs from the base's, so its layers are of other kinds"]
    found = []
    for index in range(base.depth):
        ours_in, theirs_in = base.layer_tensors(index), member.layer_tensors(index)
        for inner in sorted(set(ours_in) ^ set(theirs_in)):
            if not inner.endswith(_BUFFERS):
                found.append(f"{label}: tensor {inner} of layer {index} is in only one of it and the base")
        for inner in sorted(set(ours_in) & set(theirs_in)):
            mine, other = base.headers[ours_in[inner]].shape, member.headers[theirs_in[inner]].shape
            if mine != other:
                found.append(
                    f"{label}: tensor {theirs_in[inner]} has the shape {list(other)}, the base's {list(mine)}"
                )
        if found:
            break  # one layer tells the story
    return found


def _surprises(base: Member, member: Member) -> Sequence[str]:
    return [
        f"{member.name} was trained with {key} = {member.config.get(key)!r}; in the pruned model its "
        f"layers run with the base's {base.config.get(key)!r}"
        for key in _BEHAVIOUR
        if base.config.get(key) != member.config.get(key)
    ]
