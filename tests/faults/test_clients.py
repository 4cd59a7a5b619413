"""Clients and the network: who leaves, who does not read, who sends too much, what lies between."""

from __future__ import annotations

import datetime
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from harness import Server, eventually, infer_request, raw_input, write_identity
from ledger import Ledger, ask, request_of
from load import Load, channel_to
from probe import HANG, batch_ms, write_probe
from tcp_proxy import Proxy
from tritonclient.grpc import service_pb2_grpc

Start = Callable[..., Server]
Figure = Callable[[str, Any], None]


def stub_of(channel: Any) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.mark.fault("client disconnect storm")
def test_a_storm_of_disconnects(repository: Path, start: Start, figure: Figure) -> None:
    """20 times 600 calls wait behind one that runs; their clients go away."""
    write_probe(repository)
    folder = write_probe(repository, "held")
    server = start()
    ledger, live = Ledger(), Ledger()
    held = live.sent(HANG, 0, 120)
    holding = server.stub.ModelInfer.future(request_of(held, "held"), timeout=120)
    eventually((folder / "hung").exists, "the instance is busy")
    rss = server.rss_kib()
    queued_most = 0
    with Load(live, [server.address], connections=1, in_flight=4) as load:
        for _ in range(20):
            channels = [channel_to([server.address]) for _ in range(4)]
            calls = []
            for channel in channels:
                stub = stub_of(channel)
                for _ in range(150):
                    entry = ledger.sent()
                    call = stub.ModelInfer.future(request_of(entry, "held"))
                    call.add_done_callback(lambda call, entry=entry: ledger.failed(entry, call))
                    calls.append(call)
            queued_most = max(
                queued_most, eventually(lambda: server.pending("held"), "some wait", 60)
            )
            for channel in channels:
                channel.close()
        load.more(200)
    eventually(lambda: len(ledger.ended()) == len(ledger.entries), "all are told", 60)
    assert set(ledger.outcomes()) <= {"CANCELLED", "UNAVAILABLE"}, ledger.outcomes()
    assert not ledger.problems
    peak = server.rss_kib()
    still = server.pending("held")
    (folder / "release").touch()
    live.answered(held, holding.result(timeout=60))
    live.check()
    # Dropped when the instance comes to them.
    eventually(lambda: server.pending("held") == 0, "nothing of dead clients waits", 60)
    executed = server.statistics("held").inference_count
    assert executed == 1, "what nobody waits for is not executed"
    figure("calls that were left", len(ledger.entries))
    figure("in the queue at most", queued_most)
    figure("executed", executed - 1)
    figure("in the queue until the instance was free", still)
    figure("RSS more MiB, at most", (peak - rss) / 1024)
    figure("others' errors", 0)


