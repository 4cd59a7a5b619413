"""async def servicers on grpc.aio's server and on ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_servers import method, unary

import headrace.grpc

MAKE = {"grpcio": grpc.aio.server, "headrace": headrace.grpc.aio.server}


def run(
    kind: str,
    add: Callable[[Any], object],
    use: Callable[[Any, Any], Awaitable[None]],
    **options: Any,
) -> None:
    """Starts a server with what `add` registers, runs use(server, channel), and stops it."""

    async def main() -> None:
        server = MAKE[kind](**options)
        add(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await asyncio.wait_for(use(server, channel), 60)
        finally:
            await server.stop(None)

    asyncio.run(main())


async def outcome(call: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError):
        await call
    return await call.code(), await call.details()


def test_all_four_kinds(kind: str) -> None:
    async def unary_unary(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0)
        return request[::-1]

    async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for byte in request:
            yield bytes([byte])

    async def stream_unary(requests: Any, context: Any) -> bytes:
        return b"".join([request async for request in requests])

    async def stream_stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request * 2

    async def by_hand(requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request + b"!")

    def add(server: Any) -> None:
        method("/t.A/M", grpc.unary_unary_rpc_method_handler(unary_unary))(server)
        method("/t.B/M", grpc.unary_stream_rpc_method_handler(unary_stream))(server)
        method("/t.C/M", grpc.stream_unary_rpc_method_handler(stream_unary))(server)
        method("/t.D/M", grpc.stream_stream_rpc_method_handler(stream_stream))(server)
        method("/t.E/M", grpc.stream_stream_rpc_method_handler(by_hand))(server)

    async def use(server: Any, channel: Any) -> None:
        assert await channel.unary_unary("/t.A/M")(b"abc") == b"cba"
        assert [m async for m in channel.unary_stream("/t.B/M")(b"abc")] == [b"a", b"b", b"c"]
        many = [b"%d," % i for i in range(1000)]
        assert await channel.stream_unary("/t.C/M")(iter(many)) == b"".join(many)
        echoed = [m async for m in channel.stream_stream("/t.D/M")(iter(many))]
        assert echoed == [m * 2 for m in many]
        call = channel.stream_stream("/t.E/M")()
        for message in (b"1", b"2"):
            await call.write(message)
            assert await call.read() == message + b"!"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        count = 2000 if kind == "headrace" else 50  # grpcio's ends some of more CANCELLED
        answers = await asyncio.gather(
            *(channel.unary_unary("/t.A/M")(b"%d" % i) for i in range(count))
        )
        assert answers == [(b"%d" % i)[::-1] for i in range(count)]

    run(kind, add, use)


def test_statuses(kind: str) -> None:
    async def handler(request: bytes, context: Any) -> Any:
        if request == b"raise":
            raise ValueError("it broke")
        if request == b"abort":
            await context.abort(grpc.StatusCode.ABORTED, "é ☺", (("why", "so"),))
        if request == b"code":
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details("not here")
        context.set_trailing_metadata((("t", "1"),))
        return b"answer"

    async def use(server: Any, channel: Any) -> None:
        call = channel.unary_unary("/t.S/M")
        unknown, text = await outcome(call(b"raise"))
        assert unknown == grpc.StatusCode.UNKNOWN
        assert text == "Unexpected <class 'ValueError'>: it broke"
        aborted = call(b"abort")
        assert await outcome(aborted) == (grpc.StatusCode.ABORTED, "é ☺")
        assert ("why", "so") in [tuple(p) for p in await aborted.trailing_metadata()]
        assert await outcome(call(b"code")) == (grpc.StatusCode.NOT_FOUND, "not here")
        assert await call(b"x") == b"answer"
        missing = await outcome(channel.unary_unary("/t.S/Other")(b""))
        assert missing[0] == grpc.StatusCode.UNIMPLEMENTED

    run(kind, unary("/t.S/M", handler), use)


def test_a_context_knows_its_call(kind: str) -> None:
    seen: dict[str, Any] = {}

    async def handler(request: bytes, context: Any) -> bytes:
        seen.update(
            metadata=[tuple(p) for p in context.invocation_metadata()],
            peer=context.peer(),
            remaining=context.time_remaining(),
            cancelled=context.cancelled(),
            instance=isinstance(context, grpc.aio.ServicerContext),
        )
        context.add_done_callback(lambda _: seen.update(done=True))
        await context.send_initial_metadata((("early", "yes"),))
        return b""

    async def use(server: Any, channel: Any) -> None:
        call = channel.unary_unary("/t.S/M")(b"", metadata=(("a", "b"), ("c-bin", b"\0\xff")))
        assert ("early", "yes") in [tuple(p) for p in await call.initial_metadata()]
        await call
        assert ("a", "b") in seen["metadata"] and ("c-bin", b"\0\xff") in seen["metadata"]
        assert seen["peer"].startswith("ipv4:127.0.0.1:")
        assert seen["remaining"] is None and seen["cancelled"] is False
        if kind == "headrace":
            assert seen["instance"]
        while "done" not in seen:
            await asyncio.sleep(0.001)
        await channel.unary_unary("/t.S/M")(b"", timeout=50)
        assert 0 < seen["remaining"] <= 51

    run(kind, unary("/t.S/M", handler), use)


def test_cancellation_reaches_the_handler(kind: str) -> None:
    async def main() -> None:
        entered, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(request: bytes, context: Any) -> bytes:
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return b""

        server = MAKE[kind]()
        unary("/t.S/M", handler)(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/t.S/M")(b"")
            await asyncio.wait_for(entered.wait(), 60)
            call.cancel()
            await asyncio.wait_for(cancelled.wait(), 60)
        await server.stop(None)

    asyncio.run(main())


def test_interceptors(kind: str) -> None:
    log: list[str] = []

    class Recording(grpc.aio.ServerInterceptor):  # type: ignore[misc]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            log.append(details.method)
            if ("refuse", "yes") in [tuple(p) for p in details.invocation_metadata]:

                async def refuse(request: Any, context: Any) -> None:
                    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

                return grpc.unary_unary_rpc_method_handler(refuse)
            return await continuation(details)

    async def handler(request: bytes, context: Any) -> bytes:
        return request

    async def use(server: Any, channel: Any) -> None:
        assert await channel.unary_unary("/t.S/M")(b"x") == b"x"
        refused = channel.unary_unary("/t.S/M")(b"x", metadata=(("refuse", "yes"),))
        assert await outcome(refused) == (grpc.StatusCode.UNAUTHENTICATED, "no")
        assert log == ["/t.S/M"] * 2

    run(kind, unary("/t.S/M", handler), use, interceptors=(Recording(),))


def test_plain_functions_run_on_threads(kind: str) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        if request == b"abort":
            context.abort(grpc.StatusCode.ABORTED, "no")
        return request

    async def use(server: Any, channel: Any) -> None:
        assert await channel.unary_unary("/t.S/M")(b"x") == b"x"
        assert (await outcome(channel.unary_unary("/t.S/M")(b"abort")))[0] == (
            grpc.StatusCode.ABORTED
        )

    run(kind, unary("/t.S/M", handler), use)


def test_a_slow_reader_holds_back_the_handler(kind: str) -> None:
    made = 0

    async def handler(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield bytes(100_000)

    async def use(server: Any, channel: Any) -> None:
        call = channel.unary_stream("/t.S/M")(b"")
        await call.read()
        seen = -1
        while seen != made:
            seen = made
            await asyncio.sleep(0.3)  # until nothing moves
        assert made < 500
        count = 1
        while await call.read() is not grpc.aio.EOF:
            count += 1
        assert count == 1000

    run(kind, method("/t.S/M", grpc.unary_stream_rpc_method_handler(handler)), use)


def test_stop_lets_calls_finish(kind: str) -> None:
    async def main() -> None:
        entered, gate = asyncio.Event(), asyncio.Event()

        async def handler(request: bytes, context: Any) -> bytes:
            entered.set()
            await gate.wait()
            return b"finished"

        server = MAKE[kind]()
        unary("/t.S/M", handler)(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/t.S/M")(b"")
            await asyncio.wait_for(entered.wait(), 60)
            stopping = asyncio.ensure_future(server.stop(60))
            await asyncio.sleep(0)
            gate.set()
            assert await call == b"finished"
            await asyncio.wait_for(stopping, 60)
        assert await server.wait_for_termination(60) is False or kind == "grpcio"

    asyncio.run(main())
