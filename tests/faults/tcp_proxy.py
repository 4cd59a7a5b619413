"""A network that misbehaves: a TCP proxy between clients and a server.

with Proxy(server.port) as proxy:
    load = Load(ledger, [proxy.address])
    proxy.delay_s = 0.2     # every piece, both ways
    proxy.black_hole = True # takes everything, passes nothing on
    proxy.corrupt = True    # changes a byte in every piece from client to server
    proxy.cut()             # resets every connection
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Proxy:
    """Threads: three a connection and one that accepts; for tens of connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay_s = 0.0
        self.black_hole = False
        self.corrupt = False
        self.connections = 0
        self._random = random.Random(11)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Proxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in list(self._threads):
            thread.join(timeout=10)

    def cut(self) -> None:
        with self._lock:
            sockets = list(self._open)
        for one in sockets:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            self.connections += 1
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            left = [2]
            self._start(self._pass, client, server, True, left)
            self._start(self._pass, server, client, False, left)

    def _pass(
        self, source: socket.socket, target: socket.socket, to_server: bool, left: list[int]
    ) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.black_hole:
                    continue
                if self.corrupt and to_server:
                    changed = bytearray(piece)
                    changed[self._random.randrange(len(changed))] ^= 1 + self._random.randrange(255)
                    piece = bytes(changed)
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        with self._lock:
            left[0] -= 1
            if left[0]:
                return
            self._open -= {source, target}
        source.close()
        target.close()
