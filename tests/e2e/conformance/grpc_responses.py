"""What gRPC asks of a server that answers."""

from __future__ import annotations

import gzip
import json
import threading
from urllib.parse import unquote

from conformance.registry import MUST, SHOULD, case
from conformance.target import (
    BIG,
    ECHO,
    METADATA,
    MODEL_INFER,
    RAISE,
    STATUS,
    WAIT,
    Target,
    running,
)
from conformance.wire import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    NO_ERROR,
    ClosedError,
    message,
)

UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 2, 4, 12, 13, 14


@case(
    MUST,
    "PROTOCOL-HTTP2 Responses",
    "headers, messages, trailers: one HEADERS, DATA, one HEADERS that ends the stream",
)
def response_order(server: Target) -> None:
    with server.connect() as to:
        answer = to.call(ECHO, b"abc")
        kinds = [frame.kind for frame in answer.frames if frame.kind in (DATA, HEADERS)]
        assert kinds[0] == kinds[-1] == HEADERS
        assert set(kinds[1:-1]) == {DATA}
        assert [bool(frame.flags & END_STREAM) for frame in answer.frames] == [False] * (
            len(answer.frames) - 1
        ) + [True]


@case(
    MUST,
    "PROTOCOL-HTTP2 Responses",
    "headers: :status 200, content-type application/grpc; grpc-status in the trailers, for OK too",
)
def response_headers(server: Target) -> None:
    with server.connect() as to:
        headers, trailers = to.call(ECHO, b"abc").blocks
        first = dict(headers)
        assert headers[0] == (":status", b"200")
        assert first["content-type"].startswith(b"application/grpc")
        assert "grpc-status" not in first
        assert dict(trailers)["grpc-status"] == b"0"
        assert not any(name.startswith(":") for name, _ in trailers)


@case(
    MUST,
    "PROTOCOL-HTTP2 Responses",
    "Trailers-Only is one HEADERS with :status, content-type and grpc-status",
    values={"method": "/no.Such/Method", "raised": RAISE},
)
def trailers_only(server: Target, path: str) -> None:
    with server.connect() as to:
        answer = to.call(path)
        assert answer.trailers_only
        fields = dict(answer.blocks[0])
        assert fields[":status"] == b"200"
        assert fields["content-type"].startswith(b"application/grpc")
        assert int(fields["grpc-status"]) > 0


@case(
    MUST,
    "PROTOCOL-HTTP2 Responses",
    "every status code is sent as its number",
    values=list(range(1, 17)),
)
def status_codes(server: Target, code: int) -> None:
    with server.connect() as to:
        answer = to.call(STATUS, json.dumps({"code": code, "details": "said"}).encode())
        assert (answer.get("grpc-status"), answer.get("grpc-message")) == (str(code), "said")


@case(
    MUST,
    "PROTOCOL-HTTP2 Status-Message",
    "grpc-message is percent-encoded UTF-8, upper-case, with 0x20-0x7E but % as they are",
    values={
        "plain": ("plain text, ~ and all", "plain text, ~ and all"),
        "percent": ("100%", "100%25"),
        "umlaut": ("\u00e4", "%C3%A4"),
        "emoji": ("\U0001f608", "%F0%9F%98%88"),
        "control": ("a\r\nb\tc\x00", "a%0D%0Ab%09c%00"),
        "delete": ("\x7f", "%7F"),
        "special_status_message": (
            "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n",
            "%09%0Atest with whitespace%0D%0Aand Unicode BMP %E2%98%BA and non-BMP "
            "%F0%9F%98%88%09%0A",
        ),
    },
)
def status_message(server: Target, one: tuple[str, str]) -> None:
    details, encoded = one
    with server.connect() as to:
        answer = to.call(STATUS, json.dumps({"code": 2, "details": details}).encode())
        assert answer.get("grpc-message") == encoded


@case(
    SHOULD,
    "PROTOCOL-HTTP2 Status-Message",
    "a message with outer spaces still makes a valid header field",
)
def status_message_spaces(server: Target) -> None:
    with server.connect() as to:
        answer = to.call(STATUS, json.dumps({"code": 2, "details": "  spaced  "}).encode())
        sent = answer.get("grpc-message")
        assert sent is not None
        assert sent == sent.strip(" ")
        assert unquote(sent) == "  spaced  "


