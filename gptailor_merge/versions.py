"""The versions of everything that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

from gptailor_merge.host.names_and_commands import LIBRARY

VERSIONED = ("gptailor-merge", LIBRARY, "torch", "transformers", "nevergrad", "numpy", "lm-eval")
"""Libraries that a result depends on."""


def environment() -> dict[str, str]:
    """Returns Python and each library -> its version."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}}
