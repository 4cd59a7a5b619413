"""The tree of errors: every gRPC status has exactly one leaf, and it survives the round trip."""

from __future__ import annotations

import pickle

import pytest

from headrace import errors


@pytest.mark.parametrize("code", range(1, 17))
def test_every_status_number_has_its_leaf(code: int) -> None:
    error = errors.error_from_code(code, "why")
    assert (error.code, error.details, str(error)) == (code, "why", "why")
    assert type(error) is not errors.HeadraceError
    assert error.status == errors.code_name(code)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.details) == (type(error), "why")


def test_numbers_that_grpc_does_not_have_are_unknown() -> None:
    assert type(errors.error_from_code(99, "")) is errors.UnknownError
    assert errors.code_name(0) == "OK"


def test_names_are_grpcs() -> None:
    grpc = pytest.importorskip("grpc")
    for status in grpc.StatusCode:
        number, _ = status.value
        assert errors.code_name(number) == status.name


def test_all_names_every_leaf() -> None:
    leaves = {cls.__name__ for cls in errors.HeadraceError.__subclasses__()}
    assert leaves <= set(errors.__all__)
    assert len(leaves) == 16
