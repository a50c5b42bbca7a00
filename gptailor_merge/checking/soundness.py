"""Is a directory a sound causal language model? Every way that we know to be wrong is one finding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from gptailor_merge.checking import llama_cpp
from gptailor_merge.checking.finding import Finding, not_tried, reason
from gptailor_merge.checking.generation import running
from gptailor_merge.checking.vocabulary import chat_template, special_tokens, tokenizer
from gptailor_merge.checking.weight_files import Stored
from gptailor_merge.errors import FamilyError, MergeFailedError
from gptailor_merge.models.depth import inconsistencies
from gptailor_merge.models.reload import not_finite

_REFUSED = "transformers refuses config.json"


_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Totals:
    """The size of a model, by the headers of its files.

    Attributes:
        embeddings: the matrices outside the layers; included in `parameters`.
        smallest_layer, largest_layer: parameters of a layer.
        dtypes: file name -> the dtypes in it.
    """

    layers: int
    parameters: int
    embeddings: int
    smallest_layer: int
    largest_layer: int
    dtypes: Mapping[str, list[str]]

    @classmethod
    def of(cls, stored: Stored) -> Totals:
        """The totals of the files that were read."""
        layers = stored.layers
        return cls(
            layers=len(layers),
            parameters=stored.parameters,
            embeddings=stored.embeddings,
            smallest_layer=min(layers.values(), default=0),
            largest_layer=max(layers.values(), default=0),
            dtypes=stored.dtypes,
        )


@dataclass(frozen=True)
class Report:
    """All findings on one model directory."""

    directory: Path
    totals: Totals
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing failed; warnings are allowed."""
        return all(finding.verdict != "fail" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As `gptailor check --json` prints it."""
        return {
            "directory": str(self.directory),
            "sound": self.sound,
            "totals": vars(self.totals),
            "findings": [vars(finding) for finding in self.findings],
        }


def examine(directory: Path, *, gguf: bool = False) -> Report:
    """Look at a model directory from every side, on the CPU.

    What depends on something that failed is not tried, and says so in a warning.

    Args:
        gguf: also convert it with llama.cpp's converter.

    Raises:
        FamilyError: this is no model directory.
        ConfigError: `gguf`, and there is no converter, or nothing to read its file with.
    """
    raw = _read_config(directory)
    converter = llama_cpp.find_converter() if gguf else []
    if gguf:
        llama_cpp.require_gguf()
    stored = Stored.read(directory)
    config, refusal = _load_config(directory)
    rows = _value(config, raw, "vocab_size")
    values = _values(directory, stored)
    words, loaded = not_tried(_REFUSED, "tokenizer")[0], None
    if config is not None:  # AutoTokenizer reads it, too
        words, loaded = tokenizer(directory, rows)
    findings = [
        _files(stored),
        _config(raw, config, refusal, stored),
        values,
        _dtypes(raw, stored),
        *_running(directory, config, loaded, finite=values.verdict == "ok"),
        words,
        special_tokens(directory, raw, rows),
        chat_template(loaded),
        _hazards(config, raw),
    ]
    if gguf:
        findings.append(_conversion(directory, converter, config))
    return Report(directory, Totals.of(stored), tuple(findings))


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise FamilyError(f"{directory}: no such directory; expected a transformers model directory")
    file = directory / "config.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FamilyError(f"{directory}: no config.json; expected a transformers model directory") from None
    except (OSError, ValueError) as error:
        raise FamilyError(f"{file}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise FamilyError(f"{file}: expected an object, found {type(document).__name__}")
    return document


def _load_config(directory: Path) -> tuple[PreTrainedConfig | None, str]:
    """The config with its type's defaults, or why transformers refuses it."""
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True), ""
    except Exception as error:  # its refusals have no common base; each is a finding
        return None, reason(error)


def _value(config: PreTrainedConfig | None, raw: Mapping[str, Any], key: str) -> int | None:
    """A number of the text model's config; of what is written where transformers refuses it."""
    value = raw.get(key) if config is None else getattr(config.get_text_config(), key, None)
    return value if isinstance(value, int) else None