@case(
    SHOULD,
    "PROTOCOL-HTTP2 Status-Message",
    "a message too long for header lists is cut, between characters, and the status arrives",
)
def status_message_long(server: Target) -> None:
    with server.connect() as to:
        answer = to.call(STATUS, json.dumps({"code": 9, "details": "\u00e4" * 100000}).encode())
        assert answer.status == 9
        text = answer.get("grpc-message") or ""
        assert 1000 < len(text) <= 8192
        assert set(unquote(text.rstrip("."))) == {"\u00e4"}


@case(MUST, "statuscodes UNKNOWN", "a handler that raises is UNKNOWN")
def handler_raises(server: Target) -> None:
    with server.connect() as to:
        assert to.call(RAISE).status == UNKNOWN
        to.lives()


@case(
    MUST,
    "PROTOCOL-HTTP2 Custom-Metadata",
    "a handler's metadata go out with headers and trailers, in order, `-bin` unpadded",
)
def metadata_out(server: Target) -> None:
    sent = [("x-a", "1"), ("x-b-bin", "AQ=="), ("x-a", "2"), ("x-c-bin", "AQID"), ("x-d-bin", "")]
    back = [
        ("x-a", b"1"),
        ("x-b-bin", b"AQ"),
        ("x-a", b"2"),
        ("x-c-bin", b"AQID"),
        ("x-d-bin", b""),
    ]
    with server.connect() as to:
        answer = to.call(METADATA, b"", sent)
        for fields in answer.blocks:
            assert [pair for pair in fields if pair[0].startswith("x-")] == back


@case(
    SHOULD,
    "PROTOCOL-HTTP2 Responses",
    "an answer before the request's end is followed by RST_STREAM(NO_ERROR)",
    values={"unknown_method": ("/no.Such/Method", b""), "bad_flag": (ECHO, message(b"", flag=9))},
)
def early_answer(server: Target, one: tuple[str, bytes]) -> None:
    path, body = one
    with server.connect() as to:
        stream = to.open(path)
        if body:
            to.data(stream, body)
        answer = to.answer(stream)
        assert answer.ended, "trailers come first"
        while answer.reset is None:
            to.take()
        assert (answer.reset, answer.reset_after_end) == (NO_ERROR, True)
        to.lives()


@case(MUST, "statuscodes Order", "nothing follows the status on a stream")
def nothing_after_status(server: Target) -> None:
    with server.connect() as to:
        answer = to.call(ECHO, b"x")
        count = len(answer.frames)
        to.lives()
        assert len(answer.frames) == count


@case(
    MUST,
    "PROTOCOL-HTTP2 Responses",
    "large answers are whole",
    values=[16379, 16384, 65536, 3_000_001],
)
def large_answers(server: Target, size: int) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, 2**24)) as to:
        answer = to.call(BIG, str(size).encode())
        assert (answer.status, [len(m) for m in answer.messages]) == (0, [size])


@case(MUST, "PROTOCOL-HTTP2 Responses", "the answers of concurrent calls do not mix")
def concurrent_answers(server: Target) -> None:
    with server.connect() as to:
        streams = [to.open(ECHO) for _ in range(50)]
        for stream in reversed(streams):
            to.data(stream, message(str(stream).encode() * 500), end=True)
        for stream in streams:
            assert to.answer(stream).messages == [str(stream).encode() * 500]


@case(
    SHOULD,
    "compression Negotiation",
    "grpc-accept-encoding is in every answer",
    values={"ok": ECHO, "error": "/no.Such/Method"},
)
def accept_encoding_sent(server: Target, path: str) -> None:
    with server.connect() as to:
        listed = (to.call(path).get("grpc-accept-encoding") or "").replace(" ", "").split(",")
        assert set(listed) == {"identity", "deflate", "gzip"}


@case(
    MUST,
    "compression Negotiation",
    "an answer is compressed only with an encoding the client listed, and its flag is true",
    values={"none": None, "identity": "identity", "snappy": "snappy", "gzip": "identity,gzip"},
)
def response_compression(server: Target, accepted: str | None) -> None:
    extra = [] if accepted is None else [("grpc-accept-encoding", accepted)]
    content = b"compress me " * 1000
    with server.connect() as to:
        stream = to.open(ECHO, [*extra, ("grpc-encoding", "gzip")])
        to.data(stream, message(gzip.compress(content), flag=1), end=True)
        answer = to.answer(stream)
        encoding = answer.get("grpc-encoding") or "identity"
        assert encoding in ("identity", *(accepted or "").split(","))
        (body,) = answer.messages
        flag = answer.body[0]
        assert flag == 0 or encoding != "identity"
        assert (gzip.decompress(body) if flag else body) == content


