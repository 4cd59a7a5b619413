from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from headrace.repository.names import (
    check_inner_path,
    check_model_name,
    is_model_name,
    version_number,
    version_reason,
)


@pytest.mark.parametrize("name", ["a", "digits", "a.b-c_9", "x" * 128, "...", ".hidden"])
def test_names_of_models(name: str) -> None:
    assert is_model_name(name)
    check_model_name(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "Model name cannot be empty. Please enter a valid name to deploy."),
        ("../x", "model name must not contain path traversal characters"),
        ("..", "model name must not contain path traversal characters"),
        (".", "model name must not contain path traversal characters"),
        ("a/b", "model name must not contain path traversal characters"),
        ("a\\b", "model name must not contain path traversal characters"),
        ("a b", "must be 1 to 128 letters"),
        ("a\n", "must be 1 to 128 letters"),
        ("ä", "must be 1 to 128 letters"),
        ("x" * 129, "must be 1 to 128 letters"),
        ("a\0", "must be 1 to 128 letters"),
    ],
)
def test_what_is_no_name(name: str, text: str) -> None:
    assert not is_model_name(name)
    with pytest.raises(InvalidArgumentError) as raised:
        check_model_name(name)
    assert text in raised.value.details


@given(st.text(alphabet="./\\ab\0~ ", max_size=12))
def test_an_inner_path_never_leaves(text: str) -> None:
    root = Path("/repository/model")
    try:
        inner = check_inner_path(text, "field")
    except InvalidArgumentError:
        return
    assert not inner.is_absolute()
    assert ".." not in inner.parts
    assert (root / inner).is_relative_to(root)
    assert (root / inner) != root


@pytest.mark.parametrize(
    "text", ["a/../b", "/etc/passwd", "..", "a//b", "", "a/", "./a", "a\\..\\b"]
)
def test_paths_that_leave_or_confuse(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="label_filename"):
        check_inner_path(text, "label_filename")


@pytest.mark.parametrize(("folder", "number"), [("1", 1), ("42", 42), (str(2**63 - 1), 2**63 - 1)])
def test_versions(folder: str, number: int) -> None:
    assert version_number(folder) == number


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("0", "start at 1"),
        ("01", "rename it to '1'"),
        ("-1", "positive integers"),
        ("1a", "positive integers"),
        ("latest", "positive integers"),
        ("²", "positive integers"),
        ("\u0661", "positive integers"),
        (str(2**63), "larger than"),
        ("9" * 5000, "larger than"),
    ],
)
def test_folders_that_are_no_versions(folder: str, reason: str) -> None:
    assert version_number(folder) is None
    assert reason in version_reason(folder)
