"""RFC 9113."""

from __future__ import annotations

import socket
import struct

from conformance.registry import MUST, SHOULD, case
from conformance.target import ECHO, STREAMS, WAIT, Target
from conformance.wire import (
    ACK,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    ClosedError,
    Connection,
    block,
    frame,
    grpc_fields,
    literal,
    message,
    settings,
)


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


REQUEST = block(grpc_fields(ECHO))


# --- 3.4 the preface -------------------------------------------------------------------------


@case(MUST, "9113 3.4", "the server's first frame is SETTINGS")
def server_preface(server: Target) -> None:
    with server.connect(preface=PREFACE + settings()) as to:
        assert to.take().kind == SETTINGS


@case(
    MUST,
    "9113 3.4",
    "a preface that is none ends the connection",
    values={
        "http1": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" + bytes(24),
        "wrong_tail": PREFACE[:-1] + b"x" + settings(),
        "tls_hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    },
)
def invalid_preface(server: Target, sent: bytes) -> None:
    with server.connect(preface=sent) as to:
        try:
            while True:
                to.take()
        except ClosedError:
            pass


@case(MUST, "9113 3.4", "a preface not followed by SETTINGS is a PROTOCOL_ERROR")
def preface_without_settings(server: Target) -> None:
    with server.connect(preface=PREFACE + frame(PING, 0, 0, bytes(8))) as to:
        to.dies(PROTOCOL_ERROR)


@case(
    MUST, "9113 3.4", "a preface that comes byte by byte, and requests right behind it, are served"
)
def preface_in_pieces(server: Target) -> None:
    with server.connect(preface=b"") as to:
        to.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in PREFACE:
            to.send(bytes([byte]))
        to.send(settings())
        to.lives()


# --- 4 frames --------------------------------------------------------------------------------


@case(MUST, "9113 4.1", "frames of unknown types are ignored", values=[0x0B, 0x16, 0xFF])
def unknown_frame_ignored(server: Target, kind: int) -> None:
    with server.connect() as to:
        to.frame(kind, 0xFF, 0, b"whatever")
        to.frame(kind, 0, 1, b"")
        to.lives()


@case(MUST, "9113 4.1", "flags that mean nothing are ignored")
def undefined_flags_ignored(server: Target) -> None:
    with server.connect() as to:
        to.frame(PING, 0xFE, 0, b"12345678")
        assert to.until(PING).payload == b"12345678"
        to.lives()


@case(MUST, "9113 4.1", "the reserved bit of a stream identifier is ignored")
def reserved_bit_ignored(server: Target) -> None:
    with server.connect() as to:
        to.send(frame(PING, 0, 0x80000000, b"12345678"))
        assert to.until(PING).payload == b"12345678"
        to.lives()


@case(MUST, "9113 4.2", "frames of 16,384 bytes are taken", values=[16383, 16384])
def frame_size_of_2_14(server: Target, size: int) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        body = message(bytes(size - 5))
        to.data(stream, body, end=True)
        assert to.answer(stream).status == 0


@case(
    MUST,
    "9113 4.2",
    "a frame over SETTINGS_MAX_FRAME_SIZE is a FRAME_SIZE_ERROR",
    values={"data": DATA, "headers": HEADERS, "settings": SETTINGS, "unknown": 0x42},
)
def frame_too_large(server: Target, kind: int) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        size = to.server_settings.get(MAX_FRAME_SIZE, 16384) + 1
        size += -size % 6
        target = {DATA: stream, HEADERS: stream + 2}.get(kind, 0)
        to.send(frame(kind, 0, target, bytes(size)))
        to.dies(FRAME_SIZE_ERROR)


@case(
    MUST,
    "9113 4.3",
    "nothing comes between the frames of a header block",
    values={
        "priority": frame(PRIORITY, 0, 1, bytes(5)),
        "ping": frame(PING, 0, 0, bytes(8)),
        "headers_of_another": frame(HEADERS, END_HEADERS | END_STREAM, 3, REQUEST),
        "data": frame(DATA, 0, 1, b"x"),
        "unknown": frame(0x42, 0, 1, b"x"),
        "continuation_of_another": frame(CONTINUATION, END_HEADERS, 3, b""),
    },
)
def header_block_interrupted(server: Target, other: bytes) -> None:
    with server.connect() as to:
        to.send(frame(HEADERS, 0, 1, REQUEST) + other)
        to.dies(PROTOCOL_ERROR)


# --- 5 streams -------------------------------------------------------------------------------


@case(
    MUST,
    "9113 5.1",
    "on an idle stream anything but HEADERS and PRIORITY is a PROTOCOL_ERROR",
    values={
        "data": frame(DATA, 0, 1, b"x"),
        "rst_stream": frame(RST_STREAM, 0, 1, u32(8)),
        "window_update": frame(WINDOW_UPDATE, 0, 1, u32(1)),
        "continuation": frame(CONTINUATION, END_HEADERS, 1, REQUEST),
    },
)
def idle_stream(server: Target, sent: bytes) -> None:
    with server.connect() as to:
        to.send(sent)
        to.dies(PROTOCOL_ERROR)


@case(
    MUST,
    "9113 5.1",
    "after the client's END_STREAM its frames are errors of type STREAM_CLOSED",
    values={"data": (DATA, 0, b"x"), "headers": (HEADERS, END_HEADERS | END_STREAM, REQUEST)},
)
def half_closed_remote(server: Target, sent: tuple[int, int, bytes]) -> None:
    kind, flags, payload = sent
    with server.connect() as to:
        stream = to.open(WAIT)
        to.data(stream, message(b""), end=True)
        to.frame(kind, flags, stream, payload)
        to.stream_fails(stream, STREAM_CLOSED)


@case(MUST, "9113 5.1", "WINDOW_UPDATE, PRIORITY and RST_STREAM are taken in the half-closed state")
def half_closed_remote_allowed(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(WAIT)
        to.data(stream, message(b""), end=True)
        server.waiting.acquire()
        to.frame(WINDOW_UPDATE, 0, stream, u32(100))
        to.frame(PRIORITY, 0, stream, u32(0) + b"\x10")
        to.frame(RST_STREAM, 0, stream, u32(8))
        to.lives()


@case(
    MUST,
    "9113 5.1",
    "frames on a closed stream are ignored or errors of type STREAM_CLOSED",
    values={
        "data": (DATA, 0, b"x"),
        "headers": (HEADERS, END_HEADERS | END_STREAM, REQUEST),
        "window_update": (WINDOW_UPDATE, 0, u32(1)),
        "rst_stream": (RST_STREAM, 0, u32(8)),
        "priority": (PRIORITY, 0, u32(0) + b"\x10"),
    },
)
def closed_stream(server: Target, sent: tuple[int, int, bytes]) -> None:
    kind, flags, payload = sent
    with server.connect() as to:
        assert to.call(ECHO).status == 0
        to.frame(kind, flags, 1, payload)
        if kind in (DATA, HEADERS):
            try:
                to.sync()
            except ClosedError:
                assert to.goaways[-1].number(4) in (STREAM_CLOSED, PROTOCOL_ERROR)
        else:
            to.lives()


@case(MUST, "9113 5.1", "frames that crossed the server's RST_STREAM are ignored")
def frames_after_our_reset(server: Target) -> None:
    with server.connect() as to:
        answer = to.body(ECHO, message(b"", flag=2), end=False)
        assert answer.status == 13
        for _ in range(10):
            to.frame(DATA, 0, 1, b"still sending")
        to.lives()


@case(MUST, "9113 5.1.1", "a client stream with an even identifier is a PROTOCOL_ERROR")
def even_stream(server: Target) -> None:
    with server.connect() as to:
        to.frame(HEADERS, END_HEADERS | END_STREAM, 2, REQUEST)
        to.dies(PROTOCOL_ERROR)


@case(MUST, "9113 5.1.1", "a stream identifier below an earlier one is an error of the connection")
def decreasing_stream(server: Target) -> None:
    with server.connect() as to:
        to.frame(HEADERS, END_HEADERS, 5, REQUEST)
        to.frame(HEADERS, END_HEADERS, 3, REQUEST)
        to.dies(PROTOCOL_ERROR, STREAM_CLOSED)


@case(SHOULD, "9113 5.1.2", "SETTINGS_MAX_CONCURRENT_STREAMS is announced")
def concurrent_streams_announced(server: Target) -> None:
    with server.connect() as to:
        assert to.server_settings[MAX_CONCURRENT_STREAMS] == STREAMS


@case(MUST, "9113 5.1.2", "a stream too many is refused with REFUSED_STREAM, the others are served")
def concurrent_streams_enforced(server: Target) -> None:
    with server.connect() as to:
        open_ones = [to.open(ECHO) for _ in range(STREAMS)]
        to.sync()
        refused = to.open(ECHO)
        assert to.answer(refused).reset in (REFUSED_STREAM, PROTOCOL_ERROR)
        for stream in open_ones:
            to.data(stream, message(b"x"), end=True)
            assert to.answer(stream).status == 0
        to.lives()


@case(
    MUST, "9113 5.4.1", "the connection is closed after GOAWAY for an error; GOAWAY names a stream"
)
def goaway_then_close(server: Target) -> None:
    with server.connect() as to:
        to.call(ECHO)
        to.frame(DATA, 0, 0, b"")
        to.dies(PROTOCOL_ERROR)
        assert to.goaways[-1].number(0) in (1, 2**31 - 1)


# --- 6.1, 6.2 DATA and HEADERS ---------------------------------------------------------------


@case(
    MUST,
    "9113 6",
    "a frame of a stream on stream 0 is a PROTOCOL_ERROR",
    values={
        "data": (DATA, b"x"),
        "headers": (HEADERS, REQUEST),
        "priority": (PRIORITY, bytes(5)),
        "rst_stream": (RST_STREAM, u32(8)),
        "continuation": (CONTINUATION, b""),
    },
)
def on_stream_0(server: Target, sent: tuple[int, bytes]) -> None:
    with server.connect() as to:
        to.frame(sent[0], END_HEADERS if sent[0] != DATA else 0, 0, sent[1])
        to.dies(PROTOCOL_ERROR)


@case(
    MUST,
    "9113 6",
    "a frame of the connection on a stream is a PROTOCOL_ERROR",
    values={
        "settings": (SETTINGS, b""),
        "ping": (PING, bytes(8)),
        "goaway": (GOAWAY, bytes(8)),
    },
)
def not_on_stream_0(server: Target, sent: tuple[int, bytes]) -> None:
    with server.connect() as to:
        to.open(ECHO)
        to.frame(sent[0], 0, 1, sent[1])
        to.dies(PROTOCOL_ERROR)


@case(
    MUST,
    "9113 6.1",
    "padding as long as the payload or longer is a PROTOCOL_ERROR",
    values=[4, 5, 255],
)
def data_padding_too_long(server: Target, pad: int) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(DATA, PADDED, stream, bytes([pad]) + b"abc")
        to.dies(PROTOCOL_ERROR)


@case(MUST, "9113 6.1", "padding counts for flow control and is given back")
def padding_is_credited(server: Target) -> None:
    with server.connect() as to:
        window = to.server_settings.get(INITIAL_WINDOW_SIZE, 65535)
        stream = to.open(ECHO)
        sent = 0
        while sent <= 3 * window:  # else the client would wait for ever
            to.data(stream, b"", pad=255)
            sent += 256
            while sent - to.windows.get(stream, 0) > window - 256:
                to.take()
        to.data(stream, message(b"done"), end=True)
        assert to.answer(stream).messages == [b"done"]


@case(MUST, "9113 6.2", "padding longer than a header block is a PROTOCOL_ERROR")
def headers_padding_too_long(server: Target) -> None:
    with server.connect() as to:
        to.frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + b"\x82")
        to.dies(PROTOCOL_ERROR)


@case(MUST, "9113 6.2", "HEADERS with padding and priority are read")
def headers_padded_with_priority(server: Target) -> None:
    with server.connect() as to:
        stream = to.new_stream()
        payload = b"\x07" + u32(0) + b"\x0f" + REQUEST + bytes(7)
        to.frame(HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, stream, payload)
        to.data(stream, message(b"x"), end=True)
        assert to.answer(stream).messages == [b"x"]


# --- 6.3 PRIORITY, 6.4 RST_STREAM ------------------------------------------------------------


@case(SHOULD, "9113 6.3", "PRIORITY changes nothing, on any stream")
def priority_ignored(server: Target) -> None:
    with server.connect() as to:
        for stream in (1, 3, 2, 101, 2**31 - 1):
            to.frame(PRIORITY, 0, stream, u32(0) + b"\x10")
        to.lives()


@case(MUST, "9113 6.3", "PRIORITY of a length but 5 is a FRAME_SIZE_ERROR", values=[4, 6])
def priority_length(server: Target, size: int) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(PRIORITY, 0, stream, bytes(size))
        to.stream_fails(stream, FRAME_SIZE_ERROR)


@case(MUST, "9113 6.4", "RST_STREAM of a length but 4 is a FRAME_SIZE_ERROR", values=[0, 3, 5])
def rst_stream_length(server: Target, size: int) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(RST_STREAM, 0, stream, bytes(size))
        to.dies(FRAME_SIZE_ERROR)


@case(MUST, "9113 6.4", "RST_STREAM is not answered with RST_STREAM")
def rst_stream_not_answered(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(RST_STREAM, 0, stream, u32(8))
        to.sync()
        assert to.answers[stream].reset is None


# --- 6.5 SETTINGS ----------------------------------------------------------------------------


@case(MUST, "9113 6.5", "SETTINGS are acknowledged, each")
def settings_acknowledged(server: Target) -> None:
    with server.connect() as to:
        to.sync()
        before = to.settings_acks
        to.send(settings() + settings((INITIAL_WINDOW_SIZE, 70000)) + settings())
        to.sync()
        assert (before, to.settings_acks) == (1, 4)


@case(MUST, "9113 6.5", "a SETTINGS acknowledgement with a payload is a FRAME_SIZE_ERROR")
def settings_ack_with_payload(server: Target) -> None:
    with server.connect() as to:
        to.frame(SETTINGS, ACK, 0, bytes(6))
        to.dies(FRAME_SIZE_ERROR)


@case(
    MUST,
    "9113 6.5",
    "SETTINGS of a length that 6 does not divide are a FRAME_SIZE_ERROR",
    values=[1, 5, 7],
)
def settings_length(server: Target, size: int) -> None:
    with server.connect() as to:
        to.frame(SETTINGS, 0, 0, bytes(size))
        to.dies(FRAME_SIZE_ERROR)


@case(
    MUST,
    "9113 6.5.2",
    "values out of range are errors of the type the RFC names",
    values={
        "enable_push_2": (ENABLE_PUSH, 2, PROTOCOL_ERROR),
        "initial_window_2_31": (INITIAL_WINDOW_SIZE, 2**31, FLOW_CONTROL_ERROR),
        "initial_window_2_32_1": (INITIAL_WINDOW_SIZE, 2**32 - 1, FLOW_CONTROL_ERROR),
        "max_frame_16383": (MAX_FRAME_SIZE, 16383, PROTOCOL_ERROR),
        "max_frame_2_24": (MAX_FRAME_SIZE, 2**24, PROTOCOL_ERROR),
    },
)
def settings_value(server: Target, sent: tuple[int, int, int]) -> None:
    with server.connect() as to:
        to.send(settings((sent[0], sent[1])))
        to.dies(sent[2])


@case(
    MUST,
    "9113 6.5.2",
    "values at the edge of their range are taken",
    values={
        "enable_push": (ENABLE_PUSH, 0),
        "max_streams_0": (MAX_CONCURRENT_STREAMS, 0),
        "table_0": (HEADER_TABLE_SIZE, 0),
        "table_2_20": (HEADER_TABLE_SIZE, 2**20),
        "window": (INITIAL_WINDOW_SIZE, 2**31 - 1),
        "frame_least": (MAX_FRAME_SIZE, 16384),
        "frame_most": (MAX_FRAME_SIZE, 2**24 - 1),
        "header_list": (MAX_HEADER_LIST_SIZE, 8192),
    },
)
def settings_at_the_edge(server: Target, entry: tuple[int, int]) -> None:
    with server.connect(entry) as to:
        to.lives()
        to.lives()


@case(MUST, "9113 6.5.2", "unknown settings are ignored", values=[0x0, 0x7, 0xFF, 0xFFFF])
def settings_unknown(server: Target, key: int) -> None:
    with server.connect((key, 0x12345678)) as to:
        to.lives()


@case(MUST, "9113 6.5.3", "values of one SETTINGS are taken in order: the last one counts")
def settings_in_order(server: Target) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)) as to:
        stream = to.open(ECHO)
        to.data(stream, message(b"abc"), end=True)
        assert len(to.until(DATA).payload) == 1
        to.frame(WINDOW_UPDATE, 0, stream, u32(1000))
        assert to.answer(stream).messages == [b"abc"]


