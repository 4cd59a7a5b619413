from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from headrace.optimize import place
from headrace.repository.model_config import read_config
from headrace.repository.scan import scan, scan_model


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_version_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "2"
    place.check_version(folder, force=False)
    assert place.place_version(folder, b"model") == folder / "model.onnx"
    assert (folder / "model.onnx").read_bytes() == b"model"
    assert everything(tmp_path) == ["digits", "digits/2", "digits/2/model.onnx"]
    assert scan([tmp_path]).entries["digits"].versions == (2,)
    with pytest.raises(AlreadyExistsError, match=r"2 exists; name a new version, or --force"):
        place.check_version(folder, force=False)
    place.check_version(folder, force=True)
    place.place_version(folder, b"other")
    assert (folder / "model.onnx").read_bytes() == b"other"
    assert everything(tmp_path) == ["digits", "digits/2", "digits/2/model.onnx"]


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "digits" / "2", tmp_path / "model.onnx"
    place.place_version(folder, b"old")
    place.place_file(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PermissionDeniedError, match=r"2 cannot be written: No space left on"):
        place.place_version(folder, b"new")
    with pytest.raises(PermissionDeniedError, match=r"model.onnx cannot be written: No space"):
        place.place_file(file, b"new")
    assert (folder / "model.onnx").read_bytes() == file.read_bytes() == b"old"
    assert everything(tmp_path) == ["digits", "digits/2", "digits/2/model.onnx", "model.onnx"]


def test_two_processes_of_one_number_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers, on one folder."""
    file = tmp_path / "model.plan"
    written = os.fsync

    def another(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", written)
        place.place_file(file, b"the other's, which is longer")
        written(descriptor)

    monkeypatch.setattr(os, "fsync", another)
    old = os.umask(0o027)
    try:
        place.place_file(file, b"ours")
    finally:
        os.umask(old)
    assert file.read_bytes() == b"ours"
    assert file.stat().st_mode & 0o777 == 0o640
    assert everything(tmp_path) == ["model.plan"]


def test_a_rename_that_fails_brings_the_old_version_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digits" / "2"
    place.place_version(folder, b"old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(PermissionDeniedError, match="Input/output error"):
        place.place_version(folder, b"new")
    monkeypatch.undo()
    assert (folder / "model.onnx").read_bytes() == b"old"
    assert everything(tmp_path) == ["digits", "digits/2", "digits/2/model.onnx"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digits/two", "is no version of a model: the last part is a positive number"),
        ("digits/0", "is no version of a model"),
        ("digits/02", "a version has no leading zeros"),
    ],
)
def test_folders_that_are_no_versions_are_told(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        place.check_version(tmp_path / name, force=False)


def test_targets_that_cannot_be_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="none does not exist; it is to be the model repos"):
        place.check_version(tmp_path / "none" / "digits" / "1", force=False)
    with pytest.raises(NotFoundError, match="none does not exist"):
        place.check_file(tmp_path / "none" / "model.onnx", force=False)
    with pytest.raises(InvalidArgumentError, match=r"is a folder; name the file, as .*model.onnx"):
        place.check_file(tmp_path, force=False)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(AlreadyExistsError, match=r"model.onnx exists; --force replaces it"):
        place.check_file(tmp_path / "model.onnx", force=False)
    place.check_file(tmp_path / "model.onnx", force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionDeniedError, match="cannot be written to"):
        place.check_file(tmp_path / "new.onnx", force=False)
    with pytest.raises(PermissionDeniedError, match="cannot be written to"):
        place.check_version(tmp_path / "digits" / "1", force=False)


def test_dynamic_is_a_parameter_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    assert place.mark_dynamic(tmp_path)
    entry = scan_model(tmp_path, "digits")
    assert read_config(entry).parameters["int8"].string_value == "dynamic"
    assert not place.mark_dynamic(tmp_path)
    config = tmp_path / "config.pbtxt"
    config.write_text('max_batch_size: 8 # of rows\nbackend: "openvino"')
    assert place.mark_dynamic(tmp_path)
    assert config.read_text().startswith("max_batch_size: 8 # of rows\n")
    assert read_config(scan_model(tmp_path, "digits")).max_batch_size == 8
    config.write_text('parameters { key: "int8" value { string_value: "off" } }')
    with pytest.raises(InvalidArgumentError, match="has the parameter int8: 'off'; remove it"):
        place.mark_dynamic(tmp_path)
    config.write_text("max_batch_size: many")
    with pytest.raises(InvalidArgumentError, match=r"config.pbtxt: "):
        place.mark_dynamic(tmp_path)
