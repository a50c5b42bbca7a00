"""Examines a model directory: runs every check and reports what each of them found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptailor_merge.checking import gguf_conversion
from gptailor_merge.checking.config_file import ConfigFile, check_config, check_dtypes, unloadable
from gptailor_merge.checking.finding import Finding, not_tried
from gptailor_merge.checking.inference import check_inference
from gptailor_merge.checking.llama_cpp import check_llama_cpp
from gptailor_merge.checking.tokenizer import check_chat_template, check_special_tokens, check_tokenizer
from gptailor_merge.checking.weight_files import StoredWeights, check_files, check_values
from gptailor_merge.models.nesting import loaded_text_of

_REFUSED = "transformers refuses config.json"


@dataclass(frozen=True)
class ModelTotals:
    """The size of a model, by the headers of its files.

    Attributes:
        embeddings: parameters of the matrices outside the layers; included in `parameters`.
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
    def of(cls, weights: StoredWeights) -> ModelTotals:
        """Adds up the headers that were read."""
        layers = weights.layers
        return cls(
            layers=len(layers),
            parameters=weights.parameters,
            embeddings=weights.embeddings,
            smallest_layer=min(layers.values(), default=0),
            largest_layer=max(layers.values(), default=0),
            dtypes=weights.dtypes,
        )


@dataclass(frozen=True)
class SoundnessReport:
    """All findings on one model directory."""

    directory: Path
    totals: ModelTotals
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """True where no check failed; warnings are allowed."""
        return all(finding.verdict != "fail" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor check --json` prints."""
        return {
            "directory": str(self.directory),
            "sound": self.sound,
            "totals": vars(self.totals),
            "findings": [vars(finding) for finding in self.findings],
        }


def examine(directory: Path, *, gguf: bool = False) -> SoundnessReport:
    """Checks a model directory from every side, on the CPU.

    Checks that depend on something that failed are not tried, and warn so.

    Args:
        gguf: also convert the model with llama.cpp's converter.

    Raises:
        FamilyError: this is no model directory.
        ConfigError: `gguf` is asked for, and the converter or the package that reads its file is missing.
    """
    config = ConfigFile.read(directory)
    converter = gguf_conversion.find_converter() if gguf else []
    if gguf:
        gguf_conversion.require_gguf()
    weights = StoredWeights.read(directory)
    loads = False
    rows = config.number("vocab_size")
    values = check_values(weights)
    if config.loaded is None:  # nothing of transformers can be tried; its tokenizers read the config, too
        tokenizer = None
        running = not_tried(_REFUSED, "reload", "forward", "generation")
        (tokens,) = not_tried(_REFUSED, "tokenizer")
        (llama_cpp,) = not_tried(_REFUSED, "llama.cpp")
    else:
        tokens, tokenizer = check_tokenizer(directory, rows)
        if not weights.readable:
            running = [Finding("reload", "fail", "the weight files cannot be read")]
            running += not_tried("the model does not load", "forward", "generation")
        elif refusal := unloadable(config, weights):
            running = not_tried(refusal, "reload", "forward", "generation")
        else:
            loads = True
            weights = weights.of_model(config.loaded.to_dict())
            running = check_inference(directory, tokenizer, finite=values.verdict == "ok")
        llama_cpp = check_llama_cpp(loaded_text_of(config.loaded).to_dict(), config.raw.get("model_type"))
    findings = [
        check_files(weights),
        check_config(config, weights, loads=loads),
        values,
        check_dtypes(config, weights),
        *running,
        tokens,
        check_special_tokens(directory, config.raw, rows),
        check_chat_template(tokenizer),
        llama_cpp,
    ]
    if gguf and config.loaded is None:
        findings += not_tried(_REFUSED, "gguf")
    elif gguf:
        findings.append(gguf_conversion.check_conversion(directory, converter, config.depths or (0,)))
    return SoundnessReport(directory, ModelTotals.of(weights), tuple(findings))
