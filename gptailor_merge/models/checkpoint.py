"""Reads what a recipe's name of a model stands for: its config, and the headers of its tensors.

A model is a local directory, or a Hub id with an optional revision (`org/name@revision`), with or
without a LoRA adapter after a plus (`model+adapter`), as in mergekit. No weights are loaded.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
)
from safetensors import SafetensorError, safe_open

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.chosen_weights import ADAPTER, ChosenWeights, choose
from gptailor_merge.models.configs import CONFIG
from gptailor_merge.models.depth import DEPTH
from gptailor_merge.models.nesting import text_of
from gptailor_merge.models.stranger_files import check_entries, read_object

LARGEST_HEADER = 16 * 1024 * 1024
"""Bytes. A file with 100,000 tensors, more than any model has in one, needs about half of it."""


MOST_TENSORS = 200_000
"""The largest number of tensors of a model that is believed."""


@dataclass(frozen=True)
class ModelId:
    """A model as a recipe names it.

    Attributes:
        text: the whole name.
        path: the directory, or the Hub id with its revision; without an adapter.
        is_local: True if model and adapter are named as directories on this machine.
        adapter: the LoRA adapter that is merged into the model, or None.
    """

    text: str
    path: str
    is_local: bool
    adapter: ModelId | None = None

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """Reads a name; one that exists as a path, or looks like one, is local.

        >>> model = ModelId.parse("org/name@main+org/adapter")
        >>> model.path, model.adapter.path, model.repo, model.revision
        ('org/name@main', 'org/adapter', 'org/name', 'main')
        """
        # os.path, unlike Path, says of a name that no file can have that there is no such file.
        if not os.path.exists(text) and text.count("+") == 1:
            model, adapter = (cls.parse(part) for part in text.split("+"))
            return cls(text, model.path, model.is_local and adapter.is_local, adapter)
        looks_like_path = text.startswith(("/", "./", "../", "~")) or text.split("@")[0].count("/") > 1
        return cls(text, text, os.path.exists(text) or looks_like_path)

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
        """The revision after the @, or None."""
        return self.path.split("@")[1] if "@" in self.path else None


@dataclass(frozen=True)
class Header:
    """The header of one tensor in a safetensors file.

    Attributes:
        dtype: as safetensors writes it, e.g. "BF16".
        file: the name of the file that holds the tensor, inside its directory.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str


def config_on_disk(model: ModelId) -> Path | None:
    """Returns a model's config.json, or None if the network is needed to read it."""
    if model.model.is_local:
        return Path(model.path) / CONFIG
    try:
        cached = huggingface_hub.try_to_load_from_cache(model.repo, CONFIG, revision=model.revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def depth_on_disk(model: str) -> int | None:
    """Returns a model's number of layers, or None if its config is not on this machine."""
    config = config_on_disk(ModelId.parse(model))
    if config is None:
        return None
    try:
        depth = text_of(read_object(config)).get(DEPTH)
    except (OSError, FamilyError):
        return None
    return depth if isinstance(depth, int) else None


def depth_of(model: str) -> int | None:
    """Returns a model's number of layers, or None if neither this machine nor the Hub tells its config."""
    parsed = ModelId.parse(model).model
    if not parsed.is_local and config_on_disk(parsed) is None:
        try:
            huggingface_hub.hf_hub_download(parsed.repo, "config.json", revision=parsed.revision)
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError):
            return None
    return depth_on_disk(model)


def read(model: ModelId) -> tuple[Path, dict[str, Header]]:
    """Returns (config.json, headers) of a model; an adapter changes neither.

    Raises:
        FamilyError: the model or its adapter is absent or cannot be read.
    """
    if model.adapter is not None and model.adapter.is_local:
        check_adapter(model.text, Path(model.adapter.path))
    if model.model.is_local:
        return _read_local(model.model)
    return _read_hub(model.model)


