from __future__ import annotations

import logging

import pytest

from headrace.grpc.options import settings_of


def test_defaults_are_grpcios_where_it_has_none() -> None:
    settings = settings_of(None)
    assert settings.max_receive_message_bytes == 4 << 20
    assert settings.limits.max_age_s == settings.limits.idle_timeout_s == 0


def test_channel_arguments_become_settings() -> None:
    settings = settings_of(
        [
            ("grpc.max_receive_message_length", 1000),
            ("grpc.max_concurrent_streams", 7),
            ("grpc.max_metadata_size", 4096),
            ("grpc.keepalive_time_ms", 1500),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_connection_age_ms", 2**31 - 1),
            ("headrace.io_threads", 2),
        ]
    )
    assert settings.max_receive_message_bytes == 1000
    assert settings.io_threads == 2
    limits = settings.limits
    assert (limits.max_concurrent_streams, limits.max_header_list_bytes) == (7, 4096)
    assert (limits.keepalive_time_s, limits.permit_keepalive_without_calls) == (1.5, True)
    assert limits.max_age_s == 0


@pytest.mark.parametrize(("given", "bytes_"), [(-1, 2**31 - 1), (0, 0), (2**40, 2**31 - 1)])
def test_message_sizes(given: int, bytes_: int) -> None:
    settings = settings_of([("grpc.max_receive_message_length", given)])
    assert settings.max_receive_message_bytes == bytes_


def test_an_option_without_meaning_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "headrace.grpc"):
        settings_of([("grpc.something_else", 1)])
    assert "grpc.something_else" in caplog.text
