"""ServicerContext, statuses and errors, on grpcio's server and on ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from grpc_servers import method, unary

import headrace.grpc

Serve = Callable[..., Any]


def outcome(channel: grpc.Channel, path: str = "/t.S/M", message: bytes = b"x") -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(path)(message, timeout=60)
    return error.value.code(), error.value.details()


class Status(grpc.Status):  # type: ignore[misc]
    def __init__(self, code: Any, details: str, trailing_metadata: Any) -> None:
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _raise(error: BaseException) -> Any:
    raise error


def _set(context: Any, code: Any, details: str | None) -> bytes:
    context.set_code(code)
    if details is not None:
        context.set_details(details)
    return b"answer"


CASES: dict[str, tuple[Callable[[Any, Any], Any], grpc.StatusCode, str]] = {
    "raise": (
        lambda r, c: _raise(ValueError("it broke")),
        grpc.StatusCode.UNKNOWN,
        "Exception calling application: it broke",
    ),
    "unprintable": (
        lambda r, c: _raise(UnprintableError()),
        grpc.StatusCode.UNKNOWN,
        "Calling application raised unprintable Exception!",
    ),
    "abort": (
        lambda r, c: c.abort(grpc.StatusCode.ABORTED, "é ☺"),
        grpc.StatusCode.ABORTED,
        "é ☺",
    ),
    "abort_ok": (lambda r, c: c.abort(grpc.StatusCode.OK, "fine"), grpc.StatusCode.UNKNOWN, ""),
    "abort_with_status": (
        lambda r, c: c.abort_with_status(
            Status(grpc.StatusCode.DATA_LOSS, "gone", (("why", "disk"),))
        ),
        grpc.StatusCode.DATA_LOSS,
        "gone",
    ),
    "set_code": (
        lambda r, c: _set(c, grpc.StatusCode.NOT_FOUND, "not here"),
        grpc.StatusCode.NOT_FOUND,
        "not here",
    ),
    "set_code_only": (
        lambda r, c: _set(c, grpc.StatusCode.NOT_FOUND, None),
        grpc.StatusCode.NOT_FOUND,
        "",
    ),
    "set_code_then_raise": (
        lambda r, c: (c.set_code(grpc.StatusCode.INTERNAL), _raise(ValueError("x"))),
        grpc.StatusCode.INTERNAL,
        "Exception calling application: x",
    ),
    "answer_is_no_bytes": (
        lambda r, c: None,
        grpc.StatusCode.INTERNAL,
        "Failed to serialize response!",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_statuses(case: str, serve: Serve) -> None:
    handler, code, details = CASES[case]
    running = serve(unary("/t.S/M", handler))
    with running.channel() as channel:
        assert outcome(channel) == (code, details)
        # And the worker lives.
        assert outcome(channel) == (code, details)


def test_a_code_that_is_none_is_unknown(serve: Serve) -> None:
    running = serve(unary("/t.S/M", lambda r, c: _set(c, 5, "five")))
    with running.channel() as channel:
        assert outcome(channel) == (grpc.StatusCode.UNKNOWN, "five")


def test_details_of_an_ok_call(serve: Serve) -> None:
    running = serve(unary("/t.S/M", lambda r, c: _set(c, grpc.StatusCode.OK, "well")))
    with running.channel() as channel:
        answer, call = channel.unary_unary("/t.S/M").with_call(b"")
        assert (answer, call.code(), call.details()) == (b"answer", grpc.StatusCode.OK, "")


def test_bad_messages(serve: Serve) -> None:
    def add(server: Any) -> None:
        unary("/t.A/In", lambda r, c: b"", request_deserializer=lambda b: 1 // 0)(server)
        unary("/t.B/Out", lambda r, c: b"", response_serializer=lambda b: 1 // 0)(server)

    with serve(add).channel() as channel:
        assert outcome(channel, "/t.A/In") == (
            grpc.StatusCode.INTERNAL,
            "Exception deserializing request!",
        )
        assert outcome(channel, "/t.B/Out") == (
            grpc.StatusCode.INTERNAL,
            "Failed to serialize response!",
        )
        assert outcome(channel, "/t.B/None") == (
            grpc.StatusCode.UNIMPLEMENTED,
            "Method not found!",
        )


def test_what_a_context_knows(serve: Serve) -> None:
    seen: dict[str, Any] = {}

    def handler(request: bytes, context: Any) -> bytes:
        metadata = context.invocation_metadata()
        seen.update(
            metadata=[tuple(pair) for pair in metadata],
            keys=[item.key for item in metadata],
            kind=type(metadata),
            peer=context.peer(),
            identities=context.peer_identities(),
            key=context.peer_identity_key(),
            auth=context.auth_context(),
            remaining=context.time_remaining(),
            active=context.is_active(),
            before=(context.code(), context.details(), context.trailing_metadata()),
            instance=isinstance(context, grpc.ServicerContext),
        )
        context.set_details("é")
        context.set_code(grpc.StatusCode.OK)
        context.set_trailing_metadata((("t", "1"), ("t-bin", b"\xff")))
        seen["after"] = (context.code(), context.details(), context.trailing_metadata())
        return b""

    running = serve(unary("/t.S/M", handler))
    with running.channel() as channel:
        sent = (("a", "b"), ("a", "c"), ("d-bin", b"\0,\xff"))
        _, call = channel.unary_unary("/t.S/M").with_call(b"", metadata=sent, timeout=500)
        assert [p for p in seen["metadata"] if p[0] != "user-agent"] == list(sent)
        assert seen["keys"][0] == "user-agent" and seen["kind"] is tuple
        assert seen["peer"].startswith("ipv4:127.0.0.1:")
        assert seen["identities"] is None and seen["key"] is None
        assert seen["auth"]["transport_security_type"] == [b"insecure"]
        assert 0 < seen["remaining"] < 520
        assert seen["active"] is True and seen["instance"] is True
        assert seen["before"] == (None, None, None)
        assert seen["after"] == (
            grpc.StatusCode.OK,
            "é".encode(),
            (("t", "1"), ("t-bin", b"\xff")),
        )
        assert [tuple(pair) for pair in call.trailing_metadata()] == [
            ("t", "1"),
            ("t-bin", b"\xff"),
        ]
        channel.unary_unary("/t.S/M")(b"")
        assert seen["remaining"] > 1e9


def test_initial_metadata_comes_first(serve: Serve) -> None:
    gate = threading.Event()

    def handler(request: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("early", "yes"),))
        with pytest.raises(ValueError, match="Initial metadata no longer allowed!"):
            context.send_initial_metadata(())
        assert gate.wait(60)
        return b"late"

    with serve(unary("/t.S/M", handler)).channel() as channel:
        # As a stream: of a unary call grpcio's client tells nothing before it has ended.
        call = channel.unary_stream("/t.S/M")(b"")
        assert ("early", "yes") in [tuple(pair) for pair in call.initial_metadata()]
        gate.set()
        assert list(call) == [b"late"]


def test_a_cancelled_call_is_told(serve: Serve) -> None:
    entered, told = threading.Event(), threading.Event()
    seen: list[Any] = []

    def handler(request: bytes, context: Any) -> bytes:
        assert context.add_callback(told.set)
        entered.set()
        assert told.wait(60)
        seen.append(context.is_active())
        seen.append(context.add_callback(told.set))
        try:
            context.send_initial_metadata(())
        except grpc.RpcError as error:
            seen.append(error)
            told.clear()
            entered.set()
            raise
        return b""

    with serve(unary("/t.S/M", handler)).channel() as channel:
        call = channel.unary_unary("/t.S/M").future(b"")
        assert entered.wait(60)
        entered.clear()
        call.cancel()
        assert entered.wait(60)
        assert seen[:2] == [False, False] and isinstance(seen[2], grpc.RpcError)


def test_a_handler_may_cancel(serve: Serve) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        context.cancel()
        return b""

    with serve(unary("/t.S/M", handler)).channel() as channel:
        assert outcome(channel)[0] == grpc.StatusCode.CANCELLED


def test_responses_that_raise(serve: Serve) -> None:
    def handler(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"1"
        raise ValueError("midway")

    add = method("/t.S/M", grpc.unary_stream_rpc_method_handler(handler))
    with serve(add).channel() as channel:
        call = channel.unary_stream("/t.S/M")(b"")
        assert next(call) == b"1"
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() == grpc.StatusCode.UNKNOWN
        assert call.details() == "Exception iterating responses: midway"


def test_a_slow_reader_holds_back_the_handler(serve: Serve) -> None:
    made = 0

    def handler(request: bytes, context: Any) -> Iterator[bytes]:
        nonlocal made
        for _ in range(2000):
            made += 1
            yield bytes(100_000)

    add = method("/t.S/M", grpc.unary_stream_rpc_method_handler(handler))
    with serve(add).channel() as channel:
        call = channel.unary_stream("/t.S/M")(b"")
        next(call)
        # 200 MB are not made for a reader of one message; grpcio's client itself takes some ahead.
        seen = -1
        while seen != made:
            seen = made
            threading.Event().wait(0.3)  # until nothing moves
        assert made < 500
        assert sum(1 for _ in call) == 1999


def test_calls_have_contexts_of_their_own(serve: Serve) -> None:
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def handler(request: bytes, context: Any) -> bytes:
        before = variable.get()
        variable.set("set")
        return before.encode()

    with serve(unary("/t.S/M", handler), workers=1).channel() as channel:
        answers = {channel.unary_unary("/t.S/M")(b"") for _ in range(20)}
        assert answers == {b"unset"}


def test_handlers_that_wait_run_side_by_side(serve: Serve) -> None:
    barrier = threading.Barrier(8)

    def handler(request: bytes, context: Any) -> bytes:
        barrier.wait(60)
        return b"met"

    with serve(unary("/t.S/M", handler), workers=8).channel() as channel:
        for _ in range(3):
            calls = [channel.unary_unary("/t.S/M").future(b"") for _ in range(8)]
            assert [call.result() for call in calls] == [b"met"] * 8


def test_more_calls_than_allowed_are_refused(serve: Serve) -> None:
    entered, gate = threading.Semaphore(0), threading.Event()

    def handler(request: bytes, context: Any) -> bytes:
        entered.release()
        assert gate.wait(60)
        return b""

    running = serve(unary("/t.S/M", handler), workers=4, maximum_concurrent_rpcs=2)
    with running.channel() as channel:
        calls = [channel.unary_unary("/t.S/M").future(b"") for _ in range(2)]
        for _ in calls:
            assert entered.acquire(timeout=60)
        assert outcome(channel) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Concurrent RPC limit exceeded!",
        )
        gate.set()
        assert [call.result() for call in calls] == [b"", b""]


class Recording(grpc.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.log.append(f"{self.name} {details.method}")
        if ("refuse", self.name) in [tuple(pair) for pair in details.invocation_metadata]:

            def refuse(request: Any, context: Any) -> None:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, self.name)

            return grpc.unary_unary_rpc_method_handler(refuse)
        if ("break", self.name) in [tuple(pair) for pair in details.invocation_metadata]:
            raise ValueError("broken interceptor")
        return continuation(details)


@pytest.mark.parametrize("streams", [False, True])
def test_interceptors(streams: bool, serve: Serve) -> None:
    log: list[str] = []

    def echo(requests: Any, context: Any) -> Iterator[bytes]:
        yield from requests

    handler = (
        grpc.stream_stream_rpc_method_handler(echo)
        if streams
        else grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    )
    running = serve(
        method("/t.S/M", handler), interceptors=(Recording("1", log), Recording("2", log))
    )
    with running.channel() as channel:

        def call(metadata: Any = ()) -> list[bytes]:
            if streams:
                return list(channel.stream_stream("/t.S/M")(iter([b"a"]), metadata=metadata))
            return [channel.unary_unary("/t.S/M")(b"a", metadata=metadata)]

        assert call() == [b"a"]
        assert log == ["1 /t.S/M", "2 /t.S/M"]
        with pytest.raises(grpc.RpcError) as refused:
            call((("refuse", "1"),))
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert log == ["1 /t.S/M", "2 /t.S/M", "1 /t.S/M"]
        with pytest.raises(grpc.RpcError) as broken:
            call((("break", "2"),))
        assert broken.value.details() == "Error in service handler!"
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/t.S/Other")(b"")
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert log[-1] == "2 /t.S/Other"


def test_generic_handlers_may_come_late(serve: Serve) -> None:
    class LateHandler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method.startswith("/late."):
                return grpc.stream_stream_rpc_method_handler(lambda r, c: iter(list(r)))
            return None

    running = serve(lambda server: None)
    with running.channel() as channel:
        call = channel.stream_stream("/late.S/M")
        with pytest.raises(grpc.RpcError):
            list(call(iter([b"1"])))
        running.server.add_generic_rpc_handlers((LateHandler(),))
        assert list(call(iter([b"1", b"2"]))) == [b"1", b"2"]
        with pytest.raises(AttributeError, match="service"):
            running.server.add_generic_rpc_handlers((object(),))


def test_stop_lets_calls_finish(serve: Serve) -> None:
    entered, gate = threading.Event(), threading.Event()

    def handler(request: bytes, context: Any) -> bytes:
        entered.set()
        assert gate.wait(60)
        return b"finished"

    running = serve(unary("/t.S/M", handler))
    with running.channel() as channel:
        call = channel.unary_unary("/t.S/M").future(b"")
        assert entered.wait(60)
        stopped = running.server.stop(60)
        assert not stopped.is_set()
        gate.set()
        assert call.result() == b"finished"
        assert stopped.wait(60)
        assert running.server.wait_for_termination(60) is False


def test_stop_without_grace_ends_calls(serve: Serve) -> None:
    entered, gate = threading.Event(), threading.Event()

    def handler(request: bytes, context: Any) -> bytes:
        entered.set()
        gate.wait(60)
        return b""

    running = serve(unary("/t.S/M", handler))
    with running.channel() as channel:
        call = channel.unary_unary("/t.S/M").future(b"")
        assert entered.wait(60)
        assert running.server.wait_for_termination(0.01) is True
        late = running.server.stop(600)
        assert running.server.stop(None).is_set()  # a shorter grace wins
        assert late.wait(60)
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        gate.set()


def test_starting_twice(serve: Serve) -> None:
    running = serve(lambda server: None)
    with pytest.raises(ValueError, match="Cannot start already-started server!"):
        running.server.start()


# --- ours alone ------------------------------------------------------------------------------


class Submitting(futures.Executor):
    """An executor of the user's own."""

    def __init__(self) -> None:
        self.inner = futures.ThreadPoolExecutor(2, thread_name_prefix="users")
        self.submitted = 0

    def submit(self, *arguments: Any, **more: Any) -> Any:
        self.submitted += 1
        return self.inner.submit(*arguments, **more)


