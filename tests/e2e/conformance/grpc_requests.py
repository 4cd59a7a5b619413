"""What gRPC asks of a server that reads requests."""

from __future__ import annotations

import gzip
import json
import struct
import zlib

from conformance.registry import MUST, SHOULD, case
from conformance.target import ECHO, LIMIT, METADATA, MODEL_INFER, SERVICE, WAIT, Target
from conformance.wire import (
    CANCEL,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_HEADER_LIST_SIZE,
    RST_STREAM,
    block,
    frame,
    grpc_fields,
    message,
)

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED = range(5)
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 12, 13, 14


def metadata(server: Target, *extra: tuple[str | bytes, str | bytes]) -> list[list[object]]:
    """What a handler sees of these request headers."""
    with server.connect() as to:
        answer = to.call(METADATA, b"", extra)
        assert answer.status == OK, answer
        found: list[list[object]] = json.loads(answer.messages[0])
        return found


# --- the request headers ---------------------------------------------------------------------


@case(
    MUST,
    "PROTOCOL-HTTP2 Requests",
    "a path that is no method's, to the letter, is UNIMPLEMENTED as Trailers-Only",
    values={
        "unknown_method": SERVICE + "NoSuch",
        "unknown_service": "/no.such.Service/Echo",
        "lower_case": ECHO.lower(),
        "trailing_slash": ECHO + "/",
        "prefix": ECHO[:-1],
        "double_slash": "/" + ECHO,
        "query": ECHO + "?x=1",
        "escaped": ECHO.replace("E", "%45"),
        "root": "/",
        "no_method": SERVICE[:-1],
        "dots": "/conformance.Test/../conformance.Test/Echo",
        "long": "/" + "x" * 4000,
    },
)
def path(server: Target, value: str) -> None:
    with server.connect() as to:
        answer = to.call(value)
        assert (answer.status, answer.trailers_only) == (UNIMPLEMENTED, True)
        assert answer.get(":status") == "200"
        to.lives()


@case(
    MUST,
    "PROTOCOL-HTTP2 Requests",
    "a method other than POST is no gRPC call",
    values=["GET", "PUT", "HEAD", "CONNECT", "post"],
)
def http_method(server: Target, method: str) -> None:
    with server.connect() as to:
        answer = to.answer(to.open(ECHO, method=method, end=True))
        refused = answer.get(":status") in ("400", "405", "415") or answer.reset is not None
        assert refused or answer.status in (UNIMPLEMENTED, INTERNAL), answer
        to.lives()


@case(
    SHOULD,
    "PROTOCOL-HTTP2 Requests",
    "a content-type that is not gRPC's is answered with HTTP 415",
    values={
        "none": None,
        "json": "application/json",
        "grpc_web": "application/grpc-web",
        "grpc_web_proto": "application/grpc-web+proto",
        "grpcfoo": "application/grpcfoo",
        "upper_prefix": "text/plain",
        "empty": "",
        "prefix_only": "application/gr",
    },
)
def content_type_refused(server: Target, value: str | None) -> None:
    with server.connect() as to:
        answer = to.call(ECHO, content_type=value)
        assert answer.get(":status") == "415", answer
        assert answer.status is None
        to.lives()


@case(
    MUST,
    "PROTOCOL-HTTP2 Requests",
    "content-type application/grpc, with + or ; and more, is gRPC's",
    values=[
        "application/grpc",
        "application/grpc+proto",
        "application/grpc+json",
        "application/grpc;charset=utf-8",
    ],
)
def content_type_taken(server: Target, value: str) -> None:
    with server.connect() as to:
        assert to.call(ECHO, b"x", content_type=value).messages == [b"x"]


@case(
    SHOULD,
    "PROTOCOL-HTTP2 Requests",
    "any scheme, authority (or none) and user-agent will do",
    values={
        "https": {"scheme": "https"},
        "no_authority": {"authority": None},
        "agent": {"user_agent": "grpc-x/1.0 (y; z)"},
        "no_te": {"te": None},
    },
)
def other_headers(server: Target, replaced: dict[str, str | None]) -> None:
    with server.connect() as to:
        if "authority" in replaced:
            replaced = {**replaced, "host": "conformance"}
        assert to.call(ECHO, b"x", **replaced).messages == [b"x"]


