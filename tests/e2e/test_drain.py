"""Two servers behind one client that balances over both; one is told to stop under load."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import Server, eventually, infer_request, raw_input, write_identity
from tritonclient.grpc import service_pb2_grpc

RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.01s",
    "maxBackoff": "0.1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
UNARY_THREADS = 6
STREAM_THREADS = 4
REQUESTS_A_STREAM = 10


def request(number: int) -> Any:
    return infer_request(
        "identity",
        id=str(number),
        inputs=[raw_input("X", "INT32", [1, 2])],
        raw_input_contents=[np.array([number, -number], np.int32).tobytes()],
    )


class Load:
    """Calls on one channel from several threads until stop(): what became of them."""

    def __init__(self, servers: list[Server], retries: bool) -> None:
        config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
        if retries:
            config["methodConfig"] = [{"name": [{}], "retryPolicy": RETRIES}]
        self.channel = grpc.insecure_channel(
            "ipv4:" + ",".join(server.address for server in servers),
            options=[("grpc.service_config", json.dumps(config))],
        )
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.outcomes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._done = threading.Event()
        kinds = [self._unary] * UNARY_THREADS + [self._stream] * STREAM_THREADS
        self._threads = [
            threading.Thread(target=self._run, args=(kind, n * 1_000_000), daemon=True)
            for n, kind in enumerate(kinds)
        ]

    def _run(self, kind: Callable[[int], bool], number: int) -> None:
        while not self._done.is_set():
            number += REQUESTS_A_STREAM
            try:
                outcome = "right" if kind(number) else "wrong"
            except grpc.RpcError as error:
                outcome = f"{kind.__name__}: {error.code().name}: {error.details()}"
            with self._lock:
                self.outcomes[f"{kind.__name__} right" if outcome == "right" else outcome] += 1

    def _unary(self, number: int) -> bool:
        answer = self.stub.ModelInfer(request(number), timeout=60)
        return bool(answer.raw_output_contents == request(number).raw_input_contents)

    def _stream(self, number: int) -> bool:
        sent = [request(number + i) for i in range(REQUESTS_A_STREAM)]
        got = [
            (answer.error_message, answer.infer_response.id, answer.infer_response)
            for answer in self.stub.ModelStreamInfer(iter(sent), timeout=60)
        ]
        return [(error, id_) for error, id_, _ in got] == [("", one.id) for one in sent] and all(
            response.raw_output_contents == one.raw_input_contents
            for (_, _, response), one in zip(got, sent, strict=True)
        )

    def right(self) -> tuple[int, int]:
        return self.outcomes["_unary right"], self.outcomes["_stream right"]

    def more(self, calls: int) -> None:
        """Returns when so many more of each kind have been answered."""
        before = self.right()
        eventually(
            lambda: all(
                now >= then + calls for now, then in zip(self.right(), before, strict=True)
            ),
            f"{calls} more calls; until now {self.outcomes}",
            within_s=60,
        )

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a call was never answered"
        self.channel.close()


@pytest.fixture
def servers(repository: Path) -> Iterator[list[Server]]:
    write_identity(repository, "identity", "INT32")
    with ExitStack() as stack:
        yield [stack.enter_context(Server(repository)) for _ in range(2)]


@pytest.mark.parametrize("retries", [True, False], ids=["retry policy", "no retry policy"])
def test_a_client_of_two_servers_does_not_notice_that_one_stops(
    servers: list[Server], retries: bool
) -> None:
    leaving, staying = servers
    with Load(servers, retries) as load:
        load.more(100)
        for server in servers:
            assert server.statistics("identity").inference_count > 0
        leaving.terminate()
        assert leaving.process.wait(timeout=60) == 0
        load.more(100)
    # Calls that the server had not begun are sent again by the client's library, with or without a
    # policy: GOAWAY says which.
    assert set(load.outcomes) == {"_unary right", "_stream right"}, load.outcomes
    staying.still_answers()


def test_health_says_it_before_goaway(servers: list[Server]) -> None:
    leaving, staying = servers
    watches = {
        server: health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        for server in servers
    }
    for watch in watches.values():
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    with Load(servers, retries=False) as load:
        load.more(10)
        leaving.terminate()
        assert next(watches[leaving]).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # The watch does not keep the server.
        assert leaving.process.wait(timeout=60) == 0
        load.more(10)
    with pytest.raises(grpc.RpcError) as error:
        next(watches[leaving])
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert set(load.outcomes) == {"_unary right", "_stream right"}, load.outcomes
    watches[staying].cancel()
