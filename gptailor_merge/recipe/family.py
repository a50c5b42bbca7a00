"""A family: names, configs and tensor headers of its members, and whether they fit together.

Reads config.json and the headers of the safetensors files; no weight is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from gptailor_merge.errors import FamilyError, Problem
from gptailor_merge.recipe.depth import per_layer_keys
from gptailor_merge.recipe.operations import Plan
from gptailor_merge.recipe.recipe import Recipe

BASE_NAME = "base"
_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "*.txt"]
_FORM = ("architectures", "model_type", "num_hidden_layers", "tie_word_embeddings")
_BEHAVIOUR = ("rope_parameters", "rms_norm_eps", "hidden_act", "sliding_window")
"""Config values that a layer was trained with and that the base's config overrides."""

_BUFFERS = ("rotary_emb.inv_freq", "masked_bias", "attention.bias")
"""Buffers that old checkpoints carry and that no model reads any more."""


@dataclass(frozen=True)
class ModelId:
    """A local directory, or a Hub id with an optional revision (`org/name@revision`)."""

    text: str
    is_local: bool

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """An existing path is local, whatever characters are in it; so is what looks like a path."""
        looks_like_path = text.startswith(("/", "./", "../", "~")) or text.count("/") > 1
        return cls(text, Path(text).exists() or looks_like_path)

    @property
    def repo(self) -> str:
        """The Hub id without its revision."""
        return self.text.split("@")[0]

    @property
    def revision(self) -> str | None:
        """The revision behind the @, if there is one."""
        return self.text.split("@")[1] if "@" in self.text else None


