"""Short digests: the first 16 hex digits of SHA-256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_CHUNK = 1 << 20


def digest_of_bytes(content: bytes) -> str:
    """Returns the digest of a file's content."""
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of_file(file: Path) -> str:
    """Returns the digest of a file's content, which may be larger than the memory."""
    content = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            content.update(chunk)
    return content.hexdigest()[:16]


def digest(value: object) -> str:
    """Returns the digest of a value that JSON can hold.

    >>> digest({"name": "kl", "tokens": 4096})
    'cc302434efdae593'
    """
    return digest_of_bytes(json.dumps(value).encode())
