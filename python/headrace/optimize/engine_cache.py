"""Engines on disk: found by what they were built of and for, so that nothing is built twice.

    cache = EngineCache(Path("/home/me/.cache/headrace/engines"))
    key = engine_key(model_digest, spec, builder, "NVIDIA H200 9.0")
    path = cache.find(key)            # None: not built yet, or damaged
    path = cache.keep(key, built.plan, {"model": "digits"})

KEY-DIGEST.plan is an engine, by what its bytes are; KEY.json says what it is and which one counts;
timing-*.cache what TensorRT found out about kernels of a GPU. Everything appears whole. Several
processes, on several machines, may use one folder: of two who build the same, the one that writes
KEY.json last has built it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headrace.errors import PermissionDeniedError
from headrace.logs import get_logger
from headrace.optimize.engines import EngineSpec
from headrace.optimize.place import place_file

__all__ = ["EngineCache", "engine_key"]

_log = get_logger("engines")

_FORMAT = 1  # of the folder, and of how engines are built


def engine_key(model_digest: str, spec: EngineSpec, runtime: str, version: str, gpu: str) -> str:
    """`runtime`, `version`: of TensorRT. `gpu`: name and compute capability; "" when the spec names
    targets instead."""
    parts: dict[str, Any] = {
        "format": _FORMAT,
        "model": model_digest,
        "spec": asdict(spec),
        "runtime": runtime,
        "version": version,
        "gpu": gpu,
    }
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class EngineCache:
    """Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Path | None:
        """The engine's path, once its bytes were found to be those that were written. It is gone
        when another process has built it anew."""
        about = self.folder / f"{key}.json"
        try:
            expected = str(json.loads(about.read_bytes())["digest"])
            plan = self._plan(key, expected)
            found = _digest(plan)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _log.warning("%s is damaged (%s); it is built again", about, error)
            return None
        if found != expected:
            _log.warning("%s is damaged; it is built again", plan)
            return None
        return plan

    def keep(self, key: str, plan: bytes, about: Mapping[str, Any]) -> Path:
        """Raises PermissionDeniedError when the folder cannot be written to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PermissionDeniedError(
                f"{self.folder} cannot be made: {error.strerror or error}"
            ) from None
        digest = hashlib.blake2b(plan, digest_size=20).hexdigest()
        path = self._plan(key, digest)
        place_file(path, plan)
        said = json.dumps({**about, "digest": digest}, indent=1)
        before = self._named(key)
        place_file(self.folder / f"{key}.json", said.encode())
        if before not in (None, path):
            self._remove(before)
        return path

    def drop(self, key: str) -> None:
        """It is no good."""
        before = self._named(key)
        self._remove(self.folder / f"{key}.json")
        self._remove(before)

    def _plan(self, key: str, digest: str) -> Path:
        int(digest, 16)  # ValueError: no name of a file is made of it
        return self.folder / f"{key}-{digest}.plan"

    def _named(self, key: str) -> Path | None:
        """The engine that KEY.json names; others may be about to be named."""
        try:
            about = json.loads((self.folder / f"{key}.json").read_bytes())
            return self._plan(key, str(about["digest"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    @staticmethod
    def _remove(path: Path | None) -> None:
        """Who has opened it keeps it."""
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def timing(self, runtime: str, version: str, gpu: str) -> Path:
        """Where the timing cache is kept; the file may not exist."""
        name = hashlib.blake2b(f"{runtime}/{version}/{gpu}".encode(), digest_size=8).hexdigest()
        return self.folder / f"timing-{name}.cache"


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
