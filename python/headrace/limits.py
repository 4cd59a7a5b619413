"""ConnectionLimits: what one client may make the server spend. docs/CONFIGURATION.md explains each.

limits = ConnectionLimits(max_age_s=0)
limits = parse_limits(["max-age-s=0", "max-connections=500"])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from headrace.errors import InvalidArgumentError

__all__ = ["ConnectionLimits", "limits_from_mapping", "parse_limits"]

_AT_LEAST_ONE = (
    "max_connections",
    "untrusted_percent",
    "max_tls_handshakes",
    "max_concurrent_streams",
)
_AT_MOST = {"untrusted_percent": 100}
_MOST_SECONDS = 365 * 24 * 3600


@dataclass(frozen=True)
class ConnectionLimits:
    """Frozen. Names that end in `_s` are seconds, 0 = never. Raises InvalidArgumentError naming the
    limit when a value makes no sense."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    max_connections: int = 10000
    max_connections_per_peer: int = 1000
    untrusted_percent: int = 25
    max_tls_handshakes: int = 1000
    max_concurrent_streams: int = 256
    max_header_list_bytes: int = 16384
    max_header_fields: int = 100
    max_continuations: int = 8
    max_received_bytes: int = 32 << 20
    untrusted_received_bytes: int = 4 << 20
    glitch_burst: int = 10000
    glitch_rate: int = 330
    reset_burst: int = 1000
    reset_rate: int = 33
    max_queued_frames: int = 1000
    ping_max_strikes: int = 2
    ping_min_interval_s: float = 300.0
    permit_keepalive_without_calls: bool = False
    preface_timeout_s: float = 4.0
    header_timeout_s: float = 4.0
    body_timeout_s: float = 2.0
    body_min_rate: int = 1024
    idle_timeout_s: float = 900.0
    write_timeout_s: float = 30.0
    stall_timeout_s: float = 4.0
    stall_bytes: int = 65536
    first_window_timeout_s: float = 2.0
    window_timeout_s: float = 300.0
    keepalive_time_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    max_age_s: float = 1800.0
    max_age_grace_s: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s"):
                if not 0 <= value <= _MOST_SECONDS:
                    raise InvalidArgumentError(
                        f"limit '{_spelled(field.name)}' is {value}; it must be 0 (never) to "
                        f"{_MOST_SECONDS} seconds"
                    )
            elif not isinstance(value, bool):
                least = 1 if field.name in _AT_LEAST_ONE else 0
                most = _AT_MOST.get(field.name, 2**31 - 1)
                if not least <= value <= most:
                    raise InvalidArgumentError(
                        f"limit '{_spelled(field.name)}' is {value}; it must be {least} to {most}"
                    )

    def as_dict(self) -> dict[str, float | int | bool]:
        """As runtime.ServerOptions takes them."""
        return dataclasses.asdict(self)


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _named(name: str) -> dataclasses.Field[Any]:
    for field in fields(ConnectionLimits):
        if field.name == name.replace("-", "_"):
            return field
    known = ", ".join(_spelled(field.name) for field in fields(ConnectionLimits))
    raise InvalidArgumentError(f"unknown limit '{name}'; known: {known}")


def limits_from_mapping(values: Mapping[str, Any]) -> ConnectionLimits:
    """Names with dashes or underscores."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        field = _named(str(name))
        wanted = type(field.default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if wanted is float and number:
            value = float(value)
        if type(value) is not wanted:
            kind = {bool: "true or false", int: "a whole number", float: "seconds"}[wanted]
            raise InvalidArgumentError(f"limit '{name}' is {value!r}; it must be {kind}")
        named[field.name] = value
    return ConnectionLimits(**named)


def parse_limits(
    arguments: Iterable[str], base: ConnectionLimits | None = None
) -> ConnectionLimits:
    """`NAME=VALUE` each; the others as in `base`."""
    values: dict[str, Any] = (base or ConnectionLimits()).as_dict()
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise InvalidArgumentError(f"--limits '{argument}' must be NAME=VALUE")
        values[_named(name).name] = _value(text)
    return limits_from_mapping(values)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