def test_an_executor_gets_each_call() -> None:
    executor = Submitting()
    server = headrace.grpc.server(executor)
    unary("/t.S/M", lambda r, c: threading.current_thread().name.encode())(server)
    unary("/t.T/M", lambda r, c: c.abort(grpc.StatusCode.ABORTED, "no"))(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(5):
            assert channel.unary_unary("/t.S/M")(b"").startswith(b"users")
        assert outcome(channel, "/t.T/M") == (grpc.StatusCode.ABORTED, "no")
    assert executor.submitted == 6
    server.stop(None)
    executor.inner.shutdown()


def test_threads_are_as_the_pool_says() -> None:
    local = threading.local()

    def initializer(value: str) -> None:
        local.value = value

    pool = futures.ThreadPoolExecutor(
        2, thread_name_prefix="mine", initializer=initializer, initargs=("there",)
    )
    server = headrace.grpc.server(pool)
    unary("/t.S/M", lambda r, c: f"{threading.current_thread().name} {local.value}".encode())(
        server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary("/t.S/M")(b"") in (b"mine_0 there", b"mine_1 there")
    server.stop(None)
    pool.shutdown()


def test_several_ports_and_a_unix_socket(tmp_path: Any) -> None:
    server = headrace.grpc.server()
    unary("/t.S/M", lambda r, c: c.peer().encode())(server)
    ports = [server.add_insecure_port("127.0.0.1:0") for _ in range(2)]
    assert server.add_insecure_port(f"unix:{tmp_path}/s.sock") == 1
    with pytest.raises(RuntimeError, match="Failed to bind to address"):
        server.add_insecure_port(f"127.0.0.1:{ports[0]}")
    server.start()
    for address in [*(f"127.0.0.1:{port}" for port in ports), f"unix:{tmp_path}/s.sock"]:
        with grpc.insecure_channel(address) as channel:
            peer = channel.unary_unary("/t.S/M")(b"").decode()
            assert peer.startswith(address.split(":")[0].replace("127.0.0.1", "ipv4"))
    server.stop(None)


def test_grpcios_opaque_credentials_are_explained() -> None:
    server = headrace.grpc.server()
    opaque = grpc.ssl_server_credentials([(b"key", b"chain")])
    with pytest.raises(TypeError, match=r"headrace\.grpc\.ssl_server_credentials"):
        server.add_secure_port("127.0.0.1:0", opaque)
    assert "key" not in repr(headrace.grpc.ssl_server_credentials([(b"key", b"chain")]))
