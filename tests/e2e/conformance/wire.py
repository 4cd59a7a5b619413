"""HTTP/2 by hand: frames of any shape go out, frames come back as they are.

Only HPACK decoding is a library's; everything a client may do wrong can be done wrong here. Waiting
is always for a frame, or for the answer to a PING that was sent behind what was to be tested: the
server takes bytes in order, so what it did not do before that answer it does not do.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = range(4, 8)
CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(8, 12)

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

# A hang is a failure; anything else is only slow.
PATIENCE_S = 30

Fields = Iterable[tuple[str | bytes, str | bytes]]


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def frame(
    kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    """`length`: what the header says when that is not the truth."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*entries: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *entry) for entry in entries))


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """RFC 7541 5.1."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([first | value])
    out = bytearray([first | most])
    value -= most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name: str | bytes, value: str | bytes, first: int = 0x00) -> bytes:
    """A field without Huffman coding. `first`: 0x00 not indexed, 0x10 never, 0x40 indexed."""
    name, value = as_bytes(name), as_bytes(value)
    return bytes([first]) + integer(len(name), 7) + name + integer(len(value), 7) + value


def block(fields: Fields) -> bytes:
    """A header block that leaves the dynamic table alone."""
    return b"".join(literal(name, value) for name, value in fields)


def message(content: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """gRPC's length-prefixed message."""
    return struct.pack(">BI", flag, len(content) if length is None else length) + content


def grpc_fields(path: str, extra: Fields = (), **replaced: str | bytes | None) -> Fields:
    """What a gRPC client sends. `replaced` by name (`_` is `-`, no `:`); None: left out."""
    fields: dict[str, str | bytes | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "conformance",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in replaced.items():
        name = name.replace("_", "-")
        fields[":" + name if ":" + name in fields else name] = value
    return [(name, value) for name, value in fields.items() if value is not None] + list(extra)


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    def number(self, at: int = 0) -> int:
        (value,) = struct.unpack_from(">I", self.payload, at)
        return int(value)


@dataclass
class Answer:
    """What came back on one stream."""

    blocks: list[list[tuple[str, bytes]]] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None
    reset_after_end: bool = False
    frames: list[Frame] = field(default_factory=list)
    goaway: int | None = None  # the connection ended instead

    def all(self, name: str) -> list[str]:
        return [v.decode("latin-1") for b in self.blocks for n, v in b if n == name]

    def get(self, name: str) -> str | None:
        found = self.all(name)
        return found[0] if found else None

    @property
    def trailers_only(self) -> bool:
        return len(self.blocks) == 1 and self.ended and not self.body

    @property
    def status(self) -> int | None:
        text = self.get("grpc-status")
        return None if text is None else int(text)

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], self.body
        while rest:
            flag, size = struct.unpack_from(">BI", rest)
            assert flag in (0, 1), f"compressed flag {flag}"
            assert len(rest) >= 5 + size, "the body ends within a message"
            found.append(rest[5 : 5 + size])
            rest = rest[5 + size :]
        return found


class ClosedError(Exception):
    """The server closed the connection."""


