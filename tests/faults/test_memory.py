"""Memory that runs out: the machine's, and single allocations."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from harness import (
    Server,
    eventually,
    infer_request,
    onnx_model,
    raw_input,
    write_identity,
    write_model,
)
from ledger import Ledger, ask
from load import Load
from onnx import TensorProto
from preload import Faults
from probe import write_probe
from tritonclient.grpc import service_pb2_grpc

Start = Callable[..., Server]
Figure = Callable[[str, Any], None]
MIB = 1 << 20


class Cgroup:
    """A memory limit for the processes that are put into it."""

    def __init__(self, folder: Path, limit: str, usage: str) -> None:
        self.folder = folder
        self._limit, self._usage = folder / limit, folder / usage

    def limit(self, bytes_: int) -> None:
        self._limit.write_text(str(bytes_))

    def usage(self) -> int:
        return int(self._usage.read_text())


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    name = f"headrace-faults-{os.getpid()}"
    one = Path("/sys/fs/cgroup/memory") / name
    two = Path("/sys/fs/cgroup") / name
    for folder, limit, usage in (
        (one, "memory.limit_in_bytes", "memory.usage_in_bytes"),
        (two, "memory.max", "memory.current"),
    ):
        try:
            folder.mkdir()
        except OSError:
            continue
        if not (folder / limit).exists():
            folder.rmdir()
            continue
        yield Cgroup(folder, limit, usage)
        for _ in range(100):
            try:
                folder.rmdir()
                return
            except OSError:
                time.sleep(0.05)  # until the kernel knows that its processes are gone
        return
    pytest.skip("no right to make a memory cgroup")


class Big:
    """Identity requests of some MiB, and what became of them."""

    def __init__(self, server: Server, model: str, size: int) -> None:
        self.codes: dict[str, int] = {}
        self.wrong = 0
        self._lock = threading.Lock()
        self._server = server
        self._model = model
        self._size = size

    def ask(self, stub: Any, number: int) -> None:
        data = bytes([number % 251]) * self._size
        request = infer_request(
            self._model,
            id=str(number),
            inputs=[raw_input("X", "UINT8", [1, self._size])],
            raw_input_contents=[data],
        )
        try:
            answer = stub.ModelInfer(request, timeout=60)
        except grpc.RpcError as error:
            outcome = error.code().name
        else:
            outcome = "OK"
            if answer.id != str(number) or answer.raw_output_contents[0] != data:
                outcome = "wrong"
        with self._lock:
            self.codes[outcome] = self.codes.get(outcome, 0) + 1

    def run(self, threads: int, calls: int) -> None:
        def client(start: int) -> None:
            options = [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
            ]
            with grpc.insecure_channel(self._server.address, options) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                for number in range(calls):
                    self.ask(stub, start + number)

        made = [
            threading.Thread(target=client, args=(n * 1000,), daemon=True) for n in range(threads)
        ]
        for thread in made:
            thread.start()
        for thread in made:
            thread.join(timeout=300)
            assert not thread.is_alive(), "a call was never answered"


@pytest.mark.fault("memory limit 512 MB, big inputs")
@pytest.mark.timeout(300)
def test_big_inputs_in_a_small_cgroup(
    repository: Path, start: Start, figure: Figure, cgroup: Cgroup
) -> None:
    write_identity(repository, "identity", "UINT8")
    write_probe(repository)
    limit = 512 * MIB
    cgroup.limit(limit)
    enter = f'echo $$ > {cgroup.folder}/cgroup.procs && exec "$@"'
    server = start(wrap=("sh", "-c", enter, "-"))
    server.checked = False
    ledger = Ledger()
    ask(ledger, server.stub)
    big = Big(server, "identity", 24 * MIB)
    done = threading.Event()
    most = 0

    def look() -> None:
        nonlocal most
        while not done.is_set():
            with suppress(OSError, AssertionError):
                most = max(most, server.rss_kib() * 1024)
            done.wait(0.02)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    with Load(ledger, [server.address], connections=1, in_flight=2) as load:
        big.run(threads=40, calls=2)
        figure("RSS at most, share of the limit", most / limit)
        figure("outcomes", dict(sorted(big.codes.items())))
        assert server.process.poll() is None, f"killed:\n{server.log()}"
        load.more(200)
    done.set()
    watcher.join()
    # Small calls find no room either for as long as the large ones hold all of it.
    ledger.check({"OK", "RESOURCE_EXHAUSTED"})
    assert set(big.codes) <= {"OK", "RESOURCE_EXHAUSTED"}, big.codes
    assert sum(big.codes.values()) == 80
    figure("calls of 24 MiB", 80)
    server.terminate()
    assert server.process.wait(timeout=60) == 0
    figure("small calls' errors", len(ledger.entries) - ledger.ok())


@pytest.mark.fault("allocations fail, 10,000")
@pytest.mark.timeout(300)
def test_failing_allocations(
    repository: Path, tmp_path: Path, start: Start, figure: Figure
) -> None:
    """Every third allocation of 32 KiB and more fails, in the core and in the backends."""
    write_identity(repository, "identity", "UINT8")
    shape: list[Any] = ["batch", "columns"]
    write_model(
        repository,
        "relu",
        "",
        {
            "model.onnx": onnx_model(
                "Relu", {"X": (TensorProto.FLOAT, shape)}, {"Y": (TensorProto.FLOAT, shape)}
            )
        },
    )
    write_probe(repository)
    faults = Faults(tmp_path)
    server = start(environment=faults.environment)
    ledger = Ledger()
    ask(ledger, server.stub)
    codes: dict[str, int] = {}
    floats = np.arange(65536, dtype=np.float32)
    relu = infer_request(
        "relu",
        inputs=[raw_input("X", "FP32", [1, 65536])],
        raw_input_contents=[floats.tobytes()],
    )
    big = Big(server, "identity", 256 * 1024)
    with Load(ledger, [server.address], connections=1, in_flight=4) as load:
        faults.set("allocation_bytes", 32 * 1024)
        faults.set("fail_allocations", 3)
        rounds = 0
        while faults.get("failed_allocations") < 10_000 and rounds < 200:
            big.run(threads=4, calls=25)
            for _ in range(20):
                try:
                    answer = server.stub.ModelInfer(relu, timeout=60)
                except grpc.RpcError as error:
                    outcome = error.code().name
                else:
                    outcome = "OK"
                    assert answer.raw_output_contents[0] == floats.tobytes()
                codes[outcome] = codes.get(outcome, 0) + 1
            rounds += 1
            assert server.process.poll() is None, f"it died:\n{server.log()}"
        faults.set("fail_allocations", 0)
        failed = faults.get("failed_allocations")
        load.more(200)
    assert "wrong" not in big.codes
    calm = Big(server, "identity", 256 * 1024)
    calm.run(threads=2, calls=10)
    assert calm.codes == {"OK": 20}, "nothing is left broken"
    ledger.check({"OK", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE"})
    eventually(lambda: ask(ledger, server.stub).outcome == "OK", "it goes on")
    figure("failed allocations", failed)
    figure("calls of 256 KiB", dict(sorted(big.codes.items())))
    figure("OpenVINO's", dict(sorted(codes.items())))
    figure("small calls' errors", len(ledger.entries) - ledger.ok())
