"""New connections to a server, one after another from a few threads: how many a second, and what
each costs the server. A connection is: TCP, TLS if any, both prefaces, and its end."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Client", "cpu_ns", "measure"]

# HTTP/2's client preface and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass(frozen=True)
class Client:
    """`context` None: no TLS. `resume`: with the session of the connection before."""

    port: int
    context: ssl.SSLContext | None = None
    resume: bool = False

    def connect(self, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
        """(the session to resume next time, whether this one was resumed)"""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context is None:
                self._greet(plain)
                return None, False
            with self.context.wrap_socket(
                plain, server_hostname="localhost", session=session
            ) as sealed:
                self._greet(sealed)  # the tickets of TLS 1.3 come before the server's SETTINGS
                return sealed.session, bool(sealed.session_reused)

    @staticmethod
    def _greet(connection: socket.socket) -> None:
        connection.sendall(PREFACE)
        if not connection.recv(9):
            raise ConnectionError("the server closed the connection")


def cpu_ns(pid: int) -> int:
    """CPU time of a process's living threads, in nanoseconds."""
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


def measure(client: Client, pid: int, duration_s: float, threads: int = 2) -> dict[str, Any]:
    """{"per_s", "cpu_us", "count"}; raises what a connection raised."""
    counts = [0] * threads
    problems: list[Exception] = []
    end = 0.0

    def run(index: int) -> None:
        try:
            session, _ = client.connect(None)
            ready.wait()
            while time.monotonic() < end:
                session, resumed = client.connect(session if client.resume else None)
                if resumed != client.resume:
                    raise ConnectionError(f"resumed: {resumed}, wanted: {client.resume}")
                counts[index] += 1
        except Exception as error:
            problems.append(error)
            ready.abort()

    ready = threading.Barrier(threads + 1)
    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    before, began = cpu_ns(pid), time.monotonic()
    end = began + duration_s
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    for worker in workers:
        worker.join()
    if problems:
        raise problems[0]
    took, count = time.monotonic() - began, sum(counts)
    return {
        "per_s": count / took,
        "cpu_us": (cpu_ns(pid) - before) / 1e3 / max(1, count),
        "count": count,
    }