@pytest.mark.fault("10x overload, then half load")
def test_overload(repository: Path, start: Start, figure: Figure) -> None:
    """A model that does 200 rows a second at most; open loop, deadline 500 ms."""
    folder = write_probe(repository)
    batch_ms(folder, 40)
    server = start()
    peak = Ledger()
    with Load(peak, [server.address], in_flight=16) as load:
        load.more(200)  # it is learnt what a batch costs
        began, before = time.monotonic(), peak.ok()
        load.more(600)
        capacity = (peak.ok() - before) / (time.monotonic() - began)
    peak.check()
    chance = random.Random(1)
    channels = [channel_to([server.address]) for _ in range(4)]
    stubs = [stub_of(channel) for channel in channels]

    def offer(ledger: Ledger, rate: float, seconds: float) -> None:
        """Poisson arrivals, whatever becomes of them."""
        began = time.monotonic()
        at = began
        while at < began + seconds:
            at += chance.expovariate(rate)
            time.sleep(max(0.0, at - time.monotonic()))
            entry = ledger.sent(0, 0, 0.5)
            call = chance.choice(stubs).ModelInfer.future(
                request_of(entry, "probe"), timeout=entry.timeout_s
            )

            def done(call: Any, entry: Any = entry) -> None:
                if call.code() is grpc.StatusCode.OK:
                    ledger.answered(entry, call.result())
                else:
                    ledger.failed(entry, call)

            call.add_done_callback(done)

    over, half = Ledger(), Ledger()
    rss = server.rss_kib()
    began = time.monotonic()
    offer(over, capacity * 10, 8)
    took = time.monotonic() - began
    eventually(lambda: len(over.ended()) == len(over.entries), "all are answered", 60)
    offer(half, capacity / 2, 3)
    eventually(lambda: len(half.ended()) == len(half.entries), "all are answered", 60)
    for channel in channels:
        channel.close()
    allowed = {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    over.check(allowed)
    half.check(allowed)
    offered = len(over.entries) / took
    figure("peak /s", capacity)
    figure("offered /s", offered)
    figure("goodput /s", over.ok() / took)
    figure("refused", over.outcomes()["RESOURCE_EXHAUSTED"])
    figure("in vain", over.outcomes()["DEADLINE_EXCEEDED"])
    figure("p99 of admitted ms", over.milliseconds(0.99))
    refusal = "RESOURCE_EXHAUSTED"
    figure("refusal p50 ms", over.milliseconds(0.5, lambda e: e.outcome == refusal))
    figure("answered at half load after it", f"{half.ok()} of {len(half.entries)}")
    figure("RSS more MiB", (server.rss_kib() - rss) / 1024)


@pytest.mark.fault("slow reader, shut window: 100 x 3 MB unread answers")
def test_who_does_not_read(repository: Path, start: Start, figure: Figure) -> None:
    import h2.config
    import h2.connection

    write_probe(repository)
    write_identity(repository, "identity", "UINT8")
    server = start()
    ledger = Ledger()
    ask(ledger, server.stub)
    rss = server.rss_kib()
    rows = 3_000_000
    message = infer_request(
        "identity",
        inputs=[raw_input("X", "UINT8", [1, rows])],
        raw_input_contents=[bytes(rows)],
    ).SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    with Load(ledger, [server.address], connections=1, in_flight=4) as load:
        one = socket.create_connection(("127.0.0.1", server.port))
        session = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        session.initiate_connection()
        one.sendall(session.data_to_send())
        one.settimeout(2)
        asked, most = 0, rss
        # It opens no window: answers stay with the server, until that takes no more questions.
        try:
            for number in range(100):
                stream = 2 * number + 1
                session.send_headers(
                    stream,
                    [
                        (":method", "POST"),
                        (":scheme", "http"),
                        (":path", "/inference.GRPCInferenceService/ModelInfer"),
                        (":authority", "localhost"),
                        ("content-type", "application/grpc"),
                        ("te", "trailers"),
                    ],
                )
                sent = 0
                while sent < len(body):
                    one.sendall(session.data_to_send())
                    room = min(
                        session.local_flow_control_window(stream), session.max_outbound_frame_size
                    )
                    if room > 0:
                        piece = body[sent : sent + room]
                        sent += len(piece)
                        session.send_data(stream, piece, end_stream=sent == len(body))
                        continue
                    data = one.recv(65536)
                    if not data:
                        raise ConnectionError
                    # What it receives is dropped unread; windows of our own stay as they are.
                    session.receive_data(data)
                one.sendall(session.data_to_send())
                asked += 1
                most = max(most, server.rss_kib())
        except (TimeoutError, ConnectionError, h2.exceptions.ProtocolError):
            pass  # it is held back, or ended
        load.more(500)
        most = max(most, server.rss_kib())
        one.close()
    ledger.check()
    figure("questions taken", asked)
    figure("RSS more MiB at most", (most - rss) / 1024)
    figure("others' p99 ms", ledger.milliseconds(0.99))
    figure("others' errors", len(ledger.entries) - ledger.ok())


@pytest.mark.fault("metrics scraper hangs")
def test_scrapers_that_hang(repository: Path, start: Start, figure: Figure) -> None:
    write_probe(repository)
    server = start()
    ledger = Ledger()
    server.metrics_text()
    with Load(ledger, [server.address], connections=2, in_flight=4) as load:
        load.more(500)
        hanging = []
        for number in range(200):
            one = socket.create_connection(("127.0.0.1", server.metrics_port))
            if number % 2:
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")  # and no end
            else:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")  # does not read
            hanging.append(one)
        began = time.monotonic()
        server.counts(1, "headrace_ready")
        figure("a scrape meanwhile ms", (time.monotonic() - began) * 1e3)
        load.more(1000)
        for one in hanging:
            one.close()
    ledger.check()
    figure("hanging scrapers", len(hanging))
    figure("calls", len(ledger.entries))
    figure("errors", len(ledger.entries) - ledger.ok())


@pytest.mark.fault("network: late, cut, corrupt, black hole")
def test_a_bad_network(repository: Path, start: Start, figure: Figure) -> None:
    write_probe(repository)
    server = start("--limits", "keepalive-time-s=1", "--limits", "keepalive-timeout-s=1")
    direct, late, cut, corrupt, hole = (Ledger() for _ in range(5))
    options: dict[str, Any] = {"connections": 4, "in_flight": 4}
    with Proxy(server.port) as proxy, Load(direct, [server.address], connections=1) as neighbour:
        proxy.delay_s = 0.05
        with Load(late, [proxy.address], **options) as load:
            load.more(200)
        proxy.delay_s = 0
        late.check()

        with Load(cut, [proxy.address], retries=True, timeout_s=20, **options) as load:
            for _ in range(10):
                load.more(100)
                proxy.cut()
            load.more(100)
        cut.check({"OK", "UNAVAILABLE"})

        with Load(corrupt, [proxy.address], timeout_s=2, **options) as load:
            load.more(100)
            proxy.corrupt = True
            ended = len(corrupt.ended())
            eventually(lambda: len(corrupt.ended()) > ended + 100, "they go wrong", 90)
            proxy.corrupt = False
            proxy.cut()
            load.more(100)
        # A changed byte in a tensor is nobody's to see but TLS's: the answer is then one to what
        # the server read. Everything else is an error with a status.
        spoilt = [e for e in corrupt.ended() if e.outcome.startswith("wrong")]
        assert all(e.outcome for e in corrupt.entries.values())
        assert not [problem for problem in corrupt.problems if ", then " in problem]

        with Load(hole, [proxy.address], timeout_s=2, **options) as load:
            load.more(100)
            proxy.black_hole = True
            # Who finds out first: the caller at its deadline, or the server by its pings.
            answered = hole.ok()
            eventually(lambda: len(hole.ended()) >= answered + 16, "callers are told", 60)
            ended_by = "headrace_limits_exceeded_total"
            # The server finds out by itself, and lets go of them.
            eventually(
                lambda: server.metric(ended_by, reason="keepalive_timeout") >= 4,
                "the server ends dead connections",
                60,
            )
            proxy.black_hole = False
            proxy.cut()
            load.more(100)
        hole.check({"OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"})
        neighbour.more(200)
    direct.check()
    figure("late by 50 ms a piece: calls, errors", f"{len(late.entries)}, 0")
    figure("cut 10 times: calls", len(cut.entries))
    figure("UNAVAILABLE after retries", cut.outcomes()["UNAVAILABLE"])
    figure("corrupt: calls", len(corrupt.entries))
    figure("told by a status", len(corrupt.entries) - corrupt.ok() - len(spoilt))
    figure("answers to changed input", len(spoilt))
    figure("black hole: told by a status", len(hole.entries) - hole.ok())
    figure("neighbours' errors", 0)


@pytest.mark.fault("certificate ends, and is renewed")
def test_the_certificate_ends(
    repository: Path, tmp_path: Path, start: Start, figure: Figure
) -> None:
    write_probe(repository)
    ca = trustme.CA()
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"

    def issue(seconds: float) -> None:
        now = datetime.datetime.now(datetime.timezone.utc)
        made = ca.issue_cert(
            "localhost", "127.0.0.1", not_after=now + datetime.timedelta(seconds=seconds)
        )
        made.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))

    issue(86400)
    server = start("--tls-cert", str(cert), "--tls-key", str(key), ready=False)
    eventually(lambda: "ready in" in server.log(), "ready")
    options: dict[str, Any] = {
        "connections": 1,
        "in_flight": 2,
        "credentials": grpc.ssl_channel_credentials(ca.cert_pem.bytes()),
    }
    before, fresh, after = Ledger(), Ledger(), Ledger()
    address = [f"localhost:{server.port}"]

    def reload() -> None:
        seen = len(server.log())
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(server.log()) > seen, "read again")

    with Load(before, address, **options) as old:
        old.more(100)
        issue(-60)
        reload()
        # Who is connected goes on; who comes is told by his own library that it is over.
        with channel_to(address, credentials=options["credentials"]) as channel:
            for _ in range(3):
                assert ask(fresh, stub_of(channel), timeout_s=5).outcome in (
                    "UNAVAILABLE",
                    "DEADLINE_EXCEEDED",
                )
        figure(
            "seconds left by the metric",
            server.metric("headrace_tls_certificate_not_after_seconds") - time.time(),
        )
        old.more(100)
        issue(86400)
        reload()
        with Load(after, address, **options) as new:
            new.more(100)
    before.check()
    after.check()
    figure("calls of old connections", len(before.entries))
    figure("errors of theirs", 0)
    figure("refused by new clients", len(fresh.entries))
    figure("after the renewal", len(after.entries))


