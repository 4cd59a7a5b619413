"""The server that the cases speak to: methods that show what the wire brought."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from conformance.wire import Connection

from headrace import runtime

SERVICE = "/conformance.Test/"
ECHO = SERVICE + "Echo"  # the message
METADATA = SERVICE + "Metadata"  # JSON of the metadata that came; x-* goes back both ways
STATUS = SERVICE + "Status"  # fails with the status that the message (JSON) names
RAISE = SERVICE + "Raise"  # a handler with a defect
WAIT = SERVICE + "Wait"  # until it is cancelled or released
BIG = SERVICE + "Big"  # as many bytes as the message says
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"

LIMIT = 4 << 20  # bytes a message of these methods may have
STREAMS = 100


@dataclass
class Target:
    port: int
    core: runtime.Server
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    cancelled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    release: threading.Event = field(default_factory=threading.Event)

    def connect(self, *entries: tuple[int, int], **options: Any) -> Connection:
        return Connection(self.port, *entries, **options)

    def handled(self) -> int:
        return int(self.core.statistics()["calls_started"])


class StatusError(Exception):
    def __init__(self, code: int, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def _shown(value: str | bytes) -> Any:
    return value if isinstance(value, str) else {"bytes": value.hex()}


def _metadata(_: bytes, call: runtime.ServerCall) -> bytes:
    back = [(name, value) for name, value in call.metadata if name.startswith("x-")]
    back = [(n, v) for n, v in back if isinstance(v, bytes) or v.isascii()]
    call.send_initial_metadata(back)
    call.set_trailing_metadata(back)
    return json.dumps([[name, _shown(value)] for name, value in call.metadata]).encode()


def _status(content: bytes, _: runtime.ServerCall) -> bytes:
    wanted = json.loads(content)
    raise StatusError(wanted["code"], wanted["details"])


def _raise(_: bytes, __: runtime.ServerCall) -> bytes:
    raise RuntimeError("a defect")


@contextmanager
def running(**limits: float) -> Iterator[Target]:
    options = runtime.ServerOptions(
        host="127.0.0.1",
        port=0,
        io_threads=1,
        # A PING tells the cases that what they sent was taken.
        limits={"max_concurrent_streams": STREAMS, "ping_max_strikes": 0} | limits,
    )
    core = runtime.Server(options)
    target = Target(0, core)

    def wait(_: bytes, call: runtime.ServerCall) -> bytes:
        target.waiting.release()
        while call.is_active() and not target.release.wait(0.005):
            pass
        if not call.is_active():
            target.cancelled.release()
        return b"released"

    core.add_method(ECHO, lambda content, _: content)
    core.add_method(METADATA, _metadata)
    core.add_method(STATUS, _status)
    core.add_method(RAISE, _raise)
    core.add_method(WAIT, wait, pool="blocking")
    core.add_method(BIG, lambda content, _: bytes(int(content)))
    core.start()
    target.port = core.port
    try:
        yield target
    finally:
        target.release.set()
        core.stop(0.0)