# --- 6.6 to 6.8 PUSH_PROMISE, PING, GOAWAY ---------------------------------------------------


@case(MUST, "9113 8.4", "PUSH_PROMISE from a client is a PROTOCOL_ERROR")
def push_promise(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(PUSH_PROMISE, END_HEADERS, stream, u32(2) + REQUEST)
        to.dies(PROTOCOL_ERROR)


@case(
    MUST,
    "9113 6.7",
    "PING is answered with its own eight bytes",
    values=["pingpong", "\0\xff\0\xff\0\xff\0\x01"],
)
def ping_answered(server: Target, mark: str) -> None:
    with server.connect() as to:
        to.sync(mark.encode("latin-1"))


@case(MUST, "9113 6.7", "a PING acknowledgement is not answered")
def ping_ack_not_answered(server: Target) -> None:
    with server.connect() as to:
        to.frame(PING, ACK, 0, b"unasked!")
        to.sync()
        assert to.pings == [b"in order"]


@case(MUST, "9113 6.7", "PING of a length but 8 is a FRAME_SIZE_ERROR", values=[0, 7, 9])
def ping_length(server: Target, size: int) -> None:
    with server.connect() as to:
        to.frame(PING, 0, 0, bytes(size))
        to.dies(FRAME_SIZE_ERROR)


@case(MUST, "9113 6.8", "after a client's GOAWAY its streams still finish")
def goaway_streams_finish(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(GOAWAY, 0, 0, u32(0) + u32(NO_ERROR) + b"bye")
        to.data(stream, message(b"last"), end=True)
        assert to.answer(stream).messages == [b"last"]


@case(MUST, "9113 6.8", "GOAWAY shorter than 8 bytes is a FRAME_SIZE_ERROR")
def goaway_length(server: Target) -> None:
    with server.connect() as to:
        to.frame(GOAWAY, 0, 0, bytes(7))
        to.dies(FRAME_SIZE_ERROR)


# --- 6.9 flow control ------------------------------------------------------------------------


@case(MUST, "9113 6.9", "WINDOW_UPDATE of a length but 4 is a FRAME_SIZE_ERROR", values=[0, 3, 5])
def window_update_length(server: Target, size: int) -> None:
    with server.connect() as to:
        to.frame(WINDOW_UPDATE, 0, 0, bytes(size))
        to.dies(FRAME_SIZE_ERROR)


@case(MUST, "9113 6.9", "an increment of 0 on the connection is a PROTOCOL_ERROR")
def window_update_0(server: Target) -> None:
    with server.connect() as to:
        to.frame(WINDOW_UPDATE, 0, 0, u32(0))
        to.dies(PROTOCOL_ERROR)


@case(MUST, "9113 6.9", "an increment of 0 on a stream is a PROTOCOL_ERROR of that stream")
def window_update_0_on_a_stream(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(WINDOW_UPDATE, 0, stream, u32(0))
        to.stream_fails(stream, PROTOCOL_ERROR)


@case(MUST, "9113 6.9.1", "a window over 2^31-1 ends the connection with FLOW_CONTROL_ERROR")
def window_overflow(server: Target) -> None:
    with server.connect() as to:
        to.frame(WINDOW_UPDATE, 0, 0, u32(2**31 - 1))
        to.frame(WINDOW_UPDATE, 0, 0, u32(2**31 - 1))
        to.dies(FLOW_CONTROL_ERROR)


@case(MUST, "9113 6.9.1", "a stream's window over 2^31-1 resets it with FLOW_CONTROL_ERROR")
def window_overflow_of_a_stream(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(WINDOW_UPDATE, 0, stream, u32(2**31 - 1))
        to.frame(WINDOW_UPDATE, 0, stream, u32(2**31 - 1))
        to.stream_fails(stream, FLOW_CONTROL_ERROR)


@case(MUST, "9113 6.9.1", "the server sends no more than a stream's window", values=[1, 5, 100])
def stream_window_respected(server: Target, window: int) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, window)) as to:
        stream = to.open(ECHO)
        to.data(stream, message(bytes(200)), end=True)
        while len(to.answers[stream].body) < 205:
            before = len(to.answers[stream].body)
            while len(to.answers[stream].body) < min(before + window, 205):
                to.take()
            to.sync()
            assert len(to.answers[stream].body) == min(before + window, 205)
            to.frame(WINDOW_UPDATE, 0, stream, u32(window))
        assert to.answer(stream).status == 0


@case(MUST, "9113 6.9.1", "the server sends no more than the connection's window over all streams")
def connection_window_respected(server: Target) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, 2**20), window=65535) as to:
        streams = [to.open(ECHO) for _ in range(4)]
        for stream in streams:
            to.data(stream, message(bytes(30000)), end=True)

        def received() -> int:
            return sum(len(to.answers[stream].body) for stream in streams)

        while received() < 65535:
            to.take()
        to.sync()
        assert received() == 65535
        to.frame(WINDOW_UPDATE, 0, 0, u32(2**20))
        for stream in streams:
            assert to.answer(stream).status == 0


