"""The number of threads that a worker computes with."""

from __future__ import annotations

import os


def threads() -> int:
    """Returns OMP_NUM_THREADS where it is set, or one: workers share the cores of a machine."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else 1
