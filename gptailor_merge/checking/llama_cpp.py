"""What llama.cpp makes of a model: patterns that it computes itself, and its converter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import isclose
from pathlib import Path
from typing import Any

from gptailor_merge.errors import ConfigError, MergeFailedError


@dataclass(frozen=True)
class Pattern:
    """The last layer of each period is of one kind, all others are of another.

    Attributes:
        key: the list in config.json that says the same for transformers.
        last: the entry of the last layer of each period.
    """

    key: str
    period: int
    last: object


# Read in ggml-org/llama.cpp: src/models/{gemma2,gemma3,openai-moe,cohere2,olmo2,smollm3}.cpp, before the
# split into files src/llama-model.cpp, `load_hparams`. All but SmolLM3 call set_swa_pattern(period), which
# makes layer il a sliding one where il % period < period - 1 (src/llama-hparams.cpp). Newer versions first
# look for `attention.sliding_window_pattern` in the GGUF, but only for a number (get_key_or_arr of a
# uint32_t passes arrays over), and convert_hf_to_gguf.py writes none for these (for Olmo3 an array).
# SmolLM3 sets n_no_rope_layer_step = 4 and rotates where (il + 1) % 4 != 0; the GGUF has no key for it.
PATTERNS = {
    "gemma2": Pattern("layer_types", 2, "full_attention"),
    "gemma3_text": Pattern("layer_types", 6, "full_attention"),
    "gpt_oss": Pattern("layer_types", 2, "full_attention"),
    "cohere2": Pattern("layer_types", 4, "full_attention"),
    "olmo3": Pattern("layer_types", 4, "full_attention"),
    "smollm3": Pattern("no_rope_layers", 4, 0),
}
"""Model type -> the pattern that llama.cpp computes from the layer index, whatever config.json says."""


# In the same functions, `switch (hparams.n_layer)`: only at this depth is a Gemma the 27B, whose attention
# is scaled by hidden_size / heads; at any other by head_dim. query_pre_attn_scalar is not converted.
_GEMMA_27B = {"gemma2": 46, "gemma3_text": 62}


# src/models/exaone4.cpp: `if (hparams.n_layer() == 64)` guards the whole sliding window.
_EXAONE4_SLIDING = 64


SCRIPT = "convert_hf_to_gguf.py"
"""The converter in llama.cpp's repository."""


COMMAND = "llama-convert-hf-to-gguf"
"""The same as llama.cpp's Python package installs it."""


def hazards(config: Mapping[str, Any]) -> list[str]:
    """Where llama.cpp would run a model otherwise than transformers does, one sentence each.

    Args:
        config: the text model's config, with the defaults of its type filled in.
    """
    kind = config.get("model_type")
    layers = config.get("num_hidden_layers")
    found = []
    pattern = PATTERNS.get(str(kind))
    entries = config.get(pattern.key) if pattern else None
    if pattern and isinstance(entries, list | tuple):
        wrong = [
            index
            for index, entry in enumerate(entries)
            if (entry == pattern.last) != (index % pattern.period == pattern.period - 1)
        ]
        if wrong:
            found.append(
                f"{pattern.key}: llama.cpp takes every {_ordinal(pattern.period)} layer of {kind} for "
                f"{pattern.last!r} whatever this list says; a GGUF would run layers "
                f"{', '.join(map(str, wrong))} as the wrong kind and answer worse without any error; "
                f"a recipe that removes whole periods of {pattern.period} layers keeps the pattern"
            )
    if kind in _GEMMA_27B:
        by_head = config["head_dim"]
        by_width = config["hidden_size"] // config["num_attention_heads"]
        taken = by_width if layers == _GEMMA_27B[kind] else by_head
        if not isclose(config["query_pre_attn_scalar"], taken):
            found.append(
                f"query_pre_attn_scalar: {config['query_pre_attn_scalar']} here, but for {kind} with "
                f"{layers} layers llama.cpp scales attention by {taken}; it knows the 27B by its "
                f"{_GEMMA_27B[kind]} layers only, so a GGUF would answer worse without any error"
            )
    if kind == "exaone4" and layers != _EXAONE4_SLIDING and "sliding_attention" in config["layer_types"]:
        found.append(
            f"layer_types: llama.cpp gives exaone4 a sliding window only with {_EXAONE4_SLIDING} layers, "
            f"found {layers}; a GGUF would attend to everything in the sliding layers"
        )
    return found


def find_converter() -> list[str]:
    """The command that converts a model: in $LLAMA_CPP, else on PATH, else an installed module.

    Raises:
        ConfigError: there is none; says where it was looked for.
    """
    root = os.environ.get("LLAMA_CPP")
    if root:
        found = [path for path in (Path(root), Path(root) / SCRIPT) if path.is_file()]
        if not found:
            raise ConfigError(f"LLAMA_CPP is {root}; expected llama.cpp's directory, or its {SCRIPT}")
        return _command(found[0])
    for name in (SCRIPT, COMMAND):
        on_path = shutil.which(name)
        if on_path:
            return _command(Path(on_path))
    spec = find_spec(SCRIPT.removesuffix(".py"))
    if spec is not None and spec.origin:
        return _command(Path(spec.origin))
    raise ConfigError(
        f"--gguf needs llama.cpp's converter; LLAMA_CPP is not set, neither {SCRIPT} nor {COMMAND} is on "
        "PATH, and no such module is installed; git clone https://github.com/ggml-org/llama.cpp and set "
        "LLAMA_CPP to it"
    )


def require_gguf() -> None:
    """Raise a ConfigError where the package that reads GGUF files is not installed."""
    try:
        import gguf  # noqa: F401 - only whether it is there
    except ImportError:
        raise ConfigError("--gguf needs the package gguf; pip install 'gptailor-merge[gguf]'") from None


def converted_blocks(directory: Path, converter: list[str]) -> int:
    """Convert a model into a temporary directory; the number of layers that the GGUF file says.

    Raises:
        MergeFailedError: the converter failed, or its file has no block count.
    """
    from gguf import GGUFReader

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "model.gguf"
        # its messages are long and of no interest unless it fails
        done = subprocess.run(
            [*converter, str(directory.resolve()), "--outfile", str(out), "--outtype", "auto"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not out.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise MergeFailedError(f"{Path(converter[-1]).name} exits with {done.returncode}: {said}")
        try:
            fields = GGUFReader(out).fields
            architecture = fields["general.architecture"].contents()
            return int(fields[f"{architecture}.block_count"].contents())
        except (KeyError, ValueError, IndexError) as error:
            raise MergeFailedError(f"the converted file cannot be read: {error!r}") from None


def _command(script: Path) -> list[str]:
    return [sys.executable, str(script)] if script.suffix == ".py" else [str(script)]


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
