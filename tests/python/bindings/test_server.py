"""Server from Python: handlers on the pool, routes, the end."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from headrace import _ext, errors
from headrace.protocol import kserve

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
SERVER_LIVE = "/inference.GRPCInferenceService/ServerLive"
SERVER_READY = "/inference.GRPCInferenceService/ServerReady"
MODEL_READY = "/inference.GRPCInferenceService/ModelReady"
TRUE = b"\x08\x01"

Make = Callable[..., Any]


def infer_message(value: float = 1, version: str = "", model: str = "m") -> bytes:
    request = kserve.ModelInferRequest(model_name=model, model_version=version, id="7")
    request.inputs.add(name="X", datatype="FP32", shape=[1])
    request.raw_input_contents.append(np.full(1, value, np.float32).tobytes())
    return bytes(request.SerializeToString())


class Waiting:
    """A handler that waits; `entered` counts who came."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.calls: list[Any] = []

    def __call__(self, message: bytes, call: _ext.ServerCall) -> bytes:
        self.calls.append(call)
        self.entered.release()
        assert self.opened.wait(60)
        return b"done"


@pytest.fixture
def serve(make_server: Make, connect: Make) -> Make:
    """serve({path: handler}) -> a caller of a running server with these methods."""

    def start(methods: dict[str, Any], *, blocking: bool = False, **options: Any) -> Any:
        server = make_server(**options)
        for path, handler in methods.items():
            server.add_method(path, handler, pool="blocking" if blocking else "quick")
        server.start()
        caller = connect(server)
        caller.server = server
        return caller

    return start


# --- handlers --------------------------------------------------------------------------------


def test_a_handler_gets_and_gives_bytes(serve: Make) -> None:
    caller = serve({"/t.S/Reverse": lambda message, call: message[::-1]})
    for message in (b"", b"abc", bytes(range(256)) * 4000):
        assert caller("/t.S/Reverse", message) == message[::-1]


def test_a_handler_knows_its_call(serve: Make) -> None:
    calls: list[_ext.ServerCall] = []
    caller = serve({"/t.S/M": lambda message, call: calls.append(call) or b""})
    caller(
        "/t.S/M",
        timeout=1000,
        metadata=(("user", "v 1"), ("user", "v2"), ("blob-bin", b"\x00\xff,\x80"), ("e-bin", b"")),
    )
    (call,) = calls
    assert call.method == "/t.S/M"
    assert call.peer.startswith("ipv4:127.0.0.1:")
    remaining = call.time_remaining()
    assert remaining is not None and 0 < remaining <= 1000
    metadata = call.metadata
    assert ("user", "v 1") in metadata and ("user", "v2") in metadata
    assert ("blob-bin", b"\x00\xff,\x80") in metadata and ("e-bin", b"") in metadata
    assert not [name for name, _ in metadata if name.startswith(("grpc-", ":"))]
    caller("/t.S/M", timeout=None)
    assert calls[1].time_remaining() is None


def test_metadata_of_a_handler_reaches_the_client(serve: Make) -> None:
    def handler(message: bytes, call: _ext.ServerCall) -> bytes:
        call.send_initial_metadata([("first", "a"), ("first-bin", b"\x00\x01")])
        call.set_trailing_metadata((("last", "b"), ("last-bin", b"\xff"), ("last-bin", b"")))
        if message:
            raise errors.AbortedError("after all")
        return b"x"

    caller = serve({"/t.S/M": handler})
    call = caller.begin("/t.S/M")
    assert call.result() == b"x"
    initial = [tuple(pair) for pair in call.initial_metadata()]
    assert ("first", "a") in initial and ("first-bin", b"\x00\x01") in initial
    trailing = [tuple(pair) for pair in call.trailing_metadata()]
    assert trailing == [("last", "b"), ("last-bin", b"\xff"), ("last-bin", b"")]
    error = caller.error("/t.S/M", b"fail")
    assert error.code() == grpc.StatusCode.ABORTED
    assert ("last", "b") in [tuple(pair) for pair in error.trailing_metadata()]


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (("Upper", "v"), "'Upper' is no valid metadata key"),
        (("grpc-status", "0"), "'grpc-status' is no valid metadata key"),
        (("", "v"), "'' is no valid metadata key"),
        ((":path", "v"), "':path' is no valid metadata key"),
        (("a b", "v"), "'a b' is no valid metadata key"),
        (("a", "line\nbreak"), "metadata 'a' is not printable ASCII"),
        (("a", "é"), "metadata 'a' is not printable ASCII"),
    ],
)
def test_metadata_that_would_break_the_protocol_is_refused(
    pair: tuple[str, str], text: str, serve: Make
) -> None:
    def handler(message: bytes, call: _ext.ServerCall) -> bytes:
        (call.set_trailing_metadata if message else call.send_initial_metadata)([pair])
        return b""

    caller = serve({"/t.S/M": handler})
    for message in (b"", b"t"):
        error = caller.error("/t.S/M", message)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == text


