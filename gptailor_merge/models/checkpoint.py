"""What a recipe calls a model, where its files are, and which tensors they hold.

A model is a local directory, or a Hub id with an optional revision (`org/name@revision`), with or
without a LoRA adapter behind a plus (`model+adapter`), as in mergekit. No weight is loaded here
but those of a LoRA adapter and its model, when the merged directory is first asked for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
)
from safetensors import SafetensorError, safe_open

from gptailor_merge.errors import FamilyError
from gptailor_merge.methods.conversion import merge_adapter

_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "*.txt"]


INDEX = "model.safetensors.index.json"


_ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class ModelId:
    """A model as a recipe names it.

    Attributes:
        text: the whole name.
        path: the directory, or the Hub id with its revision, without an adapter.
        is_local: whether all that it names is on this machine.
        adapter: the LoRA adapter that is merged into it, if there is one.
    """

    text: str
    path: str
    is_local: bool
    adapter: ModelId | None = None

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """An existing path is local, whatever characters are in it; so is what looks like a path."""
        if not Path(text).exists() and text.count("+") == 1:
            model, adapter = (cls.parse(part) for part in text.split("+"))
            return cls(text, model.path, model.is_local and adapter.is_local, adapter)
        looks_like_path = text.startswith(("/", "./", "../", "~")) or text.split("@")[0].count("/") > 1
        return cls(text, text, Path(text).exists() or looks_like_path)

    @property
    def model(self) -> ModelId:
        """The model without its adapter."""
        return ModelId.parse(self.path) if self.adapter else self

    @property
    def repo(self) -> str:
        """The Hub id without its revision."""
        return self.path.split("@")[0]

    @property
    def revision(self) -> str | None:
        """The revision behind the @, if there is one."""
        return self.path.split("@")[1] if "@" in self.path else None


@dataclass(frozen=True)
class Header:
    """Of one tensor in a safetensors file: dtype ("BF16"), shape, and the file it is in."""

    dtype: str
    shape: tuple[int, ...]
    file: str


def config_on_disk(model: ModelId) -> Path | None:
    """The config.json of a model, or None where that takes the network."""
    if model.model.is_local:
        return Path(model.path) / "config.json"
    try:
        cached = huggingface_hub.try_to_load_from_cache(model.repo, "config.json", revision=model.revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def depth_on_disk(model: str) -> int | None:
    """Layers of a model whose config is on this machine; None where that takes the network."""
    config = config_on_disk(ModelId.parse(model))
    if config is None:
        return None
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(model: ModelId) -> tuple[Path, dict[str, Header]]:
    """(config.json, headers) of a model. With an adapter, the model's without: it has the same.

    Raises:
        FamilyError: a model or an adapter that is not there or cannot be read.
    """
    if model.adapter is not None and model.adapter.is_local:
        _check_adapter(model.text, Path(model.adapter.path))
    if model.model.is_local:
        return _read_local(model.model)
    return _read_hub(model.model)


def directory_of(model: ModelId) -> Path:
    """The directory with the weights; downloads a Hub model, merges an adapter.

    Raises:
        FamilyError: a model that cannot be downloaded, an adapter that cannot be merged.
    """
    if model.adapter is not None:
        return _merged(model)
    if model.is_local:
        return Path(model.path)
    return _download(model, _FILES)


def headers_in(directory: Path) -> dict[str, Header]:
    """The headers of all tensors in a model directory, sharded or not."""
    files = sorted(directory.glob("*.safetensors"))
    index = directory / INDEX
    if index.exists():
        try:
            files = sorted({directory / f for f in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError):
            raise FamilyError(f"{index}: cannot be read as an index of shards") from None
    if not files:
        raise FamilyError(f"{directory}: no *.safetensors file; other formats are not read")
    headers: dict[str, Header] = {}
    for file in files:
        try:
            headers |= headers_of(file)
        except (OSError, SafetensorError) as error:
            raise FamilyError(f"{file}: cannot be read: {error}") from None
    return headers


def headers_of(file: Path) -> dict[str, Header]:
    """The headers of the tensors in one safetensors file.

    Raises:
        OSError, SafetensorError: a file that cannot be read.
    """
    with safe_open(file, "pt") as tensors:
        views = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not iterable itself
        return {
            name: Header(view.get_dtype(), tuple(view.get_shape()), file.name) for name, view in views.items()
        }


def _read_local(model: ModelId) -> tuple[Path, dict[str, Header]]:
    directory = Path(model.path)
    if not directory.is_dir():
        raise FamilyError(f"{model.path}: no such directory")
    return directory / "config.json", headers_in(directory)


def _read_hub(model: ModelId) -> tuple[Path, dict[str, Header]]:
    """Config and headers of a Hub model: from the cache if it is there, else ranged reads."""
    try:
        cached = huggingface_hub.snapshot_download(
            model.repo, revision=model.revision, allow_patterns=_FILES, local_files_only=True
        )
        if any(Path(cached).glob("*.safetensors")):
            return Path(cached) / "config.json", headers_in(Path(cached))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        config = huggingface_hub.hf_hub_download(model.repo, "config.json", revision=model.revision)
        metadata = huggingface_hub.get_safetensors_metadata(model.repo, revision=model.revision)
    except HFValidationError:
        raise FamilyError(
            f"{model.path}: neither a directory here nor a Hub id like org/name or org/name@revision"
        ) from None
    except NotASafetensorsRepoError:
        raise FamilyError(
            f"{model.path}: has no safetensors file on the Hub, and other formats are not read; "
            "look for a revision that has, and name it org/name@revision"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FamilyError(f"{model.path}: cannot be read from the Hub: {error}") from None
    headers = {
        name: Header(info.dtype, tuple(info.shape), file)
        for file, part in metadata.files_metadata.items()
        for name, info in part.tensors.items()
    }
    return Path(config), headers


def _download(model: ModelId, files: list[str]) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(model.repo, revision=model.revision, allow_patterns=files)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise FamilyError(f"{model.path}: cannot be downloaded: {error}") from None


def _check_adapter(name: str, directory: Path) -> None:
    for file in ("adapter_config.json", _ADAPTER):
        if not (directory / file).exists():
            raise FamilyError(f"{name}: {directory} holds no {file}; expected a LoRA adapter of peft")


def _merged(model: ModelId) -> Path:
    """The directory of a model with its adapter merged into it, made once for the same files."""
    assert model.adapter is not None
    base, adapter = directory_of(model.model), Path(model.adapter.path)
    if not model.adapter.is_local:
        adapter = _download(model.adapter, ["adapter_config.json", _ADAPTER])
    _check_adapter(model.text, adapter)
    merged = Path(constants.HF_HOME) / "gptailor" / "adapters" / _content_digest(base, adapter)
    if merged.exists():
        return merged
    merged.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=merged.parent, prefix=".") as beside:
        try:
            made = merge_adapter(base, adapter, Path(beside))
        except Exception as error:
            raise FamilyError(f"{model.text}: the adapter cannot be merged: {error}") from error
        for file in base.iterdir():
            # The tokenizer and the like, which merging leaves out.
            is_weights = ".safetensors" in file.name or file.suffix in (".bin", ".pt", ".pth")
            if file.is_file() and not is_weights and not (made / file.name).exists():
                shutil.copy(file, made / file.name)
        try:
            made.rename(merged)
        except OSError:
            if not merged.exists():  # else another process was faster
                raise
    return merged


def _content_digest(*directories: Path) -> str:
    """Changes when a file in one of the directories is replaced."""
    stamps = [
        [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
        for directory in directories
        for file in sorted(directory.glob("*"))
        if file.suffix in (".safetensors", ".json")
    ]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
