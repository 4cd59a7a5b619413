"""The process: signals, kills, stops, the clock, descriptors and threads that run out."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Server, eventually
from ledger import Ledger, ask, check_tickets, request_of
from load import Load, Streams, channel_to
from preload import Faults
from probe import HANG, RAISE, batch_ms, write_asking, write_probe
from tritonclient.grpc import service_pb2_grpc

from headrace.admin_socket import default_admin_socket
from headrace.client.admin import AdminClient

Start = Callable[..., Server]
Figure = Callable[[str, Any], None]
HOUR_S = 3600


@pytest.mark.fault("SIGTERM under load, a client with 2 servers")
def test_sigterm_under_load(repository: Path, start: Start, figure: Figure) -> None:
    batch_ms(write_probe(repository), 2)
    leaving, staying = start(), start()
    both = [leaving.address, staying.address]
    unary, streams = Ledger(), Ledger()
    # No retry policy: what a stopping server has not begun, GOAWAY says, and the client's library
    # asks the other one.
    with Load(unary, both, connections=50, in_flight=8) as load, Streams(streams, both):
        load.more(2000)
        began = time.monotonic()
        leaving.terminate()
        assert leaving.process.wait(timeout=90) == 0
        figure("from SIGTERM to the end s", time.monotonic() - began)
        load.more(2000)
    unary.check()
    streams.check()
    figure("calls", len(unary.entries))
    figure("requests in streams", len(streams.entries))
    figure("errors at the client", 0)


@pytest.mark.fault("grace over; 2nd SIGTERM")
@pytest.mark.parametrize("second", [False, True], ids=["grace over", "second signal"])
def test_the_end_of_patience(repository: Path, start: Start, figure: Figure, second: bool) -> None:
    folder = write_probe(repository)
    server = start("--exit-timeout-secs", "60" if second else "1")
    server.checked = False
    ledger = Ledger()
    calls = []
    for number in range(20):
        entry = ledger.sent(HANG, 0, 60)
        call = server.stub.ModelInfer.future(request_of(entry, "probe"), timeout=60)
        call.add_done_callback(lambda call, entry=entry: ledger.failed(entry, call))
        calls.append(call)
        if number == 0:
            eventually((folder / "hung").exists, "the first hangs")
    eventually(lambda: server.pending("probe") == 19, "19 wait")
    server.terminate()
    if second:
        eventually(lambda: "stopping" in server.log(), "it waits")
        began = time.monotonic()
        server.terminate()
    else:
        began = time.monotonic() + 1
    status = server.process.wait(timeout=60)
    figure(f"exit after s, {'second signal' if second else 'grace over'}", time.monotonic() - began)
    figure("status", status)
    assert status == 1
    eventually(lambda: len(ledger.ended()) == 20, "every caller is told")
    assert set(ledger.outcomes()) <= {"UNAVAILABLE", "CANCELLED"}, ledger.outcomes()
    assert not ledger.problems
    figure("told UNAVAILABLE or CANCELLED", len(ledger.ended()))


@pytest.mark.fault("SIGKILL + restart, 50 times")
@pytest.mark.timeout(600)
def test_kill_and_restart(tmp_path: Path, figure: Figure) -> None:
    """A version that was taken back stays out, tickets that clients were told of are on the disk,
    and clients with a retry policy and patience get every answer."""
    repository = tmp_path / "models"
    repository.mkdir()
    write_probe(repository)
    write_probe(repository, version=2)
    tickets = tmp_path / "tickets.db"
    write_asking(repository)
    kills = 50
    chance = random.Random(3)
    ledger = Ledger()
    ready: list[float] = []
    options = ("--state-dir", str(tmp_path / "state"), "--tickets", str(tickets))
    # With version 1 the stable one and version 2 taken back.
    (repository / "probe" / "2").rename(tmp_path / "2")
    with Server(repository, *options) as server:
        (tmp_path / "2").rename(repository / "probe" / "2")
        with AdminClient(default_admin_socket(server.port)) as admin:
            admin.start("probe", 2, share=0.5, manual_promotion=True)
            admin.rollback("probe")
        port = server.port
    server = Server(repository, *options, port=port)
    server.checked = False
    options_of_load: dict[str, Any] = {"connections": 2, "in_flight": 4, "retries": True}
    asking = Ledger()
    with (
        server,
        Load(ledger, [server.address], **options_of_load) as load,
        Load(
            asking, [server.address], model="asks", choose=lambda: (RAISE, 0), **options_of_load
        ) as tickets_load,
    ):
        load.more(50)
        for _ in range(kills):
            load.more(chance.randrange(1, 200))
            server.process.kill()
            assert server.process.wait(timeout=60) == -signal.SIGKILL
            began = time.monotonic()
            again = Server(repository, *options, port=port)
            server.process = again.process
            server.log_path = again.log_path
            server.wait_ready()
            ready.append(time.monotonic() - began)
        load.more(200)
        tickets_load.more(10)
        versions = {entry.version for entry in ledger.ended() if entry.outcome == "OK"}
        server.terminate()
        server.process.wait(timeout=60)
    ledger.check({"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
    asking.check({"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
    assert versions == {1}, "what was taken back stays out"
    told = sum("hr.ticket" in entry.parameters for entry in asking.ended())
    on_disk = check_tickets(asking, tickets)
    assert told > 0
    figure("tickets told", told)
    figure("on the disk", on_disk)
    figure("told and lost", 0)
    ready.sort()
    figure("kills", kills)
    figure("kill to ready s, median", ready[len(ready) // 2])
    figure("slowest s", ready[-1])
    figure("calls", len(ledger.entries))
    figure("UNAVAILABLE after 5 attempts", ledger.outcomes()["UNAVAILABLE"])
    figure("wrong or lost", 0)


@pytest.mark.fault("SIGSTOP, SIGCONT (a stalled machine)")
def test_stop_and_continue(repository: Path, start: Start, figure: Figure) -> None:
    write_probe(repository)
    server = start()
    ledger = Ledger()
    with Load(ledger, [server.address], timeout_s=1) as load:
        load.more(500)
        server.process.send_signal(signal.SIGSTOP)
        eventually(lambda: ledger.outcomes()["DEADLINE_EXCEEDED"] >= 32, "callers give up")
        server.process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        load.more(500)
        figure("500 answers after s", time.monotonic() - began)
    ledger.check({"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
    late = [e.seconds - 1 for e in ledger.ended() if e.outcome == "DEADLINE_EXCEEDED"]
    figure("DEADLINE_EXCEEDED", len(late))
    figure("latest after its deadline ms", max(late) * 1e3)


@pytest.mark.fault("clock jump +-1 h")
def test_the_clock_jumps(repository: Path, tmp_path: Path, start: Start, figure: Figure) -> None:
    """The time of day, as far as the server's process sees it (preload.c)."""
    write_probe(repository, queue_delay_us=2000)
    hanging = write_probe(repository, "hanging")
    faults = Faults(tmp_path)
    server = start(environment=faults.environment)
    ledger, waiting = Ledger(), Ledger()
    held = waiting.sent(HANG, 0, 120)
    call = server.stub.ModelInfer.future(request_of(held, "hanging"), timeout=120)
    eventually((hanging / "hung").exists, "its instance is busy")
    errors = []
    with Load(ledger, [server.address], timeout_s=20) as load:
        load.more(500)
        for offset in (0, HOUR_S, -HOUR_S, 0):
            faults.set("clock_offset_s", offset)
            load.more(500)
            # A deadline that ends in the queue: in time, before and after the jump.
            late = ask(waiting, server.stub, model="hanging", timeout_s=0.5)
            assert late.outcome == "DEADLINE_EXCEEDED"
            errors.append(abs(late.seconds - 0.5))
            eventually(lambda: server.pending("hanging") == 0, "it left the server's queue")
            after = server.statistics("probe").last_inference / 1e3
            assert abs(after - time.time() - offset) < 60, "the jump is seen where it belongs"
    (hanging / "release").touch()
    waiting.answered(held, call.result(timeout=60))
    ledger.check()
    waiting.check({"OK", "DEADLINE_EXCEEDED"})
    figure("calls", len(ledger.entries))
    figure("errors", 0)
    figure("deadline off by ms at most", max(errors) * 1e3)