@case(
    MUST,
    "PROTOCOL-HTTP2 Requests",
    "END_STREAM may come with the last DATA, an empty DATA, or trailers",
    values=["with_data", "empty_data", "padded_empty_data"],
)
def end_of_stream(server: Target, form: str) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.data(stream, message(b"x"), end=form == "with_data")
        if form != "with_data":
            to.data(stream, b"", end=True, pad=7 if form == "padded_empty_data" else None)
        assert to.answer(stream).messages == [b"x"]


# --- timeouts --------------------------------------------------------------------------------


@case(
    SHOULD,
    "PROTOCOL-HTTP2 Timeout",
    "a malformed grpc-timeout ends the call, and is not ignored",
    values=[
        "",
        "S",
        "1",
        "-1S",
        "+1S",
        "1.5S",
        "123456789S",
        "1s",
        "1h",
        "1x",
        "1 S",
        "0x1S",
        "1SS",
        "\u0661S",
    ],
)
def timeout_malformed(server: Target, value: str) -> None:
    with server.connect() as to:
        answer = to.call(ECHO, b"x", [("grpc-timeout", value)])
        assert answer.status == INTERNAL or answer.reset is not None, answer
        to.lives()


@case(
    MUST,
    "PROTOCOL-HTTP2 Timeout",
    "every unit is read, and eight digits",
    values=[
        "99999999H",
        "99999999M",
        "99999999S",
        "99999999m",
        "60000000u",
        "99999999n",
        "1H",
        "00000060S",
    ],
)
def timeout_units(server: Target, value: str) -> None:
    with server.connect() as to:
        answer = to.call(ECHO, b"x", [("grpc-timeout", value)])
        # 99,999,999 ns may pass on a slow machine; it is still that deadline's status.
        assert answer.status == OK or (value[-1] == "n" and answer.status == DEADLINE_EXCEEDED)


@case(
    MUST,
    "PROTOCOL-HTTP2 Timeout",
    "the server ends a call at its deadline by itself, and the handler hears of it",
    values=["20m", "20000u", "1n", "0S"],
)
def timeout_passes(server: Target, value: str) -> None:
    with server.connect() as to:
        answer = to.call(WAIT, b"", [("grpc-timeout", value)])
        assert answer.status == DEADLINE_EXCEEDED or answer.reset == CANCEL, answer
        if server.waiting.acquire(blocking=value[-1] in "mu"):
            server.cancelled.acquire()
        to.lives()


@case(
    MUST,
    "PROTOCOL-HTTP2 Timeout",
    "the deadline also ends a call whose message never comes",
    values={"nothing": b"", "a_prefix": b"\0\0", "a_part": message(b"abc", length=10)},
)
def timeout_without_body(server: Target, body: bytes) -> None:
    with server.connect() as to:
        stream = to.open(ECHO, [("grpc-timeout", "20m")])
        if body:
            to.data(stream, body)
        answer = to.answer(stream)
        assert answer.status == DEADLINE_EXCEEDED or answer.reset == CANCEL, answer
        to.lives()


@case(MUST, "PROTOCOL-HTTP2 Timeout", "without grpc-timeout a call has no deadline")
def no_timeout(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(WAIT)
        to.data(stream, message(b""), end=True)
        server.waiting.acquire()
        for _ in range(20):
            to.lives()
        assert not to.answers[stream].blocks
        to.frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))
        server.cancelled.acquire()


# --- messages --------------------------------------------------------------------------------


@case(
    MUST,
    "PROTOCOL-HTTP2 Data Frames",
    "DATA boundaries mean nothing",
    values={"one_byte_each": 1, "prefix_split": 3, "seven": 7},
)
def data_boundaries(server: Target, size: int) -> None:
    body = message(bytes(range(40)))
    with server.connect() as to:
        stream = to.open(ECHO)
        for at in range(0, len(body), size):
            to.data(stream, body[at : at + size], end=at + size >= len(body))
        assert to.answer(stream).messages == [bytes(range(40))]


@case(MUST, "PROTOCOL-HTTP2 Data Frames", "empty and padded DATA anywhere are taken")
def empty_and_padded_data(server: Target) -> None:
    body = message(b"padded")
    with server.connect() as to:
        stream = to.open(ECHO)
        for at in range(len(body)):
            to.data(stream, b"")
            to.data(stream, body[at : at + 1], pad=at * 20)
        to.data(stream, b"", end=True, pad=0)
        assert to.answer(stream).messages == [b"padded"]


@case(MUST, "PROTOCOL-HTTP2 Length-Prefixed-Message", "an empty message is a message")
def empty_message(server: Target) -> None:
    with server.connect() as to:
        assert to.call(ECHO, b"").messages == [b""]


