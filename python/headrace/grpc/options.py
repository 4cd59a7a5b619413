"""Channel arguments of grpc.server() ("grpc.max_receive_message_length", ...) as settings of this
server."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from headrace.limits import ConnectionLimits

__all__ = ["Settings", "settings_of"]

_log = logging.getLogger("headrace.grpc")

_MOST_BYTES = 2**31 - 1

# Where grpcio has no limit a server that was moved here keeps none; floods and silent peers end all
# the same.
_LIMITS = ConnectionLimits(max_concurrent_streams=10_000, idle_timeout_s=0, max_age_s=0)


@dataclass(frozen=True)
class Settings:
    max_receive_message_bytes: int = 4 << 20
    io_threads: int = 1
    limits: ConnectionLimits = _LIMITS


def _bytes(value: Any) -> int:
    return _MOST_BYTES if int(value) < 0 else min(int(value), _MOST_BYTES)


def _seconds(milliseconds: Any) -> float:
    """0, no limit, for grpc's INT_MAX."""
    return 0.0 if int(milliseconds) >= _MOST_BYTES else int(milliseconds) / 1e3


def _count(value: Any) -> int:
    return max(1, min(int(value), _MOST_BYTES))


_SETTINGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "grpc.max_receive_message_length": ("max_receive_message_bytes", _bytes),
    "grpc.max_message_length": ("max_receive_message_bytes", _bytes),
    "headrace.io_threads": ("io_threads", _count),
}
_LIMIT_SETTINGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "grpc.max_concurrent_streams": ("max_concurrent_streams", _count),
    "grpc.max_metadata_size": ("max_header_list_bytes", _count),
    "grpc.max_connection_idle_ms": ("idle_timeout_s", _seconds),
    "grpc.max_connection_age_ms": ("max_age_s", _seconds),
    "grpc.max_connection_age_grace_ms": ("max_age_grace_s", _seconds),
    "grpc.keepalive_time_ms": ("keepalive_time_s", _seconds),
    "grpc.keepalive_timeout_ms": ("keepalive_timeout_s", _seconds),
    "grpc.keepalive_permit_without_calls": ("permit_keepalive_without_calls", bool),
    "grpc.http2.min_ping_interval_without_data_ms": ("ping_min_interval_s", _seconds),
    "grpc.http2.max_ping_strikes": ("ping_max_strikes", int),
}


def settings_of(options: Iterable[tuple[str, Any]] | None) -> Settings:
    """The options that mean something here; the others are named in the log (debug)."""
    values: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    for key, value in options or ():
        if key in _SETTINGS:
            name, convert = _SETTINGS[key]
            values[name] = convert(value)
        elif key in _LIMIT_SETTINGS:
            name, convert = _LIMIT_SETTINGS[key]
            limits[name] = convert(value)
        else:
            _log.debug("option %s has no meaning here and is ignored", key)
    return Settings(**values, limits=dataclasses.replace(_LIMITS, **limits))