def test_what_a_handler_raises(serve: Make) -> None:
    raised: list[BaseException] = []

    class CodedError(Exception):
        def __init__(self, code: Any, details: Any) -> None:
            super().__init__("text")
            self.code = code
            self.details = details

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def handler(message: bytes, call: _ext.ServerCall) -> bytes:
        raise raised[-1]

    caller = serve({"/t.S/M": handler})
    application = "Exception calling application: "
    for error, code, details in [
        (errors.NotFoundError("no such thing"), grpc.StatusCode.NOT_FOUND, "no such thing"),
        (CodedError(8, "é %"), grpc.StatusCode.RESOURCE_EXHAUSTED, "é %"),
        (CodedError(3, 17), grpc.StatusCode.INVALID_ARGUMENT, "17"),
        (ValueError("bad"), grpc.StatusCode.UNKNOWN, application + "ValueError: bad"),
        (KeyError("k"), grpc.StatusCode.UNKNOWN, application + "KeyError: 'k'"),
        (CodedError(0, "ok?"), grpc.StatusCode.UNKNOWN, application + "CodedError: text"),
        (CodedError(17, "?"), grpc.StatusCode.UNKNOWN, application + "CodedError: text"),
        (CodedError(-1, "?"), grpc.StatusCode.UNKNOWN, application + "CodedError: text"),
        (CodedError(2**70, "?"), grpc.StatusCode.UNKNOWN, application + "CodedError: text"),
        (CodedError("5", "?"), grpc.StatusCode.UNKNOWN, application + "CodedError: text"),
        (
            UnprintableError(),
            grpc.StatusCode.UNKNOWN,
            application + "an exception that cannot be printed",
        ),
        (
            ValueError("\ud800"),
            grpc.StatusCode.UNKNOWN,
            application + "an exception that cannot be printed",
        ),
        (SystemExit(1), grpc.StatusCode.UNKNOWN, application + "SystemExit: 1"),
    ]:
        raised.append(error)
        got = caller.error("/t.S/M")
        assert (got.code(), got.details()) == (code, details)


@pytest.mark.parametrize("answer", ["text", 3, [b"x"]])
def test_a_handler_that_answers_no_bytes(answer: Any, serve: Make) -> None:
    caller = serve({"/t.S/M": lambda message, call: answer})
    error = caller.error("/t.S/M")
    assert error.code() == grpc.StatusCode.UNKNOWN
    assert error.details().startswith("Exception calling application: ")


def test_a_call_that_is_forgotten_is_answered(serve: Make) -> None:
    error = serve({"/t.S/M": lambda message, call: None}).error("/t.S/M")
    assert error.code() == grpc.StatusCode.INTERNAL
    assert error.details() == "the server's handler left the call without an answer"


def test_a_long_error_text_still_arrives(serve: Make) -> None:
    """Clients refuse more than some KiB of headers: the code must not drown in the text."""

    def handler(message: bytes, call: _ext.ServerCall) -> bytes:
        raise errors.NotFoundError("x" * 1_000_000)

    caller = serve({"/t.S/M": handler})
    assert caller.error("/t.S/M").code() == grpc.StatusCode.NOT_FOUND
    error = caller.error(MODEL_INFER, infer_message(model="n" * 1_000_000))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("Request for unknown model: 'nnn")


