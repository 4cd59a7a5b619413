"""grpc.aio.Server on Headrace's core: async def servicers, on the user's asyncio loop. What
happens to calls reaches the loop through one descriptor, read once for all that has happened since.

    server = headrace.grpc.aio.server()
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    port = server.add_insecure_port("[::]:0")
    await server.start()
    await server.wait_for_termination()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import grpc

from headrace import runtime
from headrace.grpc import server as threaded
from headrace.grpc.aio_dispatch import Engine
from headrace.grpc.credentials import ServerCredentials, credentials_of
from headrace.grpc.options import settings_of

__all__ = ["Server", "server"]

_log = logging.getLogger("headrace.grpc")


class Server(grpc.aio.Server):  # type: ignore[misc]
    """Threads: the asyncio loop's."""

    def __init__(
        self,
        thread_pool: Executor | None,
        generic_handlers: Sequence[grpc.GenericRpcHandler],
        interceptors: Sequence[Any],
        options: Sequence[tuple[str, Any]],
        maximum_concurrent_rpcs: int | None,
        compression: grpc.Compression | None,
    ) -> None:
        invalid = [i for i in interceptors if not isinstance(i, grpc.aio.ServerInterceptor)]
        if invalid:
            raise ValueError(f"interceptors must be grpc.aio.ServerInterceptor, not {invalid}")
        threaded.validate(generic_handlers)
        self._settings = settings_of(options)
        self._core = runtime.Server(
            runtime.ServerOptions(
                host="",
                io_threads=self._settings.io_threads,
                limits=self._settings.limits.as_dict(),
                max_concurrent_calls=(
                    0 if maximum_concurrent_rpcs is None else maximum_concurrent_rpcs
                ),
                kserve=False,
            )
        )
        self._engine = Engine(
            self._core,
            generic_handlers,
            interceptors,
            thread_pool,
            0 if compression is None else int(compression),
            self._settings.max_receive_message_bytes,
        )
        self._state = "new"
        self._terminated: asyncio.Event | None = None

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]
    ) -> None:
        handlers = tuple(generic_rpc_handlers)
        threaded.validate(handlers)
        self._engine.generic.extend(handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        for name, handler in method_handlers.items():
            self._engine.methods[f"/{service_name}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        return threaded.listen(self._core, address, None)

    def add_secure_port(self, address: str, server_credentials: ServerCredentials) -> int:
        return threaded.listen(self._core, address, credentials_of(server_credentials))

    async def start(self) -> None:
        if self._state != "new":
            raise grpc.aio.UsageError("Server already started.")
        self._state = "started"
        self._terminated = asyncio.Event()
        self._engine.start(asyncio.get_running_loop())
        self._core.start()
        threaded.stop_at_exit(self._core)

    async def stop(self, grace: float | None) -> None:
        """No new calls; those that run have `grace` seconds, which a later stop() may shorten."""
        seconds = 0.0 if grace is None else max(0.0, grace)
        if self._state == "new":
            self._state = "stopped"
            self._core.stop(0.0)
        if self._state == "stopped":
            return
        assert self._terminated is not None
        if self._state == "stopping":
            self._core.shorten_grace(seconds)
            await self._terminated.wait()
            return
        self._state = "stopping"
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._core.stop, seconds)
        await self._engine.finish()
        self._state = "stopped"
        self._terminated.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Until the server has stopped; True when `timeout` seconds passed before."""
        if self._terminated is None:
            raise grpc.aio.UsageError("the server has not been started")
        try:
            await asyncio.wait_for(self._terminated.wait(), timeout)
        except asyncio.TimeoutError:
            return True
        return False

    def __del__(self) -> None:
        if getattr(self, "_state", "new") in ("started", "stopping"):
            self._engine.abandon()


def server(
    migration_thread_pool: Executor | None = None,
    handlers: Sequence[grpc.GenericRpcHandler] | None = None,
    interceptors: Sequence[Any] | None = None,
    options: Iterable[tuple[str, Any]] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
) -> Server:
    """As grpc.aio.server(). Handlers that are no coroutines run on `migration_thread_pool`, or on
    the loop's default executor."""
    return Server(
        migration_thread_pool,
        () if handlers is None else handlers,
        () if interceptors is None else interceptors,
        () if options is None else tuple(options),
        maximum_concurrent_rpcs,
        compression,
    )