def headers_in(directory: Path, chosen: ChosenWeights | None = None) -> dict[str, Header]:
    """Returns the headers of all tensors that transformers finds in a model directory, sharded or not.

    Args:
        chosen: the directory's weight files, where the caller knows them.

    Raises:
        FamilyError: the directory holds no weights, see chosen_weights.choose, or a file cannot be read.
    """
    headers: dict[str, Header] = {}
    for name in (chosen or choose(directory)).files:
        try:
            headers |= headers_of(directory / name, name)
        except (OSError, SafetensorError) as error:
            raise FamilyError(f"{directory / name}: cannot be read: {error}") from None
        if len(headers) > MOST_TENSORS:
            raise FamilyError(f"{directory / name}: no model has more than {MOST_TENSORS:,} tensors")
    return headers


def headers_of(file: Path, name: str | None = None) -> dict[str, Header]:
    """Returns the headers of the tensors in one safetensors file.

    Args:
        name: what the headers call the file; default its name.

    Raises:
        OSError, SafetensorError: the file cannot be read, or has an absurd header.
    """
    _check_length(file)
    with safe_open(file, "pt") as tensors:
        views = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not iterable itself
    return {
        tensor: Header(view.get_dtype(), tuple(view.get_shape()), name or file.name)
        for tensor, view in views.items()
    }


def _check_length(file: Path) -> None:
    """Raises a SafetensorError if parsing the header of a file would take long, or reading it would wait."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise SafetensorError("expected a regular file")
        length = int.from_bytes(stream.read(8), "little")
    if length > LARGEST_HEADER:
        raise SafetensorError(f"its header has {length:,} bytes; none needs more than {LARGEST_HEADER:,}")


def _read_local(model: ModelId) -> tuple[Path, dict[str, Header]]:
    directory = Path(model.path)
    if not directory.is_dir():
        raise FamilyError(f"{model.path}: no such directory")
    return directory / CONFIG, headers_in(directory)


def _read_hub(model: ModelId) -> tuple[Path, dict[str, Header]]:
    """Returns config and headers of a Hub model, from the cache or by reading only the headers."""
    if (cached := _cached(model)) is not None:
        return cached / CONFIG, headers_in(cached)
    try:
        config = huggingface_hub.hf_hub_download(model.repo, CONFIG, revision=model.revision)
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


def is_on_disk(model: ModelId) -> bool:
    """Tells whether a model's weights are on this machine, without an adapter that it may have."""
    return model.model.is_local or _cached(model.model) is not None


def _cached(model: ModelId) -> Path | None:
    """Returns the directory of a Hub model in the cache, or None if it is not wholly there."""
    try:
        snapshot = Path(
            huggingface_hub.snapshot_download(model.repo, revision=model.revision, local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return snapshot if is_complete(snapshot) else None


def is_bare_adapter(model: ModelId) -> bool:
    """Tells whether a name is that of an adapter without a model.

    Raises:
        FamilyError: it is on the Hub, and neither the Hub nor the cache can be read.
    """
    if model.adapter is not None:
        return False
    if model.is_local:
        directory = Path(model.path)
        return (directory / ADAPTER[0]).is_file() and not (directory / CONFIG).exists()
    return not _hub_has(model, CONFIG) and _hub_has(model, ADAPTER[0])


def _hub_has(model: ModelId, file: str) -> bool:
    try:
        huggingface_hub.hf_hub_download(model.repo, file, revision=model.revision)
    except LocalEntryNotFoundError as error:
        raise FamilyError(f"{model.path}: cannot be read from the Hub: {error}") from None
    except (HfHubHTTPError, HFValidationError, OSError):
        return False
    return True


def is_complete(snapshot: Path) -> bool:
    """Tells whether a directory of the Hub's cache holds config and weights of its model."""
    if not (snapshot / CONFIG).exists():
        return False
    try:
        choose(snapshot)
    except FamilyError:
        return False
    return True


def check_adapter(name: str, directory: Path) -> None:
    """Raises a FamilyError if a directory holds no LoRA adapter.

    Args:
        name: the whole name of the model that has the adapter.
    """
    if directory.is_dir():
        check_entries(directory)
    for file in ADAPTER:
        if not (directory / file).exists():
            raise FamilyError(f"{name}: {directory} holds no {file}; expected a LoRA adapter of peft")