def test_a_handler_sees_that_its_client_left(serve: Make) -> None:
    waiting = Waiting()
    caller = serve({"/t.S/M": waiting})
    call = caller.begin("/t.S/M")
    waiting.entered.acquire()
    (info,) = waiting.calls
    assert info.is_active()
    call.cancel()
    while info.is_active():
        threading.Event().wait(0.001)
    waiting.opened.set()
    assert caller("/t.S/M") == b"done"  # the late answer hurt nobody


def test_a_handler_sees_that_its_deadline_passed(serve: Make) -> None:
    waiting = Waiting()
    caller = serve({"/t.S/M": waiting})
    error = caller.error("/t.S/M", timeout=0.2)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    if waiting.calls:
        while waiting.calls[0].is_active():
            threading.Event().wait(0.001)
        assert waiting.calls[0].time_remaining() == 0
    waiting.opened.set()


@pytest.mark.parametrize("blocking", [True, False])
def test_handlers_that_wait_for_each_other_all_run(blocking: bool, serve: Make) -> None:
    """A thread is there for each, however the calls come: one after the other, too."""
    barrier = threading.Barrier(4)
    started = threading.Semaphore(0)

    def meet(message: bytes, call: _ext.ServerCall) -> bytes:
        started.release()
        barrier.wait(60)
        return b"met"

    caller = serve({"/t.S/Meet": meet}, blocking=blocking, python_threads=4)
    calls = []
    for _ in range(4):
        calls.append(caller.begin("/t.S/Meet"))
        started.acquire(timeout=60)  # the earlier ones wait in their handlers
    assert [call.result() for call in calls] == [b"met"] * 4


def test_blocking_handlers_do_not_block_quick_ones(make_server: Make, connect: Make) -> None:
    waiting = Waiting()
    server = make_server(python_threads=1)
    server.add_method("/t.S/Slow", waiting, pool="blocking")
    server.add_method("/t.S/Quick", lambda message, call: b"quick")
    server.start()
    caller = connect(server)
    slow = [caller.begin("/t.S/Slow") for _ in range(12)]  # more than its pool has threads
    waiting.entered.acquire()
    assert caller("/t.S/Quick") == b"quick"
    assert not any(call.done() for call in slow)
    waiting.opened.set()
    assert [call.result() for call in slow] == [b"done"] * 12


def test_a_handler_that_keeps_the_gil_does_not_delay_the_core(serve: Make) -> None:
    """Calls answered in C++ come back while Python is stuck; told by the order, not by a clock."""
    order: list[str] = []
    entered = threading.Event()
    old = sys.getswitchinterval()

    def busy(message: bytes, call: _ext.ServerCall) -> bytes:
        entered.set()
        # One bytecode after the other, the GIL never given up on its own.
        total = 0
        while order.count("live") < 50:
            total += 1
        order.append("busy")
        return b""

    caller = serve({"/t.S/Busy": busy})
    call = caller.begin("/t.S/Busy")
    assert entered.wait(60)
    for _ in range(50):
        assert caller(SERVER_LIVE) == TRUE
        order.append("live")
    call.result()
    assert order == ["live"] * 50 + ["busy"]
    assert sys.getswitchinterval() == old


def test_more_calls_than_the_pool_may_hold_are_told(serve: Make) -> None:
    waiting = Waiting()
    caller = serve({"/t.S/M": waiting}, python_threads=1, limits={"max_concurrent_streams": 10_000})
    first = caller.begin("/t.S/M")
    waiting.entered.acquire()
    calls = [caller.begin("/t.S/M") for _ in range(4200)]
    # Wait for the server to have refused some; the others are in its queue.
    refused = next(call for call in reversed(calls) if call.exception() is not None)
    assert refused.code() == grpc.StatusCode.UNAVAILABLE
    assert refused.details() == "the server's Python handlers are busy; try again"
    waiting.opened.set()
    codes = [call.code() for call in calls]
    assert first.result() == b"done"
    assert codes.count(grpc.StatusCode.OK) == 4096
    assert codes.count(grpc.StatusCode.UNAVAILABLE) == 104


