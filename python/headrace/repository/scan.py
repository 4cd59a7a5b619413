"""What lies in the model repositories: names, versions and fingerprints, nothing opened or loaded.

A repository is a directory of model directories in Triton's layout:

    models/
      digits/
        config.pbtxt          optional
        policy.yaml           optional: what the server does around the model (policy.py)
        1/model.onnx          a version: a positive integer
        labels.txt, warmup/   what the configuration refers to

Symbolic links are followed, wherever they lead (Kubernetes mounts volumes as links). Model
directories that start with "." are skipped, and so is `__pycache__`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import InvalidArgumentError, NotFoundError
from headrace.repository.names import (
    check_model_name,
    is_model_name,
    version_number,
    version_reason,
)

CONFIG_FILENAME = "config.pbtxt"
POLICY_FILENAME = "policy.yaml"
DUPLICATE = "model appears in two or more repositories"

# Bounds of one model directory; beyond them it is no model but somebody's disk.
_MAX_FILES = 100_000
_MAX_DEPTH = 32
# Directories beside the versions that mean something.
_KNOWN_FOLDERS = frozenset({"warmup", "initial_state", "configs", "__pycache__"})


@dataclass(frozen=True)
class ModelEntry:
    """What a model's directory holds."""

    name: str
    path: Path
    versions: tuple[int, ...]  # ascending
    config_path: Path | None
    # Each changes when a file under it does: relative path, size, mtime_ns, inode.
    fingerprint: str
    version_fingerprints: Mapping[int, str]
    config_fingerprint: str  # "" without a config.pbtxt
    policy_path: Path | None = None
    # Directories that look like versions to nobody: {name: reason}, to be logged when it loads.
    ignored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RepositoryScan:
    """`problems`: {name: reason} of directories that cannot be models; they are in no entry."""

    entries: Mapping[str, ModelEntry]
    problems: Mapping[str, str]


_Record = tuple[str, int, int, int]  # relative path, size, mtime_ns, inode


class _TooLargeError(Exception):
    pass


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]], out: list[_Record]) -> None:
    """Appends a record for every file and directory below `folder`, links followed."""
    here = folder.stat()
    key = (here.st_dev, here.st_ino)
    if key in above:  # a link back up
        return
    if len(above) >= _MAX_DEPTH:
        raise _TooLargeError(f"it is nested deeper than {_MAX_DEPTH} directories")
    with os.scandir(folder) as children:
        for child in children:
            relative = prefix + child.name
            try:
                if child.is_dir():
                    if child.name == "__pycache__":  # Python writes it when a model.py is loaded
                        continue
                    out.append((relative + "/", 0, 0, 0))
                    _walk(Path(child.path), relative + "/", above | {key}, out)
                else:
                    status = child.stat()
                    out.append((relative, status.st_size, status.st_mtime_ns, status.st_ino))
            except FileNotFoundError:  # gone meanwhile, or a link to nowhere
                out.append((relative, -1, 0, 0))
            if len(out) > _MAX_FILES:
                raise _TooLargeError(f"it holds more than {_MAX_FILES} files")


def _fingerprint(records: Sequence[_Record]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path, size, mtime_ns, inode in records:
        name = path.encode("utf-8", "surrogateescape")
        digest.update(b"%d:%s %d %d %d\n" % (len(name), name, size, mtime_ns, inode))
    return digest.hexdigest()


def scan_model(path: Path, name: str = "") -> ModelEntry:
    """One model directory. `name`: the directory's unless given.

    Raises InvalidArgumentError when it cannot be read or its name cannot be a model's.
    """
    name = name or path.name
    check_model_name(name)
    records: list[_Record] = []
    try:
        _walk(path, "", frozenset(), records)
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot read {error.filename or path}: {error.strerror}; give the server's user read "
            "access to the model's directory"
        ) from None
    except _TooLargeError as error:
        raise InvalidArgumentError(f"{path} is not read as a model: {error}") from None
    records.sort()

    versions: dict[int, list[_Record]] = {}
    ignored: dict[str, str] = {}
    config: list[_Record] = []
    policy = False
    for record in records:
        top, slash, _ = record[0].partition("/")
        if not slash:
            if top == CONFIG_FILENAME and record[1] >= 0:
                config.append(record)
            policy = policy or (top == POLICY_FILENAME and record[1] >= 0)
            continue
        number = version_number(top)
        if number is not None:
            versions.setdefault(number, []).append(record)
        elif top not in _KNOWN_FOLDERS and not top.startswith("."):
            ignored[_printable(top)] = version_reason(top)
    return ModelEntry(
        name=name,
        path=path,
        versions=tuple(sorted(versions)),
        config_path=path / CONFIG_FILENAME if config else None,
        fingerprint=_fingerprint(records),
        version_fingerprints={n: _fingerprint(r) for n, r in sorted(versions.items())},
        config_fingerprint=_fingerprint(config) if config else "",
        policy_path=path / POLICY_FILENAME if policy else None,
        ignored=ignored,
    )


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _model_folders(repository: Path) -> dict[str, Path]:
    try:
        with os.scandir(repository) as children:
            return {
                child.name: Path(child.path)
                for child in children
                if not child.name.startswith(".") and child.is_dir()
            }
    except NotADirectoryError:
        reason = "is not a directory"
    except FileNotFoundError:
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise InvalidArgumentError(
        f"model repository '{repository}' {reason}; it must be a directory with one directory a "
        "model: <repository>/<model>/<version>/model.onnx"
    )


def _distinct(repositories: Sequence[Path]) -> list[Path]:
    return list({os.path.realpath(path): path for path in reversed(repositories)}.values())[::-1]


def scan(repositories: Sequence[Path]) -> RepositoryScan:
    """Everything in all repositories. A model's problem stays its own; a repository that cannot be
    read raises InvalidArgumentError, since taking it for empty would unload what it serves."""
    found: dict[str, list[Path]] = {}
    for repository in _distinct(repositories):
        for name, path in _model_folders(repository).items():
            found.setdefault(name, []).append(path)

    entries: dict[str, ModelEntry] = {}
    problems: dict[str, str] = {}
    for name, paths in sorted(found.items()):
        if len(paths) > 1:
            problems[_printable(name)] = DUPLICATE
            continue
        try:
            entries[name] = scan_model(paths[0])
        except InvalidArgumentError as error:
            problems[_printable(name)] = error.details
    return RepositoryScan(entries, problems)


def find_model(repositories: Sequence[Path], name: str) -> ModelEntry:
    """One model by name, without reading the others; for load on demand.

    `name` may be a client's: it is compared with what the repositories list, never used as a path.
    Raises InvalidArgumentError (not a name, found twice, unreadable) or NotFoundError.
    """
    check_model_name(name)
    paths = [
        path
        for repository in _distinct(repositories)
        for path in [_model_folders(repository).get(name)]
        if path is not None
    ]
    if not paths:
        places = ", ".join(f"'{repository}'" for repository in repositories)
        raise NotFoundError(f"no directory '{name}' in {places or 'any model repository'}")
    if len(paths) > 1:
        raise InvalidArgumentError(DUPLICATE)
    return scan_model(paths[0])


__all__ = [
    "CONFIG_FILENAME",
    "DUPLICATE",
    "POLICY_FILENAME",
    "ModelEntry",
    "RepositoryScan",
    "find_model",
    "is_model_name",
    "scan",
    "scan_model",
]
