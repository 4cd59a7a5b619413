"""Puts a finished model where it is to be: a file, or a new version in a model repository. Under
another name first, then renamed, so nobody ever reads half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from headrace.errors import (
    AlreadyExistsError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)

__all__ = ["check_file", "check_version", "mark_dynamic", "place_file", "place_version"]

CONFIG = "config.pbtxt"
DYNAMIC = 'parameters { key: "int8" value { string_value: "dynamic" } }'


def check_file(path: Path, *, force: bool) -> None:
    """Before the long work. Raises as `place_file` would."""
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder; name the file, as {path / 'model.onnx'}")
    if path.exists() and not force:
        raise AlreadyExistsError(f"{path} exists; --force replaces it")
    _check_folder(path.parent)


def check_version(folder: Path, *, force: bool) -> None:
    """`folder` is models/NAME/VERSION; models/ must exist."""
    if not (folder.name.isascii() and folder.name.isdigit() and int(folder.name) > 0):
        raise InvalidArgumentError(
            f"{folder} is no version of a model: the last part is a positive number, as in "
            "models/digits/2"
        )
    if folder.name != str(int(folder.name)):
        raise InvalidArgumentError(f"{folder}: a version has no leading zeros")
    if folder.exists() and not force:
        raise AlreadyExistsError(f"{folder} exists; name a new version, or --force replaces it")
    repository = folder.absolute().parent.parent
    if not repository.is_dir():
        raise NotFoundError(f"{repository} does not exist; it is to be the model repository")
    _check_folder(repository)
    if folder.parent.exists():
        _check_folder(folder.parent)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise NotFoundError(f"{folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionDeniedError(f"{folder} cannot be written to")


def place_file(path: Path, content: bytes) -> None:
    """Replaces what is there. Others may place the same file: whole is what the last one wrote."""
    aside: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        aside = Path(name)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp: for nobody else
            _write(file, content)
        aside.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if aside is not None:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def place_version(folder: Path, content: bytes) -> Path:
    """folder/model.onnx; the folder appears whole. Returns the file's path."""
    model = folder.absolute().parent
    # Beside the models, where names that start with a dot are not looked at.
    aside = model.parent / f".{model.name}-{folder.name}.{os.getpid()}.tmp"
    old = aside.with_suffix(".old")
    try:
        aside.mkdir()
        with (aside / "model.onnx").open("wb") as file:
            _write(file, content)
        model.mkdir(exist_ok=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            with suppress(OSError):
                old.rename(folder)
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder / "model.onnx"


def mark_dynamic(model: Path) -> bool:
    """Adds the parameter `int8: dynamic` to the configuration of the model in this folder. False
    when it is there already."""
    from headrace.protocol.model_config import ModelConfig

    path = model / CONFIG
    text = ""
    config = ModelConfig()
    if path.exists():
        from google.protobuf import text_format

        text = path.read_text()
        try:
            text_format.Parse(text, config)
        except text_format.ParseError as error:
            raise InvalidArgumentError(f"{path}: {error}") from None
    if "int8" in config.parameters:
        given = config.parameters["int8"].string_value
        if given == "dynamic":
            return False
        raise InvalidArgumentError(f"{path} has the parameter int8: '{given}'; remove it")
    place_file(path, f"{text.rstrip()}\n{DYNAMIC}\n".lstrip().encode())
    return True


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _umask() -> int:
    """Of this process; 0o022 where only setting it would tell."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _unwritable(path: Path, error: OSError) -> HeadraceError:
    return PermissionDeniedError(f"{path} cannot be written: {error.strerror or error}")