# --- the server ------------------------------------------------------------------------------


def test_an_address_in_use_is_named(make_server: Make) -> None:
    first = make_server()
    first.start()
    second = make_server(port=first.port)
    with pytest.raises(errors.UnavailableError, match=f"127.0.0.1:{first.port}"):
        second.start()
    with pytest.raises(errors.FailedPreconditionError):
        first.start()


def test_publish_routes_by_version(
    make_server: Make, connect: Make, identity_version: Make
) -> None:
    server = make_server()
    server.start()
    caller = connect(server)
    versions = {n: identity_version(number=n) for n in (1, 3, 12)}

    def version_of(message: bytes) -> str:
        return str(kserve.ModelInferResponse.FromString(caller(MODEL_INFER, message)).model_version)

    server.publish({"m": {**versions, 20: None}, "empty": {}})
    assert version_of(infer_message()) == "12"
    assert version_of(infer_message(version="3")) == "3"
    assert caller.error(MODEL_INFER, infer_message(version="20")).code() == (
        grpc.StatusCode.UNAVAILABLE
    )
    assert caller.error(MODEL_INFER, infer_message(model="empty")).details() == (
        "Request for unknown model: 'empty' has no available versions"
    )
    server.publish({"m": {1: versions[1]}})
    assert version_of(infer_message()) == "1"
    assert caller.error(MODEL_INFER, infer_message(version="12")).code() == (
        grpc.StatusCode.NOT_FOUND
    )
    server.publish({})
    assert caller(MODEL_READY, b"\x0a\x01m") == b""
    for version in versions.values():
        assert version.close()


def test_a_version_lives_as_long_as_it_is_routed(
    make_server: Make, connect: Make, make_version: Make
) -> None:
    class Model:
        def __call__(self, arrays: dict[str, Any]) -> dict[str, Any]:
            return {"Y": arrays["X"]}

    model = Model()
    gone = weakref.ref(model)
    tensors = {"X": ("FP32", [-1])}, {"Y": ("FP32", [-1])}
    server = make_server()
    server.start()
    caller = connect(server)
    server.publish({"m": {1: make_version(model, *tensors)}})
    del model
    gc.collect()
    caller(MODEL_INFER, infer_message())
    assert gone() is not None
    server.publish({})  # the version ends here, without close()
    assert gone() is None


def test_stop_lets_go_of_versions_and_handlers(
    make_server: Make, connect: Make, make_version: Make
) -> None:
    class Model:
        def __call__(self, arrays: dict[str, Any]) -> dict[str, Any]:
            return {"Y": arrays["X"]}

    class Handler:
        def __call__(self, message: bytes, call: _ext.ServerCall) -> bytes:
            return message

    model, handler = Model(), Handler()
    gone = [weakref.ref(model), weakref.ref(handler)]
    server = _ext.Server(_ext.ServerOptions(host="127.0.0.1", port=0, io_threads=2))
    server.add_method("/t.S/M", handler)
    server.start()
    server.publish({"m": {1: make_version(model, {"X": ("FP32", [-1])}, {"Y": ("FP32", [-1])})}})
    caller = connect(server)
    caller(MODEL_INFER, infer_message())
    assert caller("/t.S/M", b"x") == b"x"
    assert server.stop(5)
    del model, handler
    assert gone[0]() is None
    del server
    gc.collect()
    assert gone[1]() is None


def test_cycles_of_servers_leave_no_threads(make_version: Make) -> None:
    def threads() -> set[str]:
        names = set()
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # a thread of grpcio's that ended meanwhile
                names.add((task / "comm").read_text().strip())
        return names

    def cycle() -> None:
        server = _ext.Server(_ext.ServerOptions(host="127.0.0.1", port=0, io_threads=3))
        server.add_method("/t.S/M", lambda message, call: b"")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            channel.unary_unary("/t.S/M")(b"")
        server.stop(0.0)

    for _ in range(10):
        cycle()
    # One that was joined may be in /proc for a moment yet.
    end = time.monotonic() + 30
    while left := [name for name in threads() if name.startswith("headrace-")]:
        assert time.monotonic() < end, left
        time.sleep(0.01)  # between looks


