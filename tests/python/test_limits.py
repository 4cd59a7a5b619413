from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from headrace import _ext
from headrace.config import ServerConfig, read_config_file
from headrace.errors import InvalidArgumentError
from headrace.limits import ConnectionLimits, limits_from_mapping, parse_limits

DOC = Path(__file__).resolve().parents[2] / "docs" / "CONFIGURATION.md"


def test_names_and_defaults_are_the_cores() -> None:
    assert ConnectionLimits().as_dict() == _ext.default_limits()


def test_every_limit_and_reason_is_documented() -> None:
    text = DOC.read_text()
    table = text[text.index("## Limits") : text.index("## The model repository")]
    for field in fields(ConnectionLimits):
        assert f"`{field.name.replace('_', '-')}`" in table
    server = _ext.Server(_ext.ServerOptions(host="127.0.0.1", port=0))
    for reason in server.statistics()["limits_exceeded"]:
        assert f"`{reason}`" in table, reason


def test_arguments_change_what_they_name() -> None:
    base = ConnectionLimits(max_connections=7)
    limits = parse_limits(
        ["max-age-s=0", "body_min_rate=5", "permit-keepalive-without-calls=true"], base
    )
    assert limits.max_connections == 7
    assert limits.max_age_s == 0
    assert limits.body_min_rate == 5
    assert limits.permit_keepalive_without_calls is True
    assert limits.idle_timeout_s == ConnectionLimits().idle_timeout_s


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("max-age-s", "NAME=VALUE"),
        ("nonsense=1", "unknown limit 'nonsense'; known: max-connections"),
        ("max-age-s=soon", "must be seconds"),
        ("max-age-s=-1", "must be 0"),
        ("max-age-s=nan", "must be 0"),
        ("max-age-s=true", "must be seconds"),
        ("max-connections=0", "must be 1"),
        ("max-connections=1.5", "must be a whole number"),
        ("permit-keepalive-without-calls=1", "must be true or false"),
        ("glitch-burst=4294967296", "must be 0 to 2147483647"),
    ],
)
def test_mistakes_name_the_limit(argument: str, text: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        parse_limits([argument])
    assert text in error.value.details


def test_a_file_gives_limits(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path = tmp_path / "headrace.yaml"
    path.write_text("limits: {max-age-s: 0, max_connections: 500}\n")
    limits = ServerConfig(**read_config_file(path)).limits
    assert (limits.max_age_s, limits.max_connections) == (0, 500)
    path.write_text("limits: {max-agee: 0}\n")
    with pytest.raises(InvalidArgumentError, match="max-agee"):
        read_config_file(path)


@pytest.mark.parametrize(
    "values", [{"nonsense": 1}, {"max_age_s": -1}, {"max_age_s": "x"}, {"max_connections": 1.5}]
)
def test_the_core_checks_for_itself(values: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match="limit '"):
        _ext.ServerOptions(limits=values)


def test_whole_seconds_are_fine() -> None:
    assert limits_from_mapping({"max-age-s": 5}).max_age_s == 5
