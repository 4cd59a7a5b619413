"""Parameters of RepositoryModelLoad: a configuration and files sent with the request."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import InternalError, InvalidArgumentError
from headrace.protocol import kserve
from headrace.repository.names import check_inner_path, version_number

__all__ = ["LoadOverride", "PrivateRepository", "parse_load_parameters"]

_FILE = "file:"


@dataclass(frozen=True)
class LoadOverride:
    """What a load request brings along; `files` by path relative to the model folder."""

    config_json: str
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.config_json.encode(), digest_size=16)
        for path, content in sorted(self.files.items()):
            digest.update(f"\0{path}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()


class PrivateRepository:
    """A repository of one model in a temporary folder, readable by this user only. Removed by
    close(), or when the last reference goes."""

    def __init__(self, model: str, files: Mapping[str, bytes]) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="headrace-load-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        model_path = self.root / model
        try:
            for name, content in files.items():
                path = model_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except OSError as error:
            self.close()
            raise InternalError(
                f"cannot store the files sent for model '{model}' under {self.root}: "
                f"{error.strerror or error}"
            ) from error

    def close(self) -> None:
        self._remove()


def parse_load_parameters(
    model: str, parameters: Mapping[str, kserve.ModelRepositoryParameter]
) -> LoadOverride | None:
    """None when the request brings nothing along. Errors with Triton's texts."""
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if key == "config":
            if kind != "string_param":
                raise InvalidArgumentError(
                    "invalid value type for load parameter 'config', expected string_param."
                )
            config = value.string_param
        elif key.startswith(_FILE):
            if kind != "bytes_param":
                raise InvalidArgumentError(
                    f"invalid value type for load parameter '{key}', expected bytes_param."
                )
            files[_checked_path(model, key)] = value.bytes_param
        else:
            raise InvalidArgumentError(f"unrecognized load parameter '{key}'.")
    if config is None:
        if files:
            raise InternalError(
                f"failed to load '{model}', failed to poll from model repository: override files "
                "need "
                "the 'config' parameter too"
            )
        return None
    return LoadOverride(config, files)


def _checked_path(model: str, key: str) -> str:
    path = check_inner_path(key[len(_FILE) :], f"failed to load '{model}': load parameter '{key}'")
    if len(path.parts) < 2 or version_number(path.parts[0]) is None:
        raise InvalidArgumentError(
            f"failed to load '{model}': load parameter '{key}' must be 'file:<version>/<path>' "
            "with a "
            "version above 0"
        )
    return str(path)
