"""grpc.Server on Headrace's core: generated `add_*Servicer_to_server`, grpc_health,
grpc_reflection and hand-written handlers plug in unchanged.

    server = headrace.grpc.server(ThreadPoolExecutor(max_workers=10))
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    port = server.add_insecure_port("[::]:0")
    server.start()
    server.wait_for_termination()
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import grpc

from headrace import runtime
from headrace.errors import HeadraceError
from headrace.grpc.context import run_callbacks
from headrace.grpc.credentials import ServerCredentials, credentials_of
from headrace.grpc.dispatch import Run, bind, find_and_run, intercepted, on_executor
from headrace.grpc.options import Settings, settings_of

__all__ = ["Server", "server"]

_log = logging.getLogger("headrace.grpc")

_WORKERS = 10

# Stopped when the interpreter ends: threads that come back into Python after that would not live.
_running: weakref.WeakSet[runtime.Server] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for core in list(_running):
        core.stop(0.0)


def stop_at_exit(core: runtime.Server) -> None:
    _running.add(core)


def validate(generic_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
    for handler in generic_handlers:
        if getattr(handler, "service", None) is None:
            raise AttributeError(
                f'"{handler}" must conform to grpc.GenericRpcHandler type but does not have '
                '"service" method!'
            )


def listen(core: runtime.Server, address: str, credentials: ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return core.add_listener(address)
        # As grpcio: with roots alone a client may show a certificate, and a bad one is refused.
        optional = "none" if credentials.root_certificates is None else "request"
        tls = runtime.TlsOptions(
            private_key=credentials.private_key,
            certificate_chain=credentials.certificate_chain,
            client_ca=credentials.root_certificates or b"",
            client_auth="require" if credentials.require_client_auth else optional,
        )
        return core.add_listener(address, tls)
    except HeadraceError as error:
        raise RuntimeError(f"Failed to bind to address {address}: {error.details}") from error


class Registry:
    """The handlers of a server, and how the core calls them."""

    def __init__(
        self,
        generic_handlers: Sequence[grpc.GenericRpcHandler],
        interceptors: Sequence[grpc.ServerInterceptor],
        executor: Executor | None,
    ) -> None:
        validate(generic_handlers)
        self._generic = list(generic_handlers)
        self._methods: dict[str, grpc.RpcMethodHandler] = {}
        self._interceptors = list(interceptors)
        self._executor = executor

    def add_generic(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        handlers = tuple(handlers)
        validate(handlers)
        self._generic.extend(handlers)

    def add_methods(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        for name, handler in handlers.items():
            self._methods[f"/{service}/{name}"] = handler

    @property
    def services(self) -> set[str]:
        """The names that are known: a generic handler may serve others."""
        names = {path.split("/")[1] for path in self._methods}
        for generic in self._generic:
            if isinstance(generic, grpc.ServiceRpcHandler):
                names.add(generic.service_name())
        return names

    @property
    def has_unknown(self) -> bool:
        """Whether a generic handler serves what is not registered by name."""
        known = {path.split("/")[1] for path in self._methods}
        return any(
            not isinstance(generic, grpc.ServiceRpcHandler) or generic.service_name() not in known
            for generic in self._generic
        )

    def add_to(
        self, core: runtime.Server, settings: Settings, compression: int, *, others: bool
    ) -> None:
        """Before the core starts. `others`: generic handlers, also such as are added later, are
        asked for every method that is not registered."""
        for path, handler in self._methods.items():
            core.add_method(
                path,
                self._run_of(handler),
                pool="service",
                request_streaming=bool(handler.request_streaming),
                response_streaming=bool(handler.response_streaming),
                max_message_bytes=settings.max_receive_message_bytes,
                compression=compression,
                on_end=run_callbacks,
            )
        if not others:
            return
        core.add_method(
            "",
            self._on_pool(find_and_run(intercepted(self._find, self._interceptors))),
            pool="service",
            request_streaming=True,  # as far as is known before the handler is looked up
            response_streaming=True,
            max_message_bytes=settings.max_receive_message_bytes,
            compression=compression,
            on_end=run_callbacks,
        )

    def _find(self, details: Any) -> grpc.RpcMethodHandler | None:
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None

    def _run_of(self, handler: grpc.RpcMethodHandler) -> Run:
        if not self._interceptors:
            return self._on_pool(bind(handler))
        return self._on_pool(find_and_run(intercepted(lambda details: handler, self._interceptors)))

    def _on_pool(self, run: Run) -> Run:
        return run if self._executor is None else on_executor(run, self._executor)


def thread_starter(pool: ThreadPoolExecutor) -> Any:
    """What the core's threads do first, to be as the pool's would: a name, its initializer."""
    prefix = getattr(pool, "_thread_name_prefix", "") or "headrace-grpc"
    initializer = getattr(pool, "_initializer", None)
    arguments = getattr(pool, "_initargs", ())

    def start(number: int) -> None:
        threading.current_thread().name = f"{prefix}_{number}"
        if initializer is not None:
            initializer(*arguments)

    return start


class Server(grpc.Server):  # type: ignore[misc]
    """Threads: any, for every member."""

    def __init__(
        self,
        thread_pool: Executor | None,
        generic_handlers: Sequence[grpc.GenericRpcHandler],
        interceptors: Sequence[grpc.ServerInterceptor],
        options: Sequence[tuple[str, Any]],
        maximum_concurrent_rpcs: int | None,
        compression: grpc.Compression | None,
    ) -> None:
        self._settings = settings_of(options)
        self._compression = 0 if compression is None else int(compression)
        plain = thread_pool is None or type(thread_pool) is ThreadPoolExecutor
        workers = getattr(thread_pool, "_max_workers", _WORKERS) if plain else 1
        self._registry = Registry(generic_handlers, interceptors, None if plain else thread_pool)
        self._core = runtime.Server(
            runtime.ServerOptions(
                host="",
                io_threads=self._settings.io_threads,
                limits=self._settings.limits.as_dict(),
                service_threads=workers,
                on_service_thread=(
                    thread_starter(thread_pool)
                    if isinstance(thread_pool, ThreadPoolExecutor) and plain
                    else None
                ),
                max_concurrent_calls=(
                    0 if maximum_concurrent_rpcs is None else maximum_concurrent_rpcs
                ),
                kserve=False,
            )
        )
        self._lock = threading.Lock()
        self._state = "new"
        self._end = 0.0  # of the grace, while stopping
        self._terminated = threading.Event()
        self._stopping: list[threading.Event] = []

    # --- before start ------------------------------------------------------------------------

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        self._registry.add_generic(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        with self._lock:
            if self._state != "new":
                _log.warning("Cannot register method handlers once server has started")
                return
            self._registry.add_methods(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        return listen(self._core, address, None)

    def add_secure_port(self, address: str, server_credentials: ServerCredentials) -> int:
        return listen(self._core, address, credentials_of(server_credentials))

    # --- life --------------------------------------------------------------------------------

    def start(self) -> None:
        with self._lock:
            if self._state != "new":
                raise ValueError("Cannot start already-started server!")
            self._registry.add_to(self._core, self._settings, self._compression, others=True)
            self._core.start()
            stop_at_exit(self._core)
            self._state = "started"

    def stop(self, grace: float | None) -> threading.Event:
        """No new calls from now on; those that run have `grace` seconds, a later stop() may
        shorten them. The event is set when all have ended; without a grace they are ended, and it
        is set."""
        stopped = threading.Event()
        seconds = 0.0 if grace is None else max(0.0, grace)
        with self._lock:
            if self._state == "stopped" or self._state == "new":
                if self._state == "new":
                    self._state = "stopped"
                    self._core.stop(0.0)
                    self._terminated.set()
                stopped.set()
                return stopped
            self._stopping.append(stopped)
            if self._state == "started":
                self._state = "stopping"
                threading.Thread(
                    target=self._stop, args=(seconds,), name="headrace-grpc-stop", daemon=True
                ).start()
            else:
                self._core.shorten_grace(seconds)
        if grace is None:
            stopped.wait()
        return stopped

    def _stop(self, grace: float) -> None:
        self._core.stop(grace)
        with self._lock:
            self._state = "stopped"
            events, self._stopping = self._stopping, []
        _running.discard(self._core)
        for event in events:
            event.set()
        self._terminated.set()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Until the server has stopped; True when `timeout` seconds passed before."""
        return not self._terminated.wait(timeout)


def server(
    thread_pool: Executor | None = None,
    handlers: Sequence[grpc.GenericRpcHandler] | None = None,
    interceptors: Sequence[grpc.ServerInterceptor] | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
) -> Server:
    """As grpc.server().

    A ThreadPoolExecutor tells how many threads handlers run on, their names and initializer; the
    threads are the server's own. Any other executor gets a submit() for each call.
    """
    return Server(
        thread_pool,
        () if handlers is None else handlers,
        () if interceptors is None else interceptors,
        () if options is None else options,
        maximum_concurrent_rpcs,
        compression,
    )