@case(MUST, "9113 6.9.1", "headers and trailers are not held by a window of 0")
def headers_pass_a_closed_window(server: Target) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, 0), window=0) as to:
        answer = to.call("/no.Such/Method")
        assert answer.status == 12


@case(MUST, "9113 6.9.2", "SETTINGS_INITIAL_WINDOW_SIZE changes the windows of open streams")
def initial_window_changes_streams(server: Target) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, 0)) as to:
        stream = to.open(ECHO)
        to.data(stream, message(b"abc"), end=True)
        to.until(HEADERS, stream=stream)
        to.sync()
        assert to.answers[stream].body == b""
        to.send(settings((INITIAL_WINDOW_SIZE, 1)))
        assert len(to.until(DATA).payload) == 1
        to.send(settings((INITIAL_WINDOW_SIZE, 100)))
        assert to.answer(stream).messages == [b"abc"]


@case(
    MUST, "9113 6.9.2", "a window made negative is tracked and nothing is sent until it is positive"
)
def negative_window(server: Target) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, 3)) as to:
        stream = to.open(ECHO)
        to.data(stream, message(b"abcdef"), end=True)
        while len(to.answers[stream].body) < 3:
            to.take()
        to.send(settings((INITIAL_WINDOW_SIZE, 2)))  # -1
        to.frame(WINDOW_UPDATE, 0, stream, u32(1))  # 0
        to.sync()
        assert len(to.answers[stream].body) == 3
        to.frame(WINDOW_UPDATE, 0, stream, u32(1))  # 1
        assert len(to.until(DATA).payload) == 1
        to.frame(WINDOW_UPDATE, 0, stream, u32(100))
        assert to.answer(stream).messages == [b"abcdef"]