def _files(stored: Stored) -> Finding:
    if stored.errors:
        return Finding("files", "fail", "; ".join((*stored.errors, *stored.remarks)))
    if stored.remarks:
        return Finding("files", "warn", "; ".join(stored.remarks))
    return Finding(
        "files", "ok", f"{len(stored.tensors)} tensors in {len(stored.headers)} safetensors file(s)"
    )


def _config(raw: Mapping[str, Any], config: PreTrainedConfig | None, refusal: str, stored: Stored) -> Finding:
    """Whether config.json says of each layer what there is to say, and of no other."""
    problems = inconsistencies(raw)
    if config is None:
        problems.append(f"transformers refuses it: {refusal}")
    depth = _value(config, raw, "num_hidden_layers")
    found = sorted(stored.layers)
    # Layers for multi-token prediction are stored behind the others and not counted among them.
    extra = _value(config, raw, "num_nextn_predict_layers") or 0
    if depth is None:
        problems.append("num_hidden_layers is missing; expected a text model that is a list of layers")
    elif found not in (list(range(depth)), list(range(depth + extra))):
        problems.append(f"num_hidden_layers is {depth}, the safetensors files hold {_layers(found)}")
    if problems:
        return Finding("config", "fail", "; ".join(problems))
    return Finding("config", "ok", f"{raw.get('model_type')}, {depth} layers, as many as are stored")


def _layers(indices: list[int]) -> str:
    if not indices:
        return "no layers"
    if indices == list(range(len(indices))):
        return f"layers 0 to {len(indices) - 1}"
    return f"layers {', '.join(map(str, indices))}"


def _values(directory: Path, stored: Stored) -> Finding:
    name = not_finite(directory / file for file in stored.headers)
    if name:
        return Finding("values", "fail", f"{name} holds values that are not finite")
    if not stored.headers:
        return Finding("values", "warn", "not tried: no weights can be read")
    return Finding("values", "ok", f"{stored.parameters:,} parameters, all of them finite")


def _dtypes(raw: Mapping[str, Any], stored: Stored) -> Finding:
    """`dtype="auto"` loads in the dtype that config.json names, whatever is stored."""
    counted: dict[str, int] = {}
    for header in stored.tensors.values():
        counted[header.dtype] = counted.get(header.dtype, 0) + 1
    text = ", ".join(f"{count} {dtype}" for dtype, count in sorted(counted.items())) or "no tensors"
    declared = raw.get("dtype", raw.get("torch_dtype"))
    floating = {_NAMES[dtype] for dtype in counted if dtype in _NAMES}
    if "quantization_config" not in raw and declared is not None and floating and declared not in floating:
        return Finding(
            "dtypes",
            "warn",
            f"stored are {text}, config.json has dtype {declared!r} and transformers converts when loading; "
            f"{' or '.join(sorted(floating))} would be right",
        )
    return Finding("dtypes", "ok", f"tensors by dtype: {text}")


def _running(
    directory: Path,
    config: PreTrainedConfig | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    finite: bool,
) -> list[Finding]:
    if config is None:
        return not_tried(_REFUSED, "reload", "forward", "generation")
    return running(directory, tokenizer, finite=finite)


def _hazards(config: PreTrainedConfig | None, raw: Mapping[str, Any]) -> Finding:
    if config is None:
        return not_tried(_REFUSED, "llama.cpp")[0]
    found = llama_cpp.hazards(config.get_text_config().to_dict())
    if found:
        return Finding("llama.cpp", "warn", "; ".join(found))
    return Finding(
        "llama.cpp", "ok", f"nothing that it computes for {raw.get('model_type')} is different here"
    )


def _conversion(directory: Path, converter: list[str], config: PreTrainedConfig | None) -> Finding:
    if config is None:
        return not_tried(_REFUSED, "gguf")[0]
    try:
        blocks = llama_cpp.converted_blocks(directory, converter)
    except MergeFailedError as error:
        return Finding("gguf", "fail", str(error))
    depth = _value(config, {}, "num_hidden_layers") or 0
    extra = _value(config, {}, "num_nextn_predict_layers") or 0
    if blocks not in (depth, depth + extra):
        sentence = f"the converted file says {blocks} layers, num_hidden_layers is {depth}"
        return Finding("gguf", "fail", sentence)
    return Finding("gguf", "ok", f"llama.cpp's converter writes {blocks} layers")
