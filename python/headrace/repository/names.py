"""What may be a model's name, and what may be a path inside a model's directory.

Both come from clients too (RepositoryModelLoad), so neither may lead out of a repository.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from headrace.errors import InvalidArgumentError

_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")
_MAX_VERSION = 2**63 - 1  # int64 on the wire


def is_model_name(name: str) -> bool:
    """Letters, digits, `_`, `.` and `-`, at most 128 of them, and neither "." nor ".."."""
    return _MODEL_NAME.match(name) is not None and name not in (".", "..")


def check_model_name(name: str) -> None:
    """Raises InvalidArgumentError with Triton's texts for what is_model_name refuses."""
    if not name:
        raise InvalidArgumentError(
            "Model name cannot be empty. Please enter a valid name to deploy."
        )
    if "/" in name or "\\" in name or name in (".", ".."):
        raise InvalidArgumentError(
            f"invalid model name {name[:128]!r}, model name must not contain path traversal "
            "characters"
        )
    if not is_model_name(name):
        raise InvalidArgumentError(
            f"invalid model name {name[:128]!r}, it must be 1 to 128 letters, digits, '_', '.' or "
            "'-'"
        )


def check_inner_path(text: str, field: str) -> PurePosixPath:
    """A relative path that stays where it starts: no "..", not absolute, no empty part.

    `field` names the setting in the error, for example "default_model_filename".
    """
    parts = text.split("/")
    if not text or "\0" in text or "\\" in text or any(p in ("", ".", "..") for p in parts):
        raise InvalidArgumentError(
            f"{field}: {text[:200]!r} is not a file name inside the model's directory; give a "
            "relative path without '..'"
        )
    return PurePosixPath(*parts)


def version_number(folder: str) -> int | None:
    """The version that a directory of this name holds; None: see version_reason."""
    if not (folder.isascii() and folder.isdigit()) or folder[0] == "0" or len(folder) > 19:
        return None
    number = int(folder)
    return number if number <= _MAX_VERSION else None


def version_reason(folder: str) -> str:
    """Why version_number refuses a name."""
    if folder.isascii() and folder.isdigit():
        if folder[0] == "0" and folder.strip("0"):
            return f"version directories have no leading zeros: rename it to '{folder.lstrip('0')}'"
        if folder[0] == "0":
            return "versions start at 1"
        return f"the version is larger than {_MAX_VERSION}"
    return "version directories are positive integers"
