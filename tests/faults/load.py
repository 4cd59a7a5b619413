"""Calls without a pause, all of them in a ledger."""

from __future__ import annotations

import heapq
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from harness import eventually
from ledger import Entry, Ledger, request_of
from tritonclient.grpc import service_pb2_grpc

# What a client that wants to lose nothing has, as a service config: UNAVAILABLE is asked again.
RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.05s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_PAUSE_S = 0.02  # after an error


def channel_to(
    addresses: Sequence[str],
    *,
    retries: bool = False,
    credentials: Any = None,
    options: Sequence[tuple[str, Any]] = (),
) -> Any:
    """A channel with a connection of its own to each address."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        config["methodConfig"] = [{"name": [{}], "retryPolicy": RETRIES}]
    target = "ipv4:" + ",".join(addresses) if len(addresses) > 1 else addresses[0]
    every: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        *options,
    ]
    if credentials is not None:
        return grpc.secure_channel(target, credentials, every)
    return grpc.insecure_channel(target, every)


class Load:
    """`connections` times `in_flight` calls at once, each followed by the next, until the end of
    the `with`; then it waits for those that run."""

    def __init__(
        self,
        ledger: Ledger,
        addresses: Sequence[str],
        *,
        connections: int = 4,
        in_flight: int = 8,
        model: str = "probe",
        timeout_s: float | None = 60,
        retries: bool = False,
        choose: Callable[[], tuple[int, int]] = lambda: (0, 0),
        metadata: Sequence[tuple[str, str]] = (),
        credentials: Any = None,
    ) -> None:
        """`choose` says what the next request asks for: (op, argument)."""
        self.ledger = ledger
        self._model = model
        self._timeout_s = timeout_s
        self._choose = choose
        self._metadata = tuple(metadata)
        self._channels = [
            channel_to(addresses, retries=retries, credentials=credentials)
            for _ in range(connections)
        ]
        self._in_flight = in_flight
        self._running = 0
        self._changed = threading.Condition()
        self._done = threading.Event()
        self._later: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pacer = threading.Thread(target=self._pace, daemon=True)

    def _send(self, stub: Any) -> None:
        if self._done.is_set():
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
            return
        entry = self.ledger.sent(*self._choose(), self._timeout_s)
        call = stub.ModelInfer.future(
            request_of(entry, self._model), timeout=self._timeout_s, metadata=self._metadata
        )
        call.add_done_callback(lambda ended: self._ended(stub, entry, ended))

    def _ended(self, stub: Any, entry: Entry, call: Any) -> None:
        try:
            if call.code() is grpc.StatusCode.OK:
                self.ledger.answered(entry, call.result())
                self._send(stub)
            else:
                self.ledger.failed(entry, call)
                self._later.put((time.monotonic() + _PAUSE_S, stub))
        except Exception as error:
            self.ledger.problem(f"request {entry.number}: {error!r}")

    def _pace(self) -> None:
        waiting: list[tuple[float, int, Any]] = []
        for number in iter(int, 1):
            timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            try:
                item = self._later.get(timeout=timeout)
            except queue.Empty:
                self._send(heapq.heappop(waiting)[2])
                continue
            if item is None:
                return
            heapq.heappush(waiting, (item[0], id(item) + number, item[1]))
            if self._done.is_set():
                while waiting:
                    self._send(heapq.heappop(waiting)[2])

    def __enter__(self) -> Load:
        self._pacer.start()
        for channel in self._channels:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for _ in range(self._in_flight):
                with self._changed:
                    self._running += 1
                self._send(stub)
        return self

    def more(self, answers: int, within_s: float = 90) -> None:
        """Returns when so many more have been answered well."""
        goal = self.ledger.ok() + answers
        eventually(
            lambda: self.ledger.ok() >= goal,
            f"{answers} more answers; until now {self.ledger.outcomes()}",
            within_s,
        )

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with self._changed:
            ended = self._changed.wait_for(lambda: self._running == 0, timeout=150)
        self._later.put(None)
        self._pacer.join(timeout=10)
        if not ended:
            self.ledger.problem(f"{self._running} calls never ended")
        for channel in self._channels:
            channel.close()


class Streams:
    """The same with ModelStreamInfer: threads that send `length` requests a stream, again and
    again. Answers come by id, so a second one or a foreign one is seen."""

    def __init__(
        self,
        ledger: Ledger,
        addresses: Sequence[str],
        *,
        count: int = 2,
        length: int = 10,
        model: str = "probe",
        retries: bool = False,
    ) -> None:
        self.ledger = ledger
        self._model = model
        self._length = length
        self._channel = channel_to(addresses, retries=retries)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def _run(self) -> None:
        while not self._done.is_set():
            entries = {
                str(entry.number): entry
                for entry in (self.ledger.sent(0, 0, 60) for _ in range(self._length))
            }
            requests = [request_of(entry, self._model) for entry in entries.values()]
            open_ = dict(entries)
            try:
                for answer in self._stub.ModelStreamInfer(iter(requests), timeout=60):
                    entry = entries.get(answer.infer_response.id)
                    if entry is None or answer.error_message:
                        self.ledger.problem(f"in a stream: {answer}")
                        continue
                    self.ledger.answered(entry, answer.infer_response)
                    open_.pop(answer.infer_response.id, None)
            except grpc.RpcError as error:
                for entry in open_.values():
                    self.ledger.failed(entry, error)
                time.sleep(_PAUSE_S)

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=150)
            if thread.is_alive():
                self.ledger.problem("a stream never ended")
        self._channel.close()