@case(
    MUST,
    "statuscodes Library",
    "statuses that only applications may use are not the wire's own",
    values={
        "flag": message(b"", flag=7),
        "cut": b"\0\0",
        "none": b"",
        "long": message(b"", length=2**31),
    },
)
def no_application_statuses(server: Target, body: bytes) -> None:
    with server.connect() as to:
        assert to.body(ECHO, body).status not in (0, 3, 5, 6, 9, 10, 11, 15)


@case(
    MUST,
    "services Health",
    "Check: a known service SERVING or NOT_SERVING, an unknown one NOT_FOUND",
)
def health_check(server: Target) -> None:
    check = "/grpc.health.v1.Health/Check"
    server.core.set_health("conformance", True)
    with server.connect() as to:
        named = b"\x0a\x0bconformance"
        assert to.call(check, named).messages == [b"\x08\x01"]
        server.core.set_health("conformance", False)
        assert to.call(check, named).messages == [b"\x08\x02"]
        assert to.call(check, b"\x0a\x02no").status == 5


@case(
    MUST,
    "services Health",
    "Watch: the status at once, SERVICE_UNKNOWN for an unknown service, and the stream stays",
)
def health_watch(server: Target) -> None:
    with server.connect() as to:
        stream = to.open("/grpc.health.v1.Health/Watch")
        to.data(stream, message(b"\x0a\x02no"), end=True)
        to.until(DATA)
        assert to.answers[stream].messages == [b"\x08\x03"]
        to.lives()
        assert not to.answers[stream].ended


# --- the end of a connection -----------------------------------------------------------------


@case(
    MUST,
    "keepalive Shutdown",
    "a graceful stop sends GOAWAY(2^31-1), then GOAWAY(last), and running streams finish",
)
def graceful_stop(_: Target) -> None:
    with running() as server, server.connect() as to:
        stream = to.open(WAIT)
        to.data(stream, message(b""), end=True)
        server.waiting.acquire()
        stop = threading.Thread(target=server.core.stop, args=(60.0,))
        stop.start()
        assert to.until(GOAWAY).number(0) == 2**31 - 1
        last = to.until(GOAWAY)
        assert (last.number(0), last.number(4)) == (stream, NO_ERROR)
        server.release.set()
        assert to.answer(stream).messages == [b"released"]
        stop.join()


@case(
    MUST,
    "keepalive Shutdown",
    "a stream opened between the two GOAWAYs is served or told UNAVAILABLE",
)
def stream_between_goaways(_: Target) -> None:
    with running() as server, server.connect() as to:
        waiting = to.open(WAIT)
        to.data(waiting, message(b""), end=True)
        server.waiting.acquire()
        stop = threading.Thread(target=server.core.stop, args=(60.0,))
        stop.start()
        to.until(GOAWAY)
        answer = to.call(ECHO, b"x")
        assert answer.status in (0, UNAVAILABLE) or answer.reset == 7
        server.release.set()
        assert to.answer(waiting).status == 0
        stop.join()


@case(
    MUST,
    "keepalive Shutdown",
    "calls that outlive the grace are ended with a status, and the connection is closed",
)
def grace_passes(_: Target) -> None:
    with running() as server, server.connect() as to:
        stream = to.open(WAIT)
        to.data(stream, message(b""), end=True)
        server.waiting.acquire()
        stop = threading.Thread(target=server.core.stop, args=(0.0,))
        stop.start()
        try:
            answer = to.answer(stream)
            assert answer.status in (1, UNAVAILABLE) or answer.reset is not None, answer
        except ClosedError:
            assert to.goaways
        server.cancelled.acquire()
        stop.join()


@case(
    SHOULD,
    "keepalive Pings",
    "too many PINGs without data end the connection with ENHANCE_YOUR_CALM, too_many_pings",
)
def ping_strikes(_: Target) -> None:
    with running(ping_max_strikes=2) as server, server.connect() as to:
        to.open(WAIT)
        for _ in range(2000):
            to.frame(6, 0, 0, bytes(8))
        to.dies(11)
        assert to.goaways[-1].payload[8:] == b"too_many_pings"


@case(
    MUST, "statuscodes INTERNAL", "an unknown model is not the wire's matter: the answer says which"
)
def unknown_model(server: Target) -> None:
    with server.connect() as to:
        answer = to.call(MODEL_INFER, b"\x0a\x04none")
        assert answer.status not in (0, INTERNAL, UNIMPLEMENTED)