@case(
    MUST,
    "PROTOCOL-HTTP2 Length-Prefixed-Message",
    "a compressed flag over 1 is INTERNAL",
    values=[2, 3, 127, 128, 255],
)
def flag_over_1(server: Target, flag: int) -> None:
    with server.connect() as to:
        assert to.body(ECHO, message(b"x", flag=flag)).status == INTERNAL
        to.lives()


@case(
    MUST,
    "PROTOCOL-HTTP2 Length-Prefixed-Message",
    "a request that ends within a prefix or a message is INTERNAL",
    values={
        "prefix_1": b"\0",
        "prefix_4": b"\0\0\0\0",
        "no_message": message(b"", length=1),
        "one_short": message(b"abc", length=4),
        "second_prefix": message(b"abc") + b"\0\0",
    },
)
def truncated(server: Target, body: bytes) -> None:
    with server.connect() as to:
        assert to.body(ECHO, body).status == INTERNAL
        to.lives()


@case(
    MUST,
    "statuscodes RESOURCE_EXHAUSTED",
    "a length over the limit is refused at once, before a byte of the message",
    values={"one_over": LIMIT + 1, "2_gib": 2**31, "4_gib": 2**32 - 1},
)
def length_over_limit(server: Target, length: int) -> None:
    with server.connect() as to:
        assert to.body(ECHO, message(b"", length=length), end=False).status == RESOURCE_EXHAUSTED
        to.lives()


@case(MUST, "statuscodes RESOURCE_EXHAUSTED", "a message of just the limit is taken")
def length_at_limit(server: Target) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, 2**24)) as to:
        window = to.server_settings[INITIAL_WINDOW_SIZE]
        stream = to.open(ECHO)
        body, sent = message(bytes(LIMIT)), 0
        while sent < len(body):
            part = body[sent : sent + 16384]
            # Both windows: the connection's is what SETTINGS cannot say, 65,535 and its updates.
            while sent + len(part) > window + to.windows.get(stream, 0) or sent + len(
                part
            ) > 65535 + to.windows.get(0, 0):
                to.take()
            to.data(stream, part, end=sent + len(part) == len(body))
            sent += len(part)
        assert to.answer(stream).status == OK


@case(
    MUST,
    "statuscodes UNIMPLEMENTED, INTERNAL",
    "a unary call without a message, and with two, is an error",
    values={"none": b"", "two": message(b"a") * 2, "three": message(b"") * 3},
)
def cardinality(server: Target, body: bytes) -> None:
    with server.connect() as to:
        assert to.body(ECHO, body).status in (UNIMPLEMENTED, INTERNAL)
        to.lives()


@case(
    MUST,
    "statuscodes UNIMPLEMENTED, INTERNAL",
    "END_STREAM on the request's HEADERS is a call without a message",
)
def end_with_headers(server: Target) -> None:
    with server.connect() as to:
        assert to.answer(to.open(ECHO, end=True)).status in (UNIMPLEMENTED, INTERNAL)


@case(
    MUST,
    "statuscodes INTERNAL",
    "a message that is no protobuf is INTERNAL",
    values={
        "garbage": b"\xff" * 64,
        "varint_of_11": b"\x08" + b"\xff" * 10 + b"\x01",
        "cut_string": b"\x0a\x7fshort",
        "utf8": b"\x0a\x03\xff\xfe\xfd",
        "field_0": b"\x00\x01",
        "wire_type_7": b"\x0f\x01",
        "end_group": b"\x0c",
    },
)
def not_protobuf(server: Target, content: bytes) -> None:
    with server.connect() as to:
        assert to.call(MODEL_INFER, content).status == INTERNAL
        to.lives()


# --- compression -----------------------------------------------------------------------------


@case(
    MUST,
    "compression Test cases",
    "gzip and deflate messages are inflated, and plain ones among them taken",
    values=["gzip", "deflate", "identity", "gzip_but_flag_0", "gzip_empty", "gzip_two_members"],
)
def compressed_requests(server: Target, form: str) -> None:
    content = b"" if form == "gzip_empty" else b"compressed " * 50
    encoding = form.partition("_")[0]
    packed = {
        "gzip": gzip.compress(content),
        "deflate": zlib.compress(content),
        "identity": content,
    }[encoding]
    body = message(packed, flag=int(encoding != "identity"))
    if form == "gzip_but_flag_0":
        body = message(content)
    if form == "gzip_two_members":
        body = message(gzip.compress(b"a") + gzip.compress(b"b"), flag=1)
    with server.connect() as to:
        answer = to.body(ECHO, body, [("grpc-encoding", encoding)])
        if form == "gzip_two_members":
            assert answer.messages == [b"ab"] or answer.status == INTERNAL
        else:
            assert answer.messages == [content]