@pytest.mark.fault("hot swap under load: 100 swaps, 32 clients")
@pytest.mark.timeout(300)
def test_swaps(repository: Path, start: Start, figure: Figure) -> None:
    import shutil

    folder = write_probe(repository)
    server = start("--model-control-mode=explicit", "--load-model=*")
    calm, ledger = Ledger(), Ledger()
    options: dict[str, Any] = {"connections": 8, "in_flight": 4}
    with Load(calm, [server.address], **options) as load:
        load.more(2000)
    swaps = 100
    took = []
    with Load(ledger, [server.address], **options) as load:
        load.more(100)
        for number in range(2, swaps + 2):
            write_probe(repository, version=number)
            began = time.monotonic()
            server.client.load_model("probe")
            took.append(time.monotonic() - began)
            # What is asked from now on is the new version's.
            first = ask(ledger, server.stub)
            assert first.version == number
            shutil.rmtree(folder / str(number - 1))
        load.more(100)
    calm.check()
    ledger.check()
    by_version = {entry.version for entry in ledger.ended()}
    assert by_version == set(range(1, swaps + 2)), "each has answered"
    took.sort()
    figure("swaps", swaps)
    figure("swap ms, median", took[swaps // 2] * 1e3)
    figure("calls", len(ledger.entries))
    figure("errors", 0)
    figure("answers under a wrong version", 0)
    figure("p99 ms", ledger.milliseconds(0.99))
    figure("p99 without ms", calm.milliseconds(0.99))


def test_the_proxy_passes_on_what_it_gets() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Proxy(listener.getsockname()[1]) as proxy,
    ):
        host, port = proxy.address.split(":")
        client = socket.create_connection((host, int(port)))
        server, _ = listener.accept()
        client.sendall(b"ping")
        assert server.recv(10) == b"ping"
        proxy.corrupt = True
        client.sendall(b"ping")
        changed = np.frombuffer(server.recv(10), np.uint8) ^ np.frombuffer(b"ping", np.uint8)
        assert np.count_nonzero(changed) == 1
        proxy.cut()

        def over(one: socket.socket) -> bool:
            try:
                return one.recv(10) == b""
            except ConnectionResetError:
                return True

        assert over(client)
        assert over(server)
        client.close()
        server.close()
