"""Keeps the state of a fit in a file, from which a fit that was killed goes on to the same result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gptailor_merge.bounded_files import refuse_special
from gptailor_merge.files import sweep, write_beside

INTERVAL = 10.0
"""Seconds between two writings of the state."""


_KEY, _NUMBERS = "fit", "numbers"

_HEADER_BYTES = 2**20
"""Bytes of the file besides the tensors."""


class Checkpoint:
    """The file of a fit's state.

    A file that cannot be read, or that is of another fit, counts as none: the fit begins anew.

    Args:
        file: whoever makes use of the fit removes it.
        key: a digest of all that the fit depends on.
    """

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key
        self._written = time.monotonic()
        sweep(file)

    @property
    def is_due(self) -> bool:
        """True where the state was last written a while ago."""
        return time.monotonic() - self._written >= INTERVAL

    def write(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> None:
        """Writes the state; it is whole or that of before."""
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_beside(self._file, save(content, {_KEY: self._key, _NUMBERS: json.dumps(dict(numbers))}))
        self._written = time.monotonic()

    def read(
        self, like: Mapping[str, torch.Tensor], numbers: Mapping[str, float]
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]] | None:
        """Returns the state, or None where there is none.

        Args:
            like: tensors of the shapes and types that the state has.
            numbers: the names of its numbers, with values of their types.
        """
        try:
            refuse_special(self._file)
            if self._file.stat().st_size > _HEADER_BYTES + sum(tensor.nbytes for tensor in like.values()):
                return None
            with safe_open(self._file, "pt") as opened:
                metadata = opened.metadata() or {}
                if metadata.get(_KEY) != self._key or set(opened.keys()) != set(like):
                    return None
                tensors = {name: opened.get_tensor(name) for name in like}
            known = json.loads(metadata[_NUMBERS])
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        if not isinstance(known, dict) or known.keys() != numbers.keys():
            return None
        if any(type(known[name]) is not type(value) for name, value in numbers.items()):
            return None
        for name, tensor in tensors.items():
            expected = like[name]
            if (tensor.shape, tensor.dtype) != (
                expected.shape,
                expected.dtype,
            ) or not tensor.isfinite().all():
                return None
        return tensors, known