@case(
    MUST,
    "compression Test cases",
    "a compressed flag without an encoding is INTERNAL",
    values={"none": [], "identity": [("grpc-encoding", "identity")]},
)
def flag_without_encoding(server: Target, extra: list[tuple[str, str]]) -> None:
    with server.connect() as to:
        assert to.body(ECHO, message(gzip.compress(b"x"), flag=1), extra).status == INTERNAL
        to.lives()


@case(
    MUST,
    "compression Test cases",
    "an unknown encoding is UNIMPLEMENTED; grpc-accept-encoding lists ours and not that one",
    values=["snappy", "br", "GZIP", "gzip,deflate", ""],
)
def unknown_encoding(server: Target, encoding: str) -> None:
    with server.connect() as to:
        answer = to.body(ECHO, message(b"x", flag=1), [("grpc-encoding", encoding)])
        assert answer.status == UNIMPLEMENTED, answer
        listed = (answer.get("grpc-accept-encoding") or "").replace(" ", "").split(",")
        assert {"identity", "gzip"} <= set(listed)
        assert encoding not in listed


@case(
    MUST,
    "compression Test cases",
    "what cannot be decompressed is INTERNAL",
    values={
        "garbage": b"not gzip at all",
        "cut": gzip.compress(b"x" * 1000)[:-4],
        "cut_early": gzip.compress(b"x" * 1000)[:12],
        "crc": gzip.compress(b"x" * 1000)[:-8] + bytes(8),
        "trailing": gzip.compress(b"x") + b"garbage",
        "empty": b"",
        "zlib": zlib.compress(b"x"),
    },
)
def not_gzip(server: Target, packed: bytes) -> None:
    with server.connect() as to:
        assert (
            to.body(ECHO, message(packed, flag=1), [("grpc-encoding", "gzip")]).status == INTERNAL
        )
        to.lives()


@case(
    MUST,
    "compression Test cases",
    "the limit holds for the inflated size",
    values={"one_over": LIMIT + 1, "64_mib": 64 << 20},
)
def inflated_over_limit(server: Target, size: int) -> None:
    packed = gzip.compress(bytes(size))
    with server.connect() as to:
        answer = to.body(ECHO, message(packed, flag=1), [("grpc-encoding", "gzip")])
        assert answer.status == RESOURCE_EXHAUSTED
        to.lives()


# --- metadata --------------------------------------------------------------------------------


@case(
    MUST,
    "PROTOCOL-HTTP2 Custom-Metadata",
    "`-bin` values come padded and unpadded, several joined by commas",
    values={
        "padded": ([("k-bin", "AQ==")], ["01"]),
        "unpadded": ([("k-bin", "AQ")], ["01"]),
        "two_fields": ([("k-bin", "AQ"), ("k-bin", "Ag==")], ["01", "02"]),
        "joined": ([("k-bin", "AQ,Ag==,AwQ")], ["01", "02", "0304"]),
        "empty": ([("k-bin", "")], [""]),
        "all_bytes": ([("k-bin", "+/+/")], ["fbffbf"]),
    },
)
def binary_metadata(server: Target, one: tuple[list[tuple[str, str]], list[str]]) -> None:
    sent, expected = one
    seen = [value for name, value in metadata(server, *sent) if name == "k-bin"]
    assert seen == [{"bytes": text} for text in expected]


@case(
    MUST,
    "PROTOCOL-HTTP2 Custom-Metadata",
    "`-bin` that is no base64 hurts neither server nor connection",
    values=["A", "!!!!", "AQ===", "A=Q=", "\u00e4"],
)
def binary_metadata_malformed(server: Target, value: str) -> None:
    with server.connect() as to:
        answer = to.call(METADATA, b"", [("k-bin", value)])
        assert answer.status in (OK, INTERNAL) or answer.reset is not None
        to.lives()


@case(
    MUST,
    "PROTOCOL-HTTP2 Custom-Metadata",
    "values of one key keep their order, between other keys too",
)
def duplicate_keys(server: Target) -> None:
    seen = metadata(server, ("k", "1"), ("other", "x"), ("k", "2"), ("k", "1"))
    assert seen == [["k", "1"], ["other", "x"], ["k", "2"], ["k", "1"]]


