"""Streamed calls. ModelStreamInfer answers each request with one message, also one for a model that
is not there: that message says so, and the stream goes on."""

from __future__ import annotations

import struct

from conformance.registry import MUST, case
from conformance.target import MODEL_STREAM_INFER, Target
from conformance.wire import CANCEL, DATA, RST_STREAM, Connection, message

OK, INTERNAL, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED = 0, 13, 8, 4
REQUEST = b"\x0a\x04none"  # model_name


def until_messages(to: Connection, stream: int, count: int) -> None:
    while len(to.answers[stream].messages) < count:
        to.until(DATA, stream=stream)


@case(MUST, "PROTOCOL-HTTP2 Requests", "messages of a stream are answered while the client goes on")
def stream_ping_pong(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(MODEL_STREAM_INFER)
        for turn in range(1, 4):
            to.data(stream, message(REQUEST))
            until_messages(to, stream, turn)
            assert not to.answers[stream].ended
        to.data(stream, b"", end=True)
        answer = to.answer(stream)
        assert (answer.status, len(answer.messages), len(answer.blocks)) == (OK, 3, 2)


@case(
    MUST,
    "PROTOCOL-HTTP2 Data Frames",
    "DATA boundaries mean nothing in streams",
    values={"all_in_one": 10**6, "one_byte_each": 1, "across": 13},
)
def stream_data_boundaries(server: Target, size: int) -> None:
    body = message(REQUEST) * 5
    with server.connect() as to:
        stream = to.open(MODEL_STREAM_INFER)
        for at in range(0, len(body), size):
            to.data(stream, body[at : at + size], end=at + size >= len(body))
        answer = to.answer(stream)
        assert (answer.status, len(answer.messages)) == (OK, 5)


@case(
    MUST,
    "PROTOCOL-HTTP2 Requests",
    "a stream without a message is a call",
    values=["headers", "data"],
)
def stream_without_messages(server: Target, where: str) -> None:
    with server.connect() as to:
        stream = to.open(MODEL_STREAM_INFER, end=where == "headers")
        if where == "data":
            to.data(stream, b"", end=True)
        answer = to.answer(stream)
        assert (answer.status, answer.messages) == (OK, [])


@case(
    MUST,
    "PROTOCOL-HTTP2 Length-Prefixed-Message",
    "a stream that ends within a message, or has a bad flag, is INTERNAL behind what was answered",
    values={
        "prefix": b"\0\0",
        "message": message(REQUEST, length=100),
        "flag": message(REQUEST, flag=2),
    },
)
def stream_malformed(server: Target, bad: bytes) -> None:
    with server.connect() as to:
        stream = to.open(MODEL_STREAM_INFER)
        to.data(stream, message(REQUEST))
        until_messages(to, stream, 1)
        to.data(stream, bad, end=True)
        answer = to.answer(stream)
        assert (answer.status, len(answer.messages)) == (INTERNAL, 1)
        to.lives()


@case(MUST, "statuscodes RESOURCE_EXHAUSTED", "a length over the limit ends a stream at once")
def stream_length_over_limit(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(MODEL_STREAM_INFER)
        to.data(stream, message(b"", length=2**32 - 1))
        assert to.answer(stream).status == RESOURCE_EXHAUSTED
        to.lives()


@case(MUST, "PROTOCOL-HTTP2 Timeout", "a stream ends at its deadline, with messages or without")
def stream_deadline(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(MODEL_STREAM_INFER, [("grpc-timeout", "200m")])
        to.data(stream, message(REQUEST))
        answer = to.answer(stream)
        assert answer.status == DEADLINE_EXCEEDED or answer.reset == CANCEL, answer
        to.lives()


@case(MUST, "PROTOCOL-HTTP2 Errors", "a stream that the client resets is not answered any more")
def stream_cancel(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(MODEL_STREAM_INFER)
        to.data(stream, message(REQUEST))
        until_messages(to, stream, 1)
        to.frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))
        to.sync()
        count = len(to.answers[stream].frames)
        to.lives()
        assert len(to.answers[stream].frames) == count