@case(
    MUST,
    "9113 6.9.2",
    "SETTINGS that raise a window over 2^31-1 are a FLOW_CONTROL_ERROR",
    deviation="nghttp2 resets the streams concerned instead of ending the connection; no byte is "
    "sent in excess",
)
def initial_window_overflows_a_stream(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(WINDOW_UPDATE, 0, stream, u32(2**30))
        to.send(settings((INITIAL_WINDOW_SIZE, 2**31 - 1)))
        to.stream_fails(stream, FLOW_CONTROL_ERROR)


@case(MUST, "9113 6.9", "an upload many windows long is credited as it is read")
def upload_is_credited(server: Target) -> None:
    with server.connect((INITIAL_WINDOW_SIZE, 2**24)) as to:
        window = to.server_settings.get(INITIAL_WINDOW_SIZE, 65535)
        stream = to.open(ECHO)
        body = message(bytes(3_000_000))
        sent = 0
        while sent < len(body):
            part = body[sent : sent + 16384]
            while sent + len(part) - to.windows.get(stream, 0) > window:
                to.take()
            to.data(stream, part, end=sent + len(part) == len(body))
            sent += len(part)
        assert to.answer(stream).status == 0


# --- 6.10 CONTINUATION -----------------------------------------------------------------------


@case(MUST, "9113 6.10", "a header block in several frames is one block", values=[1, 2, 5])
def continuation(server: Target, frames: int) -> None:
    with server.connect() as to:
        stream = to.new_stream()
        size = len(REQUEST) // (frames + 1)
        to.frame(HEADERS, 0, stream, REQUEST[:size])
        for i in range(1, frames):
            to.frame(CONTINUATION, 0, stream, REQUEST[i * size : (i + 1) * size])
        to.frame(CONTINUATION, END_HEADERS, stream, REQUEST[frames * size :])
        to.data(stream, message(b"x"), end=True)
        assert to.answer(stream).messages == [b"x"]


@case(MUST, "9113 6.10", "CONTINUATION after a block that has ended is a PROTOCOL_ERROR")
def continuation_of_nothing(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(CONTINUATION, END_HEADERS, stream, b"")
        to.dies(PROTOCOL_ERROR)


# --- 8 requests ------------------------------------------------------------------------------


def malformed(server: Target, fields: list[tuple[str | bytes, str | bytes]]) -> None:
    with server.connect() as to:
        stream = to.open_with(fields)
        to.stream_fails(stream, PROTOCOL_ERROR)


@case(
    MUST,
    "9113 8.2.1",
    "field names and values with forbidden bytes are malformed",
    values={
        "upper_case": ("X-Test", "v"),
        "space_in_name": ("x test", "v"),
        "nul_in_name": ("x\0y", "v"),
        "colon_in_name": ("x:y", "v"),
        "delete_in_name": ("x\x7fy", "v"),
        "high_in_name": (b"x\xffy", "v"),
        "empty_name": ("", "v"),
        "nul": ("x-test", "a\0b"),
        "lf": ("x-test", "a\nb"),
        "cr": ("x-test", "a\rb"),
        "crlf": ("x-test", "a\r\nx-injected: b"),
        "leading_space": ("x-test", " v"),
        "trailing_space": ("x-test", "v "),
        "leading_tab": ("x-test", "\tv"),
    },
)
def field_bytes(server: Target, extra: tuple[str | bytes, str]) -> None:
    malformed(server, [*grpc_fields(ECHO), extra])


@case(
    MUST,
    "9113 8.2.2",
    "connection-specific fields are malformed",
    values={
        "connection": ("connection", "keep-alive"),
        "proxy_connection": ("proxy-connection", "keep-alive"),
        "keep_alive": ("keep-alive", "timeout=5"),
        "transfer_encoding": ("transfer-encoding", "chunked"),
        "upgrade": ("upgrade", "h2c"),
    },
)
def connection_fields(server: Target, extra: tuple[str, str]) -> None:
    malformed(server, [*grpc_fields(ECHO), extra])


@case(
    MUST,
    "9113 8.2.2",
    "`te` with another value than trailers is malformed",
    values=["gzip", "trailers, gzip"],
)
def te_value(server: Target, value: str) -> None:
    malformed(server, list(grpc_fields(ECHO, te=value)))


@case(
    MUST,
    "9113 8.3",
    "pseudo-header fields that are unknown, a response's, doubled or empty are malformed",
    values={
        "unknown": [(":unknown", "x")],
        "status": [(":status", "200")],
        "two_methods": [(":method", "POST")],
        "two_paths": [(":path", ECHO)],
        "two_schemes": [(":scheme", "http")],
    },
)
def pseudo_fields(server: Target, first: list[tuple[str, str]]) -> None:
    malformed(server, [*first, *grpc_fields(ECHO)])


@case(MUST, "9113 8.3", "pseudo-header fields behind others are malformed")
def pseudo_after_regular(server: Target) -> None:
    fields = list(grpc_fields(ECHO))
    malformed(server, [*fields[1:], fields[0]])


@case(
    MUST,
    "9113 8.3.1",
    "a request without :method, :scheme or :path is malformed",
    values=["method", "scheme", "path"],
)
def pseudo_missing(server: Target, name: str) -> None:
    malformed(server, [pair for pair in grpc_fields(ECHO) if pair[0] != ":" + name])


@case(
    MUST,
    "9113 8.3.1",
    "an empty :path, and one that is no path, are malformed",
    values={"empty": "", "word": "Echo"},
)
def path_is_no_path(server: Target, path: str) -> None:
    malformed(server, list(grpc_fields(path)))


@case(MUST, "9113 8.1", "pseudo-header fields in trailers are malformed")
def pseudo_in_trailers(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(":method", "POST"))
        to.stream_fails(stream, PROTOCOL_ERROR)


@case(MUST, "9113 8.1", "a second HEADERS without END_STREAM is malformed")
def trailers_without_end(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.frame(HEADERS, END_HEADERS, stream, literal("x-trailer", "v"))
        to.stream_fails(stream, PROTOCOL_ERROR)


@case(MUST, "9113 8.1", "a request may end with trailers")
def request_trailers(server: Target) -> None:
    with server.connect() as to:
        stream = to.open(ECHO)
        to.data(stream, message(b"x"))
        to.frame(HEADERS, END_HEADERS | END_STREAM, stream, literal("x-trailer", "v"))
        assert to.answer(stream).messages == [b"x"]


@case(
    MUST,
    "9113 8.1.1",
    "a content-length that the body contradicts is malformed",
    values=["0", "7", "9", "x", "-1"],
)
def content_length(server: Target, value: str) -> None:
    with server.connect() as to:
        stream = to.open(ECHO, [("content-length", value)])
        to.data(stream, message(b"abc"), end=True)
        to.stream_fails(stream, PROTOCOL_ERROR)


@case(MUST, "9113 8.1.1", "a content-length that is true is taken")
def content_length_right(server: Target) -> None:
    with server.connect() as to:
        assert to.call(ECHO, b"abc", [("content-length", "8")]).status == 0


@case(MUST, "9113 8.2.3", "cookie may come in several fields")
def cookie_crumbs(server: Target) -> None:
    with server.connect() as to:
        assert to.call(ECHO, b"", [("cookie", "a=b"), ("cookie", "c=d")]).status == 0


@case(
    MUST, "9113 8.1", "what the server sends is well-formed: lower-case names, no forbidden bytes"
)
def response_well_formed(server: Target) -> None:
    with server.connect() as to:
        for path in (ECHO, "/no.Such/Method"):
            for fields in to.call(path, b"x").blocks:
                for name, value in fields:
                    assert name == name.lower()
                    assert not set(value) & set(b"\0\r\n")
                    assert value == value.strip(b" \t")


@case(SHOULD, "9113 9.1", "an idle connection is left open")
def idle_connection(server: Target) -> None:
    with server.connect() as to, Connection(server.port) as other:
        for _ in range(3):
            other.lives()
        to.lives()