@case(
    MUST,
    "PROTOCOL-HTTP2 Custom-Metadata",
    "unknown grpc- headers are tolerated and kept from the handler",
)
def unknown_grpc_headers(server: Target) -> None:
    seen = metadata(server, ("grpc-future-thing", "1"), ("grpc-tags-bin", "AQ"), ("k", "v"))
    assert seen == [["k", "v"]]


@case(
    MUST,
    "PROTOCOL-HTTP2 Custom-Metadata",
    "a value outside ASCII is no error of the connection",
    values={"latin1": b"\xe4", "utf8": "\u00e4".encode(), "high": bytes(range(0x80, 0x100))},
)
def metadata_not_ascii(server: Target, value: bytes) -> None:
    with server.connect() as to:
        answer = to.call(METADATA, b"", [("k", value)])
        assert answer.status == OK or answer.reset is not None
        to.lives()


@case(MUST, "PROTOCOL-HTTP2 Custom-Metadata", "every character of a key and of a value arrives")
def metadata_characters(server: Target) -> None:
    key = "0123456789_-.abcdefghijklmnopqrstuvwxyz"
    value = "".join(map(chr, range(0x21, 0x7F))) + " inner space"
    assert metadata(server, (key, value)) == [[key, value]]


@case(MUST, "PROTOCOL-HTTP2 Custom-Metadata", "an empty value arrives")
def metadata_empty_value(server: Target) -> None:
    assert metadata(server, ("k", "")) == [["k", ""]]


@case(SHOULD, "PROTOCOL-HTTP2 Custom-Metadata", "metadata of 8 KiB are taken")
def metadata_of_8_kib(server: Target) -> None:
    seen = metadata(server, *[(f"k{i}", "v" * 700) for i in range(10)])
    assert len(seen) == 10


@case(
    SHOULD,
    "PROTOCOL-HTTP2 Custom-Metadata",
    "a header list over the limit fails the call and spares the connection",
    values={
        "one_field": [("k", "v" * 20000)],
        "many_fields": [(f"k{i}", "v") for i in range(1000)],
        "63_kib": [(f"k{i}", "v" * 990) for i in range(63)],
    },
)
def metadata_over_limit(server: Target, extra: list[tuple[str, str]]) -> None:
    with server.connect() as to:
        answer = to.call(METADATA, b"", extra)
        assert answer.status == RESOURCE_EXHAUSTED or answer.get(":status") == "431", answer
        to.lives()


@case(SHOULD, "PROTOCOL-HTTP2 Custom-Metadata", "the header list limit is announced")
def metadata_limit_announced(server: Target) -> None:
    with server.connect() as to:
        assert 8192 <= to.server_settings[MAX_HEADER_LIST_SIZE] <= 65536


# --- cancellation ----------------------------------------------------------------------------


@case(
    MUST,
    "PROTOCOL-HTTP2 Errors",
    "RST_STREAM from the client reaches the handler and is not answered",
    values=[0, 2, 5, 8],
)
def cancel(server: Target, code: int) -> None:
    with server.connect() as to:
        stream = to.open(WAIT)
        to.data(stream, message(b""), end=True)
        server.waiting.acquire()
        to.frame(RST_STREAM, 0, stream, struct.pack(">I", code))
        server.cancelled.acquire()
        to.lives()
        assert not to.answers[stream].frames


@case(MUST, "PROTOCOL-HTTP2 Errors", "a lost connection cancels its calls", values=["fin", "rst"])
def connection_lost(server: Target, how: str) -> None:
    import socket

    with server.connect() as to:
        streams = [to.open(WAIT) for _ in range(3)]
        for stream in streams:
            to.data(stream, message(b""), end=True)
        for _ in streams:
            server.waiting.acquire()
        if how == "rst":
            to.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in streams:
        server.cancelled.acquire()


@case(
    MUST,
    "PROTOCOL-HTTP2 Errors",
    "a reset right behind the request, before or after its message, ends the call",
    values={"headers": b"", "message": message(b"x")},
)
def cancel_at_once(server: Target, body: bytes) -> None:
    with server.connect() as to:
        sent = b""
        streams = [to.new_stream() for _ in range(20)]
        for stream in streams:
            sent += frame(HEADERS, END_HEADERS, stream, block(grpc_fields(ECHO)))
            if body:
                sent += frame(0, END_STREAM, stream, body)
            sent += frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))
        to.send(sent)
        to.lives()
