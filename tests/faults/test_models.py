"""Models that fail, crash, hang, become slow or hold Python's lock."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Server, eventually, onnx_model, tensor, write_model
from ledger import Ledger, ask, request_of
from load import Load, channel_to
from onnx import TensorProto
from probe import CODE, CRASH, GOOD, HANG, HOLD_GIL_MS, RAISE, batch_ms, write_probe
from tritonclient.grpc import service_pb2_grpc

Start = Callable[..., Server]
Figure = Callable[[str, Any], None]


@pytest.mark.fault("backend throws, 1 call in 100")
def test_a_model_that_raises(repository: Path, start: Start, figure: Figure) -> None:
    write_probe(repository)
    server = start()
    calm, ledger = Ledger(), Ledger()
    with Load(calm, [server.address]) as load:
        load.more(2000)
    calm.check()
    numbers = itertools.count(1)

    def one_in_100() -> tuple[int, int]:
        number = next(numbers)
        return (RAISE, number) if number % 100 == 0 else (GOOD, 0)

    with Load(ledger, [server.address], choose=one_in_100) as load:
        load.more(5000)
    ledger.check({"OK", "INTERNAL"})
    raised = [entry for entry in ledger.entries.values() if entry.op == RAISE]
    for entry in raised:
        assert entry.outcome == "INTERNAL"
        assert f"asked to raise {entry.argument}" in entry.details
    lost = ledger.outcomes(lambda entry: entry.op == GOOD)["INTERNAL"]
    assert lost == 0
    stats = server.statistics("probe")
    assert stats.inference_stats.success.count == calm.ok() + ledger.ok()
    assert stats.inference_stats.fail.count == len(raised)
    assert stats.execution_count < stats.inference_count, "there were batches"
    figure("calls", len(ledger.entries))
    figure("raised", len(raised))
    figure("batch mates lost", lost)
    figure("p99 of others ms", ledger.milliseconds(0.99))
    figure("p99 without ms", calm.milliseconds(0.99))
    ask(ledger, server.stub)
    assert ledger.ok() == len(ledger.entries) - len(raised)


@pytest.mark.fault("backend crash (SIGSEGV)")
def test_a_model_that_crashes_takes_its_server_and_no_call_of_who_has_two(
    repository: Path, start: Start, figure: Figure
) -> None:
    """Models run in the server's process: it ends, by the signal, for its supervisor to see. What a
    client of two servers asks is not lost; who asks without a retry is told UNAVAILABLE."""
    write_probe(repository)
    crashing, staying = start(), start()
    crashing.checked = False
    safe, plain = Ledger(), Ledger()
    both = [crashing.address, staying.address]
    with Load(safe, both, retries=True) as load, Load(plain, [crashing.address], connections=1):
        load.more(500)
        began = time.monotonic()
        ask(plain, crashing.stub, op=CRASH)
        told = time.monotonic() - began
        assert crashing.process.wait(timeout=60) == -signal.SIGSEGV
        load.more(500)
        restart = time.monotonic()
        again = start(port=crashing.port)
        figure("restart to ready s", time.monotonic() - restart)
        # Its clients come back by themselves.
        eventually(lambda: again.statistics("probe").inference_count > 50, "it serves again", 60)
    safe.check()
    plain.check({"OK", "UNAVAILABLE"})
    figure("server lives", "no: models run in its process; exit by SIGSEGV")
    figure("callers told after ms", told * 1e3)
    figure("calls over two servers", len(safe.entries))
    figure("lost", len(safe.entries) - safe.ok())
    figure("UNAVAILABLE without retry", plain.outcomes()["UNAVAILABLE"])


@pytest.mark.fault("backend hang")
def test_a_model_that_hangs(repository: Path, start: Start, figure: Figure) -> None:
    folder = write_probe(repository)
    write_probe(repository, "other")
    write_probe(repository, "guarded", policy="fallback: [{version: 1}]\n", version=2)
    only_new = CODE.replace("op == 3:", "op == 3 and VERSION > 1:")
    write_model(repository, "guarded", "", {"model.py": only_new}, 1)
    server = start()
    calm, ledger, others = Ledger(), Ledger(), Ledger()
    with Load(calm, [server.address], model="other", connections=2, in_flight=2) as load:
        load.more(1000)
    with Load(others, [server.address], model="other", connections=2, in_flight=2) as load:
        entry = ledger.sent(HANG, 0, 1.0)
        hanging = server.stub.ModelInfer.future(request_of(entry, "probe"), timeout=1.0)
        hanging.add_done_callback(lambda call: ledger.failed(entry, call))
        eventually((folder / "hung").exists, "it hangs")
        # What waits behind it is told at its deadline, too, by the server and not by the client
        # alone: it leaves the queue.
        for _ in range(3):
            behind = ask(ledger, server.stub, timeout_s=0.5)
            assert behind.outcome == "DEADLINE_EXCEEDED"
        eventually(lambda: entry.outcome, "the one that hangs, too")
        eventually(lambda: server.pending("probe") == 0, "the queue is empty")
        late = [e.seconds - (e.timeout_s or 0) for e in ledger.ended()]
        load.more(1000)
        # A model with a fallback answers all the same, in time.
        guarded = ask(ledger, server.stub, model="guarded", op=HANG, timeout_s=3)
        assert guarded.outcome == "OK", guarded
        assert guarded.parameters["hr.fallback"] == "deadline"
    (folder / "release").touch()
    (repository / "guarded" / "release").touch()
    eventually(lambda: ask(ledger, server.stub, timeout_s=5).outcome == "OK", "it goes on")
    calm.check()
    others.check()
    ledger.check({"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
    figure("DEADLINE_EXCEEDED", ledger.outcomes()["DEADLINE_EXCEEDED"])
    figure("latest after its deadline ms", max(late) * 1e3)
    figure("p99 of another model ms", others.milliseconds(0.99))
    figure("without ms", calm.milliseconds(0.99))
    figure("answer by fallback after ms of 3000", guarded.seconds * 1e3)
    figure("watchdog", "none: a thread inside a model cannot be ended; its instance is lost")


@pytest.mark.fault("backend slow x20")
def test_a_model_that_becomes_slow(repository: Path, start: Start, figure: Figure) -> None:
    folder = write_probe(repository)
    batch_ms(folder, 5)
    server = start()
    ledger, slow, after = Ledger(), Ledger(), Ledger()
    options: dict[str, Any] = {"connections": 4, "in_flight": 32, "timeout_s": 0.5}
    with Load(ledger, [server.address], **options) as load:
        load.more(1000)
    batch_ms(folder, 100)
    # Until the model's new cost is known, calls wait in vain; then they are refused instead.
    with Load(slow, [server.address], **options):
        refused = eventually(lambda: slow.outcomes()["RESOURCE_EXHAUSTED"] > 50, "sheds", 60)
        assert refused
        began, before = time.monotonic(), slow.ok()
        eventually(lambda: slow.ok() >= before + 200, "what it can do it does", 90)
        goodput = (slow.ok() - before) / (time.monotonic() - began)
        batch_ms(folder, 5)
        recovering = time.monotonic()
        eventually(lambda: slow.ok() >= before + 2000, "it is as fast as before", 90)
        figure("1800 more answers after s", time.monotonic() - recovering)
    with Load(after, [server.address], connections=1, in_flight=4, timeout_s=5) as load:
        load.more(500)
    ledger.check({"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
    slow.check({"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
    after.check()
    shed = [e for e in slow.ended() if e.outcome == "RESOURCE_EXHAUSTED"]
    figure("goodput of the slow model /s (of 80)", goodput)
    figure("refused", len(shed))
    figure("refusal p50 ms", slow.milliseconds(0.5, lambda e: e.outcome == "RESOURCE_EXHAUSTED"))
    figure("in vain", slow.outcomes()["DEADLINE_EXCEEDED"])
    figure("answers", slow.ok())


@pytest.mark.fault("GIL held by a handler 5 s")
def test_python_that_holds_its_lock(repository: Path, start: Start, figure: Figure) -> None:
    folder = write_probe(repository)
    batch: list[Any] = ["batch", 4]
    write_model(
        repository,
        "relu",
        "",
        {
            "model.onnx": onnx_model(
                "Relu", {"X": (TensorProto.FLOAT, batch)}, {"Y": (TensorProto.FLOAT, batch)}
            )
        },
    )
    server = start()
    ones = np.ones((1, 4), np.float32)

    def relu() -> float:
        began = time.monotonic()
        np.testing.assert_array_equal(
            server.client.infer("relu", [tensor("X", ones)], client_timeout=60).as_numpy("Y"), ones
        )
        return time.monotonic() - began

    calm = sorted(relu() for _ in range(500))
    ledger = Ledger()
    holder = ledger.sent(HOLD_GIL_MS, 5000, 60)
    with channel_to([server.address]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        holding = stub.ModelInfer.future(request_of(holder, "probe"), timeout=60)
        eventually((folder / "hung").exists, "the lock is held")
        during = []
        while not holding.done():
            during.append(relu())
            assert server.client.is_server_live(client_timeout=60)
            if len(during) == 3:
                # Other Python waits, and is told at its deadline.
                assert ask(ledger, stub, timeout_s=0.5).outcome == "DEADLINE_EXCEEDED"
        ledger.answered(holder, holding.result())
    assert len(during) > 3, "the core answers while Python is stuck"
    eventually(lambda: ask(ledger, server.stub).outcome == "OK", "Python goes on")
    ledger.check({"OK", "DEADLINE_EXCEEDED"})
    during.sort()
    assert holder.seconds >= 5
    figure("calls of an OpenVINO model meanwhile", len(during))
    figure("p99 ms", during[int(0.99 * len(during))] * 1e3)
    figure("slowest ms", during[-1] * 1e3)
    figure("p99 without ms", calm[int(0.99 * len(calm))] * 1e3)
