"""Short digests of documents and of files."""

from __future__ import annotations

import hashlib
import json


def digest_of(content: bytes) -> str:
    """16 hex digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def digest(value: object) -> str:
    """Short, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