class Connection:
    """A connection to the server; `with` closes it."""

    def __init__(
        self,
        port: int,
        *entries: tuple[int, int],
        preface: bytes | None = None,
        window: int = 2**30,
    ) -> None:
        """`entries`: our SETTINGS. `preface`: all that is sent at first, instead of the usual."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.decoder = hpack.Decoder()
        self.decoder.max_header_list_size = 2**24
        self.received = b""
        self.server_settings: dict[int, int] = {}
        self.settings_acks = 0
        self.pings: list[bytes] = []
        self.goaways: list[Frame] = []
        self.windows: dict[int, int] = {}  # WINDOW_UPDATEs received, by stream
        self.answers: dict[int, Answer] = {}
        self.next_stream = 1
        self._open_block: Frame | None = None
        if preface is not None:
            self.send(preface)
            return
        self.send(PREFACE + settings(*entries))
        if window > 65535:
            self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", window - 65535)))
        while not self.server_settings:
            self.take()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    # --- sending ---

    def send(self, data: bytes) -> None:
        # What the server said before it left is still to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.send(frame(kind, flags, stream, payload))

    def new_stream(self) -> int:
        self.next_stream += 2
        self.answers[self.next_stream - 2] = Answer()
        return self.next_stream - 2

    def open(
        self, path: str, extra: Fields = (), *, end: bool = False, **replaced: str | None
    ) -> int:
        """A request without its body."""
        return self.open_with(grpc_fields(path, extra, **replaced), end=end)

    def open_with(self, fields: Fields, *, end: bool = False) -> int:
        stream = self.new_stream()
        payload = block(fields)
        flags = END_STREAM if end else 0
        first, rest = payload[:16384], payload[16384:]
        data = frame(HEADERS, flags | (0 if rest else END_HEADERS), stream, first)
        while rest:
            part, rest = rest[:16384], rest[16384:]
            data += frame(CONTINUATION, 0 if rest else END_HEADERS, stream, part)
        self.send(data)
        return stream

    def data(
        self, stream: int, content: bytes, *, end: bool = False, pad: int | None = None
    ) -> None:
        flags = END_STREAM if end else 0
        if pad is not None:
            content = bytes([pad]) + content + bytes(pad)
            flags |= PADDED
        out = b""
        while len(content) > 16384:
            out += frame(DATA, flags & ~END_STREAM, stream, content[:16384])
            content = content[16384:]
        self.send(out + frame(DATA, flags, stream, content))

    def call(
        self, path: str, content: bytes = b"", extra: Fields = (), **replaced: str | None
    ) -> Answer:
        """One unary call, to its end."""
        stream = self.open(path, extra, **replaced)
        self.data(stream, message(content), end=True)
        return self.answer(stream)

    def body(self, path: str, body: bytes, extra: Fields = (), *, end: bool = True) -> Answer:
        """As call(), with a body of any form."""
        stream = self.open(path, extra)
        self.data(stream, body, end=end)
        return self.answer(stream)

    # --- receiving ---

    def take(self) -> Frame:
        """The next frame, after it was looked at."""
        while len(self.received) < 9 or len(self.received) < 9 + self._size():
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                more = b""
            if not more:
                raise ClosedError
            self.received += more
        size = self._size()
        kind, flags, stream = struct.unpack_from(">BBI", self.received, 3)
        found = Frame(kind, flags, stream & 0x7FFFFFFF, self.received[9 : 9 + size])
        self.received = self.received[9 + size :]
        self._look_at(found)
        return found

    def _size(self) -> int:
        return int.from_bytes(self.received[:3], "big")

    def _look_at(self, seen: Frame) -> None:
        answer = self.answers.get(seen.stream)
        if answer is not None:
            answer.frames.append(seen)
        if seen.kind == SETTINGS:
            if seen.flags & ACK:
                self.settings_acks += 1
            else:
                for at in range(0, len(seen.payload), 6):
                    key, value = struct.unpack_from(">HI", seen.payload, at)
                    self.server_settings[key] = value
                self.server_settings.setdefault(0, 0)  # they came, were they empty
                self.send(frame(SETTINGS, ACK, 0))
        elif seen.kind == PING:
            if seen.flags & ACK:
                self.pings.append(seen.payload)
            else:
                self.send(frame(PING, ACK, 0, seen.payload))
        elif seen.kind == GOAWAY:
            self.goaways.append(seen)
        elif seen.kind == WINDOW_UPDATE:
            self.windows[seen.stream] = self.windows.get(seen.stream, 0) + seen.number()
        elif seen.kind in (HEADERS, CONTINUATION):
            self._header(seen)
        elif seen.kind == DATA and answer is not None:
            answer.body += seen.payload  # the server never pads
            answer.ended = answer.ended or bool(seen.flags & END_STREAM)
        elif seen.kind == RST_STREAM and answer is not None:
            answer.reset = seen.number()
            answer.reset_after_end = answer.ended

    def _header(self, seen: Frame) -> None:
        if seen.kind == CONTINUATION:
            first = self._open_block
            assert first is not None, "CONTINUATION without HEADERS"
            seen = Frame(
                HEADERS, first.flags | seen.flags, seen.stream, first.payload + seen.payload
            )
        self._open_block = seen
        if seen.flags & END_HEADERS:
            self._open_block = None
            answer = self.answers.setdefault(seen.stream, Answer())
            fields = self.decoder.decode(seen.payload, raw=True)
            answer.blocks.append([(name.decode(), value) for name, value in fields])
            answer.ended = answer.ended or bool(seen.flags & END_STREAM)

    def answer(self, stream: int) -> Answer:
        """What the stream brought, once it has ended or was reset."""
        answer = self.answers[stream]
        try:
            while not answer.ended and answer.reset is None:
                self.take()
        except ClosedError:
            assert self.goaways, "the connection was closed without GOAWAY"
            answer.goaway = self.goaways[-1].number(4)
        return answer

    def until(self, kind: int, *, stream: int | None = None) -> Frame:
        while True:
            seen = self.take()
            if seen.kind == kind and (stream is None or seen.stream == stream):
                return seen

    def sync(self, mark: bytes = b"in order") -> None:
        """Returns when the server took everything that was sent."""
        before = len(self.pings)
        self.frame(PING, 0, 0, mark)
        while len(self.pings) == before:
            self.take()
        assert self.pings[-1] == mark

    # --- verdicts ---

    def lives(self, path: str = "/conformance.Test/Echo") -> None:
        """The connection still serves."""
        self.sync()
        answer = self.call(path, b"still here")
        assert (answer.status, answer.messages) == (0, [b"still here"]), answer

    def dies(self, *codes: int) -> None:
        """The connection ends with GOAWAY and one of these error codes, and is closed."""
        try:
            while True:
                self.take()
        except ClosedError:
            pass
        assert self.goaways, "closed without GOAWAY"
        error = self.goaways[-1].number(4)
        assert error in codes, f"GOAWAY says {error}, not one of {codes}"

    def stream_fails(self, stream: int, *codes: int) -> None:
        """The stream is reset with one of these codes and the connection lives on. (RFC 9113 5.4.2
        lets an endpoint end the connection instead; so may ours, with the same code.)"""
        answer = self.answers[stream]
        try:
            while answer.reset is None:
                self.take()
        except ClosedError:
            assert self.goaways, "closed without GOAWAY"
            error = self.goaways[-1].number(4)
            assert error in codes, f"GOAWAY says {error}, not one of {codes}"
            return
        assert answer.reset in codes, f"RST_STREAM says {answer.reset}, not one of {codes}"
        self.lives()


def valid_field_value(text: str) -> bool:
    return re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?", text) is not None