@pytest.mark.fault("fd exhaustion (ulimit -n 64)")
@pytest.mark.skipif(shutil.which("prlimit") is None, reason="no prlimit")
def test_no_more_descriptors(repository: Path, start: Start, figure: Figure) -> None:
    write_probe(repository)
    server = start(wrap=("prlimit", "--nofile=64:64"))
    ledger, more = Ledger(), Ledger()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))  # noqa: PTH208

    figure("of its own", descriptors())
    with Load(ledger, [server.address], connections=4) as load:
        load.more(500)
        # Connections that do nothing take all the rest; the server's own limits end those that
        # never say a word after seconds, so they come again.
        import socket

        crowd: list[socket.socket] = []
        for _ in range(200):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", server.port))
            crowd.append(one)
        eventually(lambda: descriptors() >= 63, "no descriptor is left")
        before = ledger.ok()
        load.more(2000)
        figure("calls of live connections meanwhile", ledger.ok() - before)
        assert server.process.poll() is None
        for one in crowd:
            one.close()
        began = time.monotonic()
        with channel_to([server.address]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            eventually(
                lambda: ask(more, stub, timeout_s=10).outcome == "OK", "new ones come in again"
            )
        figure("a new connection after s", time.monotonic() - began)
    ledger.check()
    more.check({"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
    figure("errors", len(ledger.entries) - ledger.ok())


@pytest.mark.fault("thread creation fails")
def test_no_more_threads(repository: Path, tmp_path: Path, start: Start, figure: Figure) -> None:
    write_probe(repository)
    write_probe(repository, "later")
    faults = Faults(tmp_path)
    server = start(
        "--model-control-mode=explicit", "--load-model=probe", environment=faults.environment
    )
    ledger = Ledger()
    server.metrics_text()
    with Load(ledger, [server.address]) as load:
        load.more(500)
        faults.set("fail_threads", 1)
        load.more(1000)
        # What needs a thread is refused, not fatal.
        from tritonclient.utils import InferenceServerException

        with pytest.raises(InferenceServerException) as error:
            server.client.load_model("later", client_timeout=60)
        figure("a load meanwhile", error.value.status().removeprefix("StatusCode."))
        with pytest.raises(OSError):
            server.metrics_text()
        load.more(500)
        faults.set("fail_threads", 0)
        server.client.load_model("later")
        server.counts(1, "headrace_ready")
        load.more(500)
    ledger.check()
    assert faults.get("failed_threads") > 0
    assert ask(ledger, server.stub, model="later").outcome == "OK"
    figure("calls", len(ledger.entries))
    figure("errors", 0)
    figure("threads refused", faults.get("failed_threads"))
