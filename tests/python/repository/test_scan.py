from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.errors import InvalidArgumentError, NotFoundError
from headrace.repository import find_model, scan, scan_model
from headrace.repository import scan as scan_function
from headrace.repository.scan import DUPLICATE


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    put(root / "digits" / "config.pbtxt", b"max_batch_size: 8")
    put(root / "digits" / "labels.txt")
    put(root / "digits" / "1" / "model.onnx")
    put(root / "digits" / "10" / "model.onnx")
    put(root / "digits" / "2" / "model.onnx")
    put(root / "plain" / "1" / "model.xml")
    put(root / "README.md")
    return root


def test_what_a_repository_holds(repository: Path) -> None:
    found = scan([repository])
    assert list(found.entries) == ["digits", "plain"]
    assert found.problems == {}
    digits = found.entries["digits"]
    assert digits.name == "digits"
    assert digits.path == repository / "digits"
    assert digits.versions == (1, 2, 10)
    assert sorted(digits.version_fingerprints) == [1, 2, 10]
    assert digits.config_path == repository / "digits" / "config.pbtxt"
    assert digits.config_fingerprint
    assert found.entries["plain"].config_path is None
    assert found.entries["plain"].config_fingerprint == ""


def test_scanning_twice_gives_the_same(repository: Path) -> None:
    assert scan([repository]) == scan([repository])


def test_a_change_shows_in_the_fingerprints_it_belongs_to(repository: Path) -> None:
    before = scan([repository]).entries["digits"]

    put(repository / "digits" / "2" / "model.onnx", b"longer")
    after = scan([repository]).entries["digits"]
    assert after.fingerprint != before.fingerprint
    assert after.version_fingerprints[2] != before.version_fingerprints[2]
    assert after.version_fingerprints[1] == before.version_fingerprints[1]
    assert after.config_fingerprint == before.config_fingerprint

    before = after
    put(repository / "digits" / "config.pbtxt", b"max_batch_size: 16")
    after = scan([repository]).entries["digits"]
    assert after.config_fingerprint != before.config_fingerprint
    assert after.fingerprint != before.fingerprint
    assert after.version_fingerprints == before.version_fingerprints

    before = after
    put(repository / "digits" / "labels.txt", b"zero\none")
    after = scan([repository]).entries["digits"]
    assert after.fingerprint != before.fingerprint
    assert after.version_fingerprints == before.version_fingerprints


def test_same_size_and_time_but_another_file_is_a_change(repository: Path) -> None:
    model = repository / "plain" / "1" / "model.xml"
    status = model.stat()
    before = scan_model(repository / "plain")
    other = put(repository / "other", b"y")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(model)
    assert scan_model(repository / "plain").fingerprint != before.fingerprint


def test_an_empty_version_directory_counts(repository: Path) -> None:
    before = scan_model(repository / "plain")
    (repository / "plain" / "2").mkdir()
    after = scan_model(repository / "plain")
    assert after.versions == (1, 2)
    assert after.fingerprint != before.fingerprint


def test_python_caches_are_no_change(repository: Path) -> None:
    before = scan_model(repository / "plain")
    put(repository / "plain" / "1" / "__pycache__" / "model.pyc")
    put(repository / "plain" / "__pycache__" / "x.pyc")
    assert scan_model(repository / "plain") == before


def test_folders_that_are_no_versions_are_named_with_a_reason(repository: Path) -> None:
    for folder in ("01", "0", "latest", "warmup", ".git"):
        put(repository / "plain" / folder / "model.xml")
    entry = scan_model(repository / "plain")
    assert entry.versions == (1,)
    assert set(entry.ignored) == {"01", "0", "latest"}
    assert "leading zeros" in entry.ignored["01"]


def test_a_model_in_two_repositories_is_in_neither(repository: Path, tmp_path: Path) -> None:
    second = tmp_path / "more"
    put(second / "plain" / "1" / "model.onnx")
    put(second / "third" / "1" / "model.onnx")
    found = scan([repository, second])
    assert list(found.entries) == ["digits", "third"]
    assert found.problems == {"plain": DUPLICATE}
    assert DUPLICATE == "model appears in two or more repositories"
    with pytest.raises(InvalidArgumentError, match=DUPLICATE):
        find_model([repository, second], "plain")


def test_one_repository_given_twice_is_one(repository: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(repository)
    assert scan([repository, link, repository]) == scan([repository])


@pytest.mark.parametrize("name", ["a b", "x" * 129, "modèle", "new\nline"])
def test_names_that_no_client_could_ask_for(repository: Path, name: str) -> None:
    put(repository / name / "1" / "model.onnx")
    found = scan([repository])
    assert list(found.entries) == ["digits", "plain"]
    assert "invalid model name" in found.problems[name]


def test_a_name_that_is_not_text(repository: Path) -> None:
    (repository / os.fsdecode(b"bad\xff")).mkdir()
    problems = scan([repository]).problems
    assert list(problems) == ["bad\\udcff"]
    "".join([*problems, *problems.values()]).encode()  # can be logged


def test_hidden_folders_are_no_models(repository: Path) -> None:
    put(repository / ".git" / "1" / "model.onnx")
    put(repository / "..2026_11_01" / "1" / "model.onnx")
    assert list(scan([repository]).entries) == ["digits", "plain"]


def test_links_are_followed_as_kubernetes_mounts_them(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    put(root / "..one" / "m" / "1" / "model.onnx", b"1")
    put(root / "..two" / "m" / "1" / "model.onnx", b"1")
    (root / "..data").symlink_to("..one")
    (root / "m").symlink_to("..data/m")
    before = scan([root]).entries["m"]
    assert before.versions == (1,)
    (root / "..data").unlink()
    (root / "..data").symlink_to("..two")
    after = scan([root]).entries["m"]
    assert after.fingerprint != before.fingerprint


def test_a_link_back_up_ends(repository: Path) -> None:
    (repository / "plain" / "1" / "loop").symlink_to(repository / "plain")
    assert scan_model(repository / "plain").versions == (1,)


def test_a_link_to_nowhere_is_only_a_file_that_is_not_there(repository: Path) -> None:
    before = scan_model(repository / "plain")
    (repository / "plain" / "config.pbtxt").symlink_to("gone")
    after = scan_model(repository / "plain")
    assert after.config_path is None
    assert after.fingerprint != before.fingerprint


def test_a_folder_nested_without_end_is_a_problem_of_its_own(repository: Path) -> None:
    (repository / "deep" / Path(*["d"] * 40)).mkdir(parents=True)
    found = scan([repository])
    assert "deeper than" in found.problems["deep"]
    assert list(found.entries) == ["digits", "plain"]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_repository_that_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "nothing"
    if kind == "file":
        path.write_text("")
    with pytest.raises(InvalidArgumentError) as raised:
        scan_function([path])
    assert f"model repository '{path}'" in raised.value.details
    assert "<repository>/<model>/<version>/model.onnx" in raised.value.details


def test_find_one_model(repository: Path) -> None:
    assert find_model([repository], "plain") == scan([repository]).entries["plain"]
    with pytest.raises(NotFoundError, match="no directory 'other'"):
        find_model([repository], "other")


@pytest.mark.parametrize("name", ["../models/plain", ".", "..", "/etc", "plain/1", "", "plain\0"])
def test_a_clients_name_is_never_a_path(repository: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        find_model([repository], name)
