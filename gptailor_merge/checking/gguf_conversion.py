"""Converts a model to GGUF with llama.cpp's converter, and reads the result back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gptailor_merge.checking.finding import Finding
from gptailor_merge.errors import ConfigError, MergeFailedError

SCRIPT = "convert_hf_to_gguf.py"
"""The converter in llama.cpp's repository."""


COMMAND = "llama-convert-hf-to-gguf"
"""The same converter, as llama.cpp's Python package installs it."""


def find_converter() -> list[str]:
    """Returns the command that converts a model.

    $LLAMA_CPP comes first, then PATH, then an installed module.

    Raises:
        ConfigError: no converter is there; the message says where it was looked for.
    """
    root = os.environ.get("LLAMA_CPP")
    if root:
        scripts = [path for path in (Path(root), Path(root) / SCRIPT) if path.is_file()]
        if not scripts:
            raise ConfigError(f"LLAMA_CPP is {root}; expected llama.cpp's directory, or its {SCRIPT}")
        return _command(scripts[0])
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
    """Raises a ConfigError where the package that reads GGUF files is not installed."""
    try:
        import gguf  # noqa: F401 - asks only whether it is there
    except ImportError:
        raise ConfigError("--gguf needs the package gguf; pip install 'gptailor-merge[gguf]'") from None


def converted_blocks(directory: Path, converter: list[str]) -> int:
    """Converts a model into a temporary directory and returns the number of layers that the GGUF file names.

    Raises:
        MergeFailedError: the converter failed, or its file has no block count.
    """
    from gguf import GGUFReader

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "model.gguf"
        # The converter's messages are long, and of interest only where it fails.
        done = subprocess.run(
            [*converter, str(directory.resolve()), "--outfile", str(out), "--outtype", "auto"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not out.is_file():
            message = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise MergeFailedError(f"{Path(converter[-1]).name} exits with {done.returncode}: {message}")
        try:
            fields = GGUFReader(out).fields
            architecture = fields["general.architecture"].contents()
            return int(fields[f"{architecture}.block_count"].contents())
        except (KeyError, ValueError, IndexError) as error:
            raise MergeFailedError(f"the converted file cannot be read: {error!r}") from None


def check_conversion(directory: Path, converter: list[str], depths: Sequence[int]) -> Finding:
    """Checks that a model converts, and that the converted file has its layers.

    Args:
        converter: the command, see `find_converter`.
        depths: the numbers of layers that are right; the first is num_hidden_layers.
    """
    try:
        blocks = converted_blocks(directory, converter)
    except MergeFailedError as error:
        return Finding("gguf", "fail", str(error))
    if blocks not in depths:
        sentence = f"the converted file says {blocks} layers, num_hidden_layers is {depths[0]}"
        return Finding("gguf", "fail", sentence)
    return Finding("gguf", "ok", f"llama.cpp's converter writes {blocks} layers")


def _command(script: Path) -> list[str]:
    return [sys.executable, str(script)] if script.suffix == ".py" else [str(script)]