def test_a_server_that_is_dropped_stops() -> None:
    server = _ext.Server(_ext.ServerOptions(host="127.0.0.1", port=0))
    server.start()
    port = server.port
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.unary_unary(SERVER_LIVE)(b"", timeout=60)
        del server
        gc.collect()
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(SERVER_LIVE)(b"", timeout=60)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("grace", [0.0, -1.0, float("nan")])
def test_stop_without_time_ends_a_running_handlers_call(grace: float, serve: Make) -> None:
    waiting = Waiting()
    caller = serve({"/t.S/M": waiting}, blocking=True)
    call = caller.begin("/t.S/M")
    waiting.entered.acquire()
    results = []
    stopping = threading.Thread(target=lambda: results.append(caller.server.stop(grace)))
    stopping.start()
    assert call.exception(60) is not None
    assert call.code() == grpc.StatusCode.UNAVAILABLE
    assert not waiting.calls[0].is_active()
    waiting.opened.set()  # stop() waits for the handler to end
    stopping.join(60)
    assert results == [False]
    assert caller.server.stop() is True
    statistics = caller.server.statistics()
    assert statistics["calls_active"] == 0
    assert statistics["calls_started"] == statistics["calls_finished"]


@pytest.mark.parametrize("grace", [60.0, float("inf"), 1e300])
def test_stop_with_time_lets_a_handler_answer(grace: float, serve: Make) -> None:
    waiting = Waiting()
    caller = serve({"/t.S/M": waiting})
    call = caller.begin("/t.S/M")
    waiting.entered.acquire()
    results = []
    stopping = threading.Thread(target=lambda: results.append(caller.server.stop(grace)))
    stopping.start()
    waiting.opened.set()
    assert call.result(60) == b"done"
    stopping.join(60)
    assert results == [True]


def test_readiness_and_health(make_server: Make, connect: Make) -> None:
    server = make_server()
    server.start()
    caller = connect(server)
    assert caller(SERVER_READY) == b""
    server.set_ready(True)
    assert caller(SERVER_READY) == TRUE
    check = "/grpc.health.v1.Health/Check"
    assert caller.error(check).code() == grpc.StatusCode.NOT_FOUND
    server.set_health("", True)
    assert caller(check) == TRUE
    server.set_health("", False)
    assert caller(check) == b"\x08\x02"


def test_statistics_count_calls_by_code(serve: Make) -> None:
    caller = serve({"/t.S/M": lambda message, call: message})
    caller("/t.S/M", b"x")
    caller.error("/t.S/Nope")
    statistics = caller.server.statistics()
    assert statistics["calls_started"] == statistics["calls_finished"] == 2
    codes = statistics["calls_by_code"]
    assert len(codes) == 17
    assert codes[0] == 1 and codes[12] == 1 and sum(codes) == 2
    assert statistics["connections_open"] == statistics["connections_total"] == 1
    assert statistics["bytes_received"] > 0 and statistics["bytes_sent"] > 0
    caller.server.stop(0.0)
    after = caller.server.statistics()
    assert after["connections_open"] == 0
    assert after["connections_total"] == 1
    assert after["bytes_received"] >= statistics["bytes_received"]


def test_a_message_over_a_methods_limit_is_refused(serve: Make) -> None:
    quick = serve({"/t.S/M": lambda message, call: b""})
    quick("/t.S/M", b"x" * (4 << 20))
    assert quick.error("/t.S/M", b"x" * ((4 << 20) + 1)).code() == (
        grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    small = serve({"/t.S/M": lambda message, call: b""}, blocking=True, max_message_bytes=1000)
    small("/t.S/M", b"x" * 1000)
    assert small.error("/t.S/M", b"x" * 1001).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert small.error(MODEL_INFER, b"x" * 1001).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
