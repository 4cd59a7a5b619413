"""What a model is, by its bytes: the same wherever it lies and whenever it was copied."""

from __future__ import annotations

import hashlib
from pathlib import Path

from headrace.errors import InvalidArgumentError

__all__ = ["content_digest"]

# Made of a model, not part of it.
_MADE = frozenset({".plan", ".engine"})
_CHUNK = 1 << 20


def content_digest(path: Path) -> str:
    """Of the file and, for formats whose weights may lie beside (.onnx, .xml), of all files in its
    folder but engines. Hex. Raises InvalidArgumentError for what cannot be read."""
    files = [path]
    if path.suffix in (".onnx", ".xml"):
        beside = (p for p in path.parent.rglob("*") if p.is_file() and p.suffix not in _MADE)
        files += sorted(p for p in beside if p != path)
    digest = hashlib.blake2b(digest_size=20)
    try:
        for file in files:
            digest.update(f"{file.relative_to(path.parent)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {error.filename}: {error.strerror}") from None
    return digest.hexdigest()
