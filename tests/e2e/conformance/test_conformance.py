"""Every case of the kit, and its table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conformance import registry
from conformance.target import Target, running

CASES = registry.load()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with running() as server:
        yield server


def _runs() -> list[object]:
    runs: list[object] = []
    for one in CASES.values():
        if one.run is None:
            continue
        values = list(one.values.values()) if one.values else [None]
        for name, value in zip(one.ids, values, strict=True):
            runs.append(pytest.param(one, value, id=name))
    return runs


@pytest.mark.parametrize(("one", "value"), _runs())
def test_requirement(target: Target, one: registry.Case, value: object) -> None:
    assert one.run is not None
    if one.values is None:
        one.run(target)
    else:
        one.run(target, value)
    # Whatever was done to it, the next client is served.
    with target.connect() as next_client:
        next_client.lives()


def test_the_table_is_what_the_cases_say() -> None:
    assert registry.DOCUMENT.read_text() == registry.document(), (
        "write it anew: cd tests/e2e && python -m conformance.document"
    )


def test_rows_that_are_tested_elsewhere_are() -> None:
    for one in CASES.values():
        if one.where:
            assert registry.exists(one.where), one
