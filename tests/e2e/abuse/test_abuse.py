"""Clients that mean harm, against a real server, while a neighbour goes on calling.

Whatever they do: no call of the neighbour fails, the server's memory stays within 64 MB of its
start, the attackers' connections end, and the metric says why.
"""

from __future__ import annotations

import resource
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from conformance import wire
from conformance.wire import Connection, frame
from harness import Server, eventually

LIVE = "/inference.GRPCInferenceService/ServerLive"
INFER = "/inference.GRPCInferenceService/ModelInfer"
GROWTH_KIB = 64 * 1024

REQUEST = wire.block(wire.grpc_fields(LIVE))
BIG_FIELD = wire.literal("x", "v" * 3000, first=0x40)  # becomes field 62 of the HPACK table

# Times that a test can wait for; what they are by default is tested with an injected clock.
SHORT = {
    "preface-timeout-s": 0.5,
    "header-timeout-s": 0.5,
    "body-timeout-s": 0.5,
    "first-window-timeout-s": 0.5,
    "window-timeout-s": 0.5,
    "write-timeout-s": 1,
    "keepalive-time-s": 20,
    "ping-max-strikes": 1000,
}


def flags(limits: dict[str, float]) -> list[str]:
    return [word for name, value in limits.items() for word in ("--limits", f"{name}={value}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("abuse") / "models"
    models.mkdir()
    return models


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """As it comes."""
    with Server(folder, "--max-message-bytes", str(4 << 20)) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(folder: Path) -> Iterator[Server]:
    with Server(folder, *flags(SHORT)) as running:
        yield running


@contextmanager
def neighbour(server: Server) -> Iterator[None]:
    """Calls all the while; none fails. The server is no larger in the end."""
    before = server.rss_kib()
    done = threading.Event()
    failures: list[grpc.RpcError] = []
    answered = 0

    def call() -> None:
        nonlocal answered
        with grpc.insecure_channel(
            server.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            live = channel.unary_unary(LIVE)
            while not done.is_set():
                try:
                    live(b"", timeout=30)
                    answered += 1
                except grpc.RpcError as error:
                    failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: answered > 0, "the neighbour's first call")
    try:
        yield
        seen = answered
        eventually(lambda: answered > seen + 1 or failures, "the neighbour is still served")
    finally:
        done.set()
        thread.join()
    assert not failures, failures[:3]
    assert server.rss_kib() - before < GROWTH_KIB


def exceeded(server: Server, reason: str) -> float:
    return server.metric("headrace_limits_exceeded_total", reason=reason)


def is_closed(connection: Connection) -> None:
    """Reads, and answers nothing, until the server has closed it."""
    with suppress(ConnectionResetError):
        while connection.socket.recv(65536):
            pass


def flood(connection: Connection, chunk: Callable[[int], bytes], most: int = 20_000) -> bool:
    """Sends until the server ends it. False: it never did."""
    for i in range(most):
        try:
            connection.socket.sendall(chunk(i))
        except OSError:
            return True
    return False


def odd(i: int) -> int:
    return 2 * i + 1


def opened(i: int, block: bytes = REQUEST, more: int = wire.END_HEADERS) -> bytes:
    return frame(wire.HEADERS, more, odd(i), block)


UPDATE = struct.pack(">I", 1)
OVERFLOW = struct.pack(">I", 2**31 - 1)
CANCEL = struct.pack(">I", wire.CANCEL)

FLOODS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "rapid reset": ("rapid_reset", lambda i: opened(i) + frame(3, 0, odd(i), CANCEL)),
    "made you reset": ("glitches", lambda i: opened(i) + frame(8, 0, odd(i), OVERFLOW)),
    "refused streams": ("glitches", lambda i: opened(i)),
    "CONTINUATION": (
        "continuations",
        lambda i: opened(0, more=0) if i == 0 else frame(9, 0, 1, wire.literal("a", "b")),
    ),
    "empty CONTINUATION": (
        "continuations",
        lambda i: opened(0, more=0) if i == 0 else frame(9, 0, 1),
    ),
    "SETTINGS": ("glitches", lambda i: wire.settings((wire.INITIAL_WINDOW_SIZE, i)) * 10),
    "PING": ("too_many_pings", lambda i: frame(6, 0, 0, b"pingping")),
    "PRIORITY": ("glitches", lambda i: frame(2, 0, odd(i), b"\0\0\0\0\1") * 10),
    "unknown frames": ("glitches", lambda i: frame(0xEE, 0, 0, b"x" * 100) * 10),
    "empty DATA": ("glitches", lambda i: opened(0) if i == 0 else frame(0, 0, 1) * 10),
    "WINDOW_UPDATE": ("glitches", lambda i: frame(8, 0, 0, UPDATE) * 10),
    "HPACK bomb": (
        "glitches",
        lambda i: opened(i, REQUEST + (BIG_FIELD if i == 0 else b"\xbe" * 15_000)),
    ),
    "no such method": (
        "glitches",
        lambda i: frame(1, 5, odd(i), wire.block(wire.grpc_fields("/no/Such"))),
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods(server: Server, name: str) -> None:
    reason, chunk = FLOODS[name]
    before = exceeded(server, reason)
    with neighbour(server):
        attackers = [Connection(server.port) for _ in range(3)]
        ended: list[bool] = []
        threads = [
            threading.Thread(target=lambda one=one: ended.append(flood(one, chunk)))  # type: ignore[misc]
            for one in attackers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for attacker in attackers:
            is_closed(attacker)
            attacker.socket.close()
        assert exceeded(server, reason) >= before + 3


def squeezed(mebibytes: int, wbits: int) -> bytes:
    """Zeros, as gzip (31) or deflate (15)."""
    squeeze = zlib.compressobj(9, wbits=wbits)
    return b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(mebibytes)) + squeeze.flush()


BOMBS: dict[str, tuple[str, bytes, int]] = {
    "gzip": ("gzip", squeezed(256, 31), 8),
    # It says that it is 4 MiB, which is allowed.
    "gzip that lies": ("gzip", squeezed(256, 31)[:-4] + struct.pack("<I", 4 << 20), 13),
    "deflate": ("deflate", squeezed(256, 15), 8),
    # It is 4 MiB, and no request.
    "small": ("gzip", squeezed(4, 31), 13),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_fail_and_some_of_them_end_the_connection(server: Server, kind: str) -> None:
    encoding, bomb, status = BOMBS[kind]
    before = exceeded(server, "glitches")
    with neighbour(server), Connection(server.port) as connection:
        failed = 0
        while not connection.goaways:
            stream = connection.open(INFER, grpc_encoding=encoding)
            try:
                connection.data(stream, wire.message(bomb, flag=1), end=True)
            except OSError:
                break
            answer = connection.answer(stream)
            if answer.goaway is None:
                assert answer.status == status
                failed += 1
    assert exceeded(server, "glitches") == before + 1
    assert 1 <= failed < 300


def test_a_length_that_never_comes_takes_no_memory(server: Server) -> None:
    with neighbour(server), Connection(server.port) as connection:
        for _ in range(200):
            stream = connection.open(INFER)
            connection.data(stream, wire.message(b"", length=4 << 20))
        connection.sync()


SLOW: dict[str, tuple[str, bytes, Callable[[int], bytes]]] = {
    "nothing": ("preface_timeout", b"", lambda i: b""),
    "half a preface": ("preface_timeout", wire.PREFACE[:10], lambda i: b""),
    "no SETTINGS": ("preface_timeout", wire.PREFACE, lambda i: b""),
    "half a frame head": ("header_timeout", wire.PREFACE + wire.settings(), lambda i: b"\0\0"),
    "headers that do not end": (
        "header_timeout",
        wire.PREFACE + wire.settings(),
        lambda i: opened(0, more=0),
    ),
    "a body that does not come": (
        "body_timeout",
        wire.PREFACE + wire.settings(),
        lambda i: opened(0) + frame(0, 0, 1, wire.message(b"", length=1000)),
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_clients(hasty: Server, name: str) -> None:
    reason, preface, then = SLOW[name]
    before = exceeded(hasty, reason)
    with neighbour(hasty):
        attackers = []
        for i in range(50):
            attackers.append(Connection(hasty.port, preface=preface + then(i)))
        for attacker in attackers:
            is_closed(attacker)
            attacker.socket.close()
        assert exceeded(hasty, reason) >= before + 50


def test_shut_windows(hasty: Server) -> None:
    """Answers that the client never lets out."""
    with neighbour(hasty):
        attackers = [
            Connection(hasty.port, (wire.INITIAL_WINDOW_SIZE, 0), window=0) for _ in range(20)
        ]
        for attacker in attackers:
            for _ in range(20):
                stream = attacker.open(LIVE)
                attacker.data(stream, wire.message(b""), end=True)
        for attacker in attackers:
            is_closed(attacker)
            attacker.socket.close()
        assert exceeded(hasty, "window_timeout") >= 20


def test_much_that_nobody_takes(folder: Path) -> None:
    limits = {"stall-timeout-s": 0.5, "stall-bytes": 300}
    with Server(folder, *flags(limits)) as server, neighbour(server):
        # A byte of each answer leaves, then no more.
        attackers = [
            Connection(server.port, (wire.INITIAL_WINDOW_SIZE, 1), window=0) for _ in range(10)
        ]
        for attacker in attackers:
            for _ in range(100):
                stream = attacker.open(LIVE)
                attacker.data(stream, wire.message(b""), end=True)
        for attacker in attackers:
            is_closed(attacker)
            attacker.socket.close()
        assert exceeded(server, "stalled_answers") >= 10


def test_a_client_that_asks_and_does_not_read(hasty: Server) -> None:
    with neighbour(hasty):
        attacker = Connection(hasty.port)
        ended = flood(attacker, lambda i: frame(6, 0, 0, b"pingping") * 100)
        assert ended
        attacker.socket.close()


def test_many_idle_connections(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 2000
    if hard < count + 500:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    try:
        with (
            Server(folder, *flags({"max-connections-per-peer": 0})) as server,
            neighbour(server),
        ):
            idle = [Connection(server.port) for _ in range(count)]
            assert server.metric("headrace_connections_open") >= count
            for connection in idle:
                connection.socket.close()
            eventually(lambda: server.metric("headrace_connections_open") < 10, "all are gone")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_peer_has_no_more_than_its_share(folder: Path) -> None:
    with Server(folder, *flags({"max-connections-per-peer": 50})) as server, neighbour(server):
        held = []

        def taken() -> bool:
            """Whether one more connection is; then it is held."""
            attempt = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            with suppress(ConnectionResetError):
                if attempt.recv(1):
                    held.append(attempt)
                    return True
            attempt.close()
            return False

        while len(held) < 100 and taken():
            pass
        assert 40 < len(held) < 50  # the neighbour and the fixture have theirs
        assert exceeded(server, "max_connections_per_peer") >= 1
        for attempt in held:
            attempt.close()
        held.clear()
        eventually(taken, "places are given back")
        held.pop().close()


def test_a_storm_of_disconnects(server: Server) -> None:
    linger = struct.pack("ii", 1, 0)  # RST instead of FIN
    with neighbour(server):
        for _ in range(300):
            connection = Connection(server.port)
            for _ in range(20):
                stream = connection.open(LIVE)
                connection.data(stream, wire.message(b""), end=True)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.socket.close()
        eventually(lambda: server.metric("headrace_connections_open") < 10, "all are gone")
        eventually(lambda: server.metric("headrace_calls_active") <= 1, "their calls have ended")
