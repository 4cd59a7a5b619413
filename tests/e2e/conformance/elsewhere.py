"""Rows that need more than frames, and where they are tested."""

from __future__ import annotations

from conformance.registry import MAY, MUST, SHOULD, elsewhere

STREAMS = "tests/csrc/rpc/stream_call_test.cc::"
TLS = "tests/csrc/transport/tls_test.cc::"
GUARD = "tests/csrc/transport/connection_guard_test.cc::"

elsewhere(
    "readiness",
    MUST,
    "services Health",
    "health follows readiness",
    "tests/e2e/test_wire.py::test_health",
)
elsewhere(
    "stream_status_last",
    MUST,
    "statuscodes Order",
    "an error after messages comes in trailers, behind them",
    STREAMS + "an error after messages comes in trailers, behind them",
)
elsewhere(
    "stream_cancel_reaches_the_handler",
    MUST,
    "PROTOCOL-HTTP2 Errors",
    "the handler of a stream hears of a client that leaves, once, at any point",
    STREAMS + "the client leaves at any point: the handler hears it once, and nothing is held",
)
elsewhere(
    "stream_back_pressure",
    MUST,
    "9113 5.2",
    "a handler that does not read holds its client at the stream's window",
    STREAMS
    + "without credit no message is delivered, and the client is held at the stream's window",
)
elsewhere(
    "stream_slow_reader",
    MUST,
    "9113 5.2",
    "a client that does not read holds its handler at 1 MiB and one message",
    STREAMS + "a slow reader is held at 1 MiB and one message, and gets everything in the end",
)
elsewhere(
    "stream_compression",
    MUST,
    "compression Test cases",
    "in a stream each message is compressed or not, as its flag says",
    STREAMS + "requests compressed message by message",
)
elsewhere(
    "stream_response_compression",
    MUST,
    "compression Negotiation",
    "answers are compressed if the client accepts it, message by message",
    STREAMS + "responses are compressed if the client accepts it, message by message",
)
elsewhere(
    "tls_versions",
    MUST,
    "9113 9.2",
    "TLS 1.1 is refused",
    TLS + "TLS 1.1 is refused with protocol_version",
)
elsewhere(
    "tls_ciphers",
    SHOULD,
    "9113 9.2.2",
    "a forward-secret AEAD cipher is used",
    TLS + "TLS 1.3 and a forward-secret AEAD cipher are what a client gets",
)
elsewhere(
    "tls_alpn",
    MUST,
    "9113 3.2",
    "a client without ALPN h2 is refused",
    TLS + "without ALPN h2 the handshake ends with no_application_protocol",
)
elsewhere(
    "tls_renegotiation",
    MUST,
    "9113 9.2.1",
    "renegotiation is refused",
    TLS + "TLS 1.2 renegotiation is refused",
)
elsewhere(
    "tls_client_certificate",
    MUST,
    "PROTOCOL-HTTP2 Security",
    "a client without a certificate that verifies is refused where one is asked for",
    TLS + "mTLS: who has no certificate that verifies is refused",
)
elsewhere(
    "ping_interval",
    SHOULD,
    "keepalive Pings",
    "pings at the permitted interval are no strikes; with every answer one is free",
    GUARD + "pings at the interval are no strikes, a little sooner they are",
)
elsewhere(
    "own_pings",
    SHOULD,
    "keepalive Pings",
    "the server's own pings: one after silence, and the end when it is not answered",
    GUARD + "keepalive: a PING after a minute of silence, the end twenty seconds later",
)
elsewhere(
    "max_age",
    MAY,
    "keepalive A9",
    "connections end at their age with jitter, GOAWAY and grace",
    GUARD + "age: thirty minutes, ten per cent to either side, then the grace",
)
elsewhere(
    "max_idle",
    MAY,
    "keepalive A9",
    "idle connections end with notice",
    GUARD + "idle: fifteen minutes after the last stream, with notice",
)