@dataclass(frozen=True)
class Header:
    """Of one tensor in a safetensors file: dtype ("BF16"), shape, and the file it is in."""

    dtype: str
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        name: "base", or the variant's name.
        model: directory or Hub id, as in recipes.
        config: the content of config.json.
        headers: tensor name -> header.
    """

    name: str
    model: str
    config: Mapping[str, Any]
    headers: Mapping[str, Header]

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.config["num_hidden_layers"])

    @cached_property
    def layers_prefix(self) -> str:
        """What stands before the layer index in tensor names, e.g. `model.layers.`."""
        prefixes = {name[: name.index(".0.") + 1] for name in self.headers if ".0." in name}
        found = [p for p in prefixes if any(n.startswith(f"{p}{self.depth - 1}.") for n in self.headers)]
        if not found:
            raise FamilyError(f"{self.model}: no tensors named like layers 0 to {self.depth - 1}")
        return min(found, key=len)

    def layer_tensors(self, index: int) -> dict[str, str]:
        """name inside the layer -> full name, for one layer."""
        prefix = f"{self.layers_prefix}{index}."
        return {name.removeprefix(prefix): name for name in self.headers if name.startswith(prefix)}

    @cached_property
    def outer_tensors(self) -> tuple[str, ...]:
        """Names of the tensors outside the layers: embeddings, final norm, head."""
        return tuple(name for name in self.headers if not name.startswith(self.layers_prefix))

    @cached_property
    def directory(self) -> Path:
        """The directory with the weights; downloads a Hub model when first asked."""
        model = ModelId.parse(self.model)
        if model.is_local:
            return Path(self.model)
        try:
            return Path(
                huggingface_hub.snapshot_download(model.repo, revision=model.revision, allow_patterns=_FILES)
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise FamilyError(f"{self.model}: cannot be downloaded: {error}") from None


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

    def parameters(self, layers: int) -> int:
        """Number of parameters of a pruned model of so many layers, by the base's headers."""
        return self.outer_parameters + layers * self.layer_parameters

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of one layer: of layer 0, as all layers of an architecture that we take."""
        return sum(_count(self.base.headers[name]) for name in self.base.layer_tensors(0).values())

    @cached_property
    def outer_parameters(self) -> int:
        """Parameters outside the layers."""
        return sum(_count(self.base.headers[name]) for name in self.base.outer_tensors)

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
        """What is wrong with where a plan takes embeddings and head from.

        Embeddings and head must fit each other and the base's config, whose tokenizer the model gets.
        """
        found = []
        size = self._vocabulary(self.base)
        for key, (models, _) in (("embeddings", plan.embeddings), ("head", plan.head)):
            for model in models:
                member = self.by_model(model)
                if self._vocabulary(member) != size:
                    found.append(
                        Problem(
                            ("parameters", key),
                            f"{model} has a vocabulary of {self._vocabulary(member)}, the base of {size}; "
                            "only members with the base's vocabulary can give it",
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


def depth_on_disk(model: str) -> int | None:
    """Layers of a model whose config is on this machine; None where that takes the network."""
    config = _config_on_disk(ModelId.parse(model))
    if config is None:
        return None
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _config_on_disk(model: ModelId) -> Path | None:
    if model.is_local:
        return Path(model.text) / "config.json"
    try:
        cached = huggingface_hub.try_to_load_from_cache(model.repo, "config.json", revision=model.revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _count(header: Header) -> int:
    total = 1
    for size in header.shape:
        total *= size
    return total


def _read(name: str, model: str) -> Member:
    parsed = ModelId.parse(model)
    config_file, headers = _read_local(parsed) if parsed.is_local else _read_hub(parsed)
    if not config_file.exists():
        raise FamilyError(f"{model}: no config.json; expected a transformers model directory")
    try:
        # transformers fills in the defaults of the model type, as it will when it loads the model
        config = AutoConfig.from_pretrained(config_file.parent, trust_remote_code=False).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise FamilyError(f"{config_file}: cannot be read: {error}") from None
    for key in ("num_hidden_layers", "vocab_size"):
        if not isinstance(config.get(key), int):
            raise FamilyError(f"{config_file}: {key} is missing; only decoder-only text models are supported")
    depends = per_layer_keys(config)
    if depends:
        raise FamilyError(
            f"{model}: {config.get('model_type')} is not supported yet: its config says {depends[0]} "
            "layer by layer, which removing layers would make wrong"
        )
    return Member(name, model, config, headers)


def _read_local(model: ModelId) -> tuple[Path, dict[str, Header]]:
    directory = Path(model.text)
    if not directory.is_dir():
        raise FamilyError(f"{model.text}: no such directory")
    files = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            files = sorted({directory / f for f in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError):
            raise FamilyError(f"{index}: cannot be read as an index of shards") from None
    if not files:
        raise FamilyError(f"{model.text}: no *.safetensors file; other formats are not read")
    headers = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for tensor in tensors.keys():  # noqa: SIM118 - not iterable itself
                    view = tensors.get_slice(tensor)
                    headers[tensor] = Header(view.get_dtype(), tuple(view.get_shape()), file.name)
        except (OSError, SafetensorError) as error:
            raise FamilyError(f"{file}: cannot be read: {error}") from None
    return directory / "config.json", headers


def _read_hub(model: ModelId) -> tuple[Path, dict[str, Header]]:
    """Config and headers of a Hub model: from the cache if it is there, else ranged reads."""
    try:
        cached = huggingface_hub.snapshot_download(
            model.repo, revision=model.revision, allow_patterns=_FILES, local_files_only=True
        )
        if any(Path(cached).glob("*.safetensors")):
            return _read_local(ModelId(cached, is_local=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        config = huggingface_hub.hf_hub_download(model.repo, "config.json", revision=model.revision)
        metadata = huggingface_hub.get_safetensors_metadata(model.repo, revision=model.revision)
    except HFValidationError:
        raise FamilyError(
            f"{model.text}: neither a directory here nor a Hub id like org/name or org/name@revision"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FamilyError(f"{model.text}: cannot be read from the Hub: {error}") from None
    headers = {
        name: Header(info.dtype, tuple(info.shape), file)
        for file, part in metadata.files_metadata.items()
        for name, info in part.tensors.items()
    }
    return Path(config), headers


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
