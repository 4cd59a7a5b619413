"""Server: composes the core, the control plane and monitoring into one server in this process.

with Server(ServerConfig(model_repository=(Path("models"),), grpc_port=0)) as server:
    print(server.address)

server = Server(ServerConfig(grpc_port=0))
server.add_callable("double", lambda x: {"y": x["x"] * 2},
                    inputs={"x": ("FP32", [4])}, outputs={"y": ("FP32", [4])}, max_batch_size=8)
server.start()
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace import runtime
from headrace.access import AccessPolicy, Quota, read_access_file
from headrace.config import ServerConfig
from headrace.control.admin_listeners import AdminListeners
from headrace.control.admin_service import AdminService
from headrace.control.kserve_service import KServeService
from headrace.control.manager import ManagerOptions, ModelManager
from headrace.control.people import People
from headrace.control.rollouts import Rollouts
from headrace.control.signature import Declaration, datatype_number, declare
from headrace.control.swapping import LoadEvent
from headrace.control.tls_reload import TlsReload
from headrace.errors import FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.logs import get_logger
from headrace.protocol import model_config
from headrace.rollout.journal import Journal

if TYPE_CHECKING:
    from headrace.grpc.dispatch import Run
    from headrace.grpc.server import Registry
    from headrace.monitoring.http import MonitoringServer
    from headrace.monitoring.tracing import TraceExporter
    from headrace.speech_web import SpeechRoutes

__all__ = ["Server", "run_until_signal"]

_log = get_logger("server")

# What the core itself serves.
_SERVICES = (
    "grpc.health.v1.Health",
    "inference.GRPCInferenceService",
    "nvidia.riva.asr.RivaSpeechRecognition",
)
_REFLECTION = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
# As grpc.Compression.
_COMPRESSION = {"none": 0, "deflate": 1, "gzip": 2}

Infer = Callable[[dict[str, Any]], Mapping[str, Any]]


class Server:
    """start() and stop() once each, from one thread; the rest from any."""

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        on_event: Callable[[LoadEvent], None] | None = None,
    ) -> None:
        self.config = config if config is not None else ServerConfig()
        self._began = time.monotonic()
        options = runtime.ServerOptions(
            host=self.config.host,
            port=self.config.grpc_port,
            io_threads=self.config.io_threads,
            busy_poll_s=self.config.busy_poll_us / 1e6,
            max_message_bytes=self.config.max_message_bytes,
            limits=self.config.limits.as_dict(),
            service_threads=self.config.service_threads,
            response_compression=_COMPRESSION[self.config.response_compression],
        )
        self._core = runtime.Server(options)
        self._people = (
            People(self.config.tickets, keep_days=self.config.tickets_keep_days)
            if self.config.tickets is not None
            else None
        )
        desk = self._people.desk if self._people is not None else None
        self.manager = ModelManager(
            self._core, _manager_options(self.config, desk), on_event=on_event
        )
        state = self.config.state_path
        self.rollouts = Rollouts(
            self.manager, Journal(state / "rollouts.json" if state is not None else None)
        )
        self._admin = AdminListeners(
            self.config,
            AdminService(
                self.rollouts,
                self.manager.registry,
                self._people,
                self.manager.request_load_together,
            ),
        )
        KServeService(
            self.manager, server_name=self.config.id, server_version=runtime.__version__
        ).add_to(self._core)
        self._tls = TlsReload(self._reload_tls, self.config.tls_files, self.config.tls_reload_secs)
        self._services: Registry | None = None
        self._service_names: set[str] = set()
        self._reflection: Run | None = None
        self._metrics: MonitoringServer | None = None
        self._speech: SpeechRoutes | None = None
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._traces: TraceExporter | None = None
        self._access: AccessPolicy | None = None  # of auth_file, when it was read last
        self._listening: list[str] = []  # as the log shows them
        self._state = "new"

    # ---- before start ---------------------------------------------------------------------------

    def add_callable(
        self,
        name: str,
        fn: Infer | Sequence[Infer],
        inputs: Declaration,
        outputs: Declaration,
        *,
        max_batch_size: int = 0,
        max_queue_delay_us: int = 0,
        preferred_batch_size: Sequence[int] = (),
        max_queue_size: int = 0,
        instances: int = 1,
        version: int = 1,
    ) -> None:
        """Serves `fn(inputs: {name: array}) -> {name: array}` as a model, before or after start().

        `inputs` and `outputs` are {name: (datatype, dims)}, dims without the batch dimension when
        max_batch_size > 0; requests are then batched, and fn sees arrays of shape (batch, *dims).
        A sequence of callables is one an instance; one callable is shared by `instances` threads.
        """
        functions = [fn] * instances if callable(fn) else list(fn)
        if not functions:
            raise InvalidArgumentError(f"model '{name}' needs at least one callable")
        config = model_config.ModelConfig(
            name=name, backend="callback", max_batch_size=max_batch_size
        )
        for what, declaration, tensors in (
            ("inputs", inputs, config.input),
            ("outputs", outputs, config.output),
        ):
            for tensor, datatype, dims in declare(declaration, f"model '{name}': {what}"):
                tensors.add(name=tensor, data_type=datatype_number(datatype), dims=dims)
        config.version_policy.latest.num_versions = 1
        config.instance_group.add(
            name=f"{name}_0", kind=model_config.ModelInstanceGroup.KIND_CPU, count=len(functions)
        )
        if max_batch_size > 1:
            batching = config.dynamic_batching
            batching.SetInParent()
            batching.max_queue_delay_microseconds = max_queue_delay_us
            batching.preferred_batch_size.extend(preferred_batch_size)
            if max_queue_size:
                batching.default_queue_policy.max_queue_size = max_queue_size
        self.manager.add_callable(config, functions, version)

    # As generated add_*Servicer_to_server() calls them: gRPC services of your own on the same port.

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        self._registry().add_generic(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Any]
    ) -> None:
        self._registry().add_methods(service_name, method_handlers)

    def _registry(self) -> Registry:
        from headrace.grpc.server import Registry

        if self._state != "new":
            raise FailedPreconditionError("services are added before start()")
        if self._services is None:
            self._services = Registry((), (), None)
        return self._services

    def _add_services(self) -> None:
        names = {*_SERVICES}
        if self.config.reflection and importlib.util.find_spec("grpc_reflection") is not None:
            names.update(_REFLECTION)
            for name in _REFLECTION:
                self._core.add_method(
                    f"/{name}/ServerReflectionInfo",
                    self._reflect,
                    pool="service",
                    request_streaming=True,
                    response_streaming=True,
                )
        if self._services is not None:
            from headrace.grpc.options import Settings

            names.update(self._services.services)
            self._services.add_to(
                self._core,
                Settings(limits=self.config.limits),
                0,
                others=self._services.has_unknown,
            )
        self._service_names = names

    def _reflect(self, message: None, call: runtime.ServerCall) -> bytes | None:
        if self._reflection is None:  # grpcio is not needed before someone asks
            from headrace.grpc.reflection import reflection_run
            from headrace.protocol.descriptors import pool

            self._reflection = reflection_run(self._service_names, [pool()])
        return self._reflection(message, call)

    # ---- life -----------------------------------------------------------------------------------

    def start(self) -> list[tuple[str, HeadraceError]]:
        """Binds, serves, loads the models; ready when it returns. Answers what did not load.

        Raises UnavailableError when a port cannot be bound, and with `exit_on_error` the first
        model's error; the server is stopped then.
        """
        if self._state != "new":
            raise FailedPreconditionError("a Server is started once; make another one")
        self._state = "started"
        try:
            if self.config.metrics_enabled:
                from headrace.monitoring.http import MonitoringServer
                from headrace.speech_web import SpeechRoutes

                self._local = tempfile.TemporaryDirectory(prefix="headrace-")  # the user's alone
                self._speech = SpeechRoutes(f"unix:{self._local.name}/grpc.sock")
                self._metrics = MonitoringServer(
                    self.config.host,
                    self.config.metrics_port,
                    dashboard=self.config.dashboard,
                    routes=self._speech.routes,
                )
            if self.config.auth_file:
                self._access = read_access_file(Path(self.config.auth_file))
                self._set_access(self._core)
            if self.config.otlp_endpoint:
                self._start_tracing()
            self._listen()
            if self._local is not None:  # from the HTTP port to the gRPC services
                self._core.add_listener(f"unix:{self._local.name}/grpc.sock", None, unix_mode=0o600)
            self._add_services()
            if self._people is not None:
                self._people.start()
            self._core.start()
            self._admin.start(self.port, self._tls_options(), self._set_access)
            if self._admin.address:
                self._listening.append(f"{self._admin.address} (admin, TLS)")
            self._tls.start()
            failures = self.manager.load_initial()
            if failures and self.config.exit_on_error and not self.manager.registry.stopping:
                name, error = failures[0]
                rest = f" ({len(failures) - 1} more failed too)" if len(failures) > 1 else ""
                raise type(error)(
                    f"model '{name}' could not be loaded{rest}: {error.details.strip()}\n"
                    "The server starts without it when given --no-exit-on-error."
                )
        except BaseException:
            self.stop(grace_s=0)
            raise
        self._announce()
        if self._metrics is not None:
            from headrace.control.readings import Readings

            self._metrics.start(
                Readings(
                    self._core,
                    self.manager.registry,
                    self.rollouts,
                    self.manager.response_cache,
                    self._traces,
                    self._people,
                    self.manager.engines,
                ),
                runtime.histogram_bounds_ns(),
                runtime.__version__,
            )
        return failures

    def _start_tracing(self) -> None:
        from headrace.monitoring.tracing import CAPACITY, TraceExporter

        self._traces = TraceExporter(
            self.config.otlp_endpoint, server_id=self.config.id, version=runtime.__version__
        )
        self._core.set_tracing(ratio=self.config.trace_ratio, capacity=CAPACITY)
        self._traces.start(self._core.drain_traces)

    def _tls_options(self) -> runtime.TlsOptions | None:
        config = self.config
        if not config.tls_cert:
            return None
        return runtime.TlsOptions(
            certificate_chain_file=config.tls_cert,
            private_key_file=config.tls_key,
            client_ca_file=config.tls_client_ca,
            client_auth=config.client_auth,
        )

    def _listen(self) -> None:
        config = self.config
        tls = self._tls_options()
        mode = int(config.unix_socket_mode, 8)
        addresses = [(address, tls) for address in config.listen]
        addresses += [(address, None) for address in config.listen_insecure]
        if not config.listen and not config.listen_insecure:
            host = f"[{config.host}]" if ":" in config.host else config.host
            addresses = [(f"{host}:{config.grpc_port}", tls)]
        for address, secured in addresses:
            unix = address.startswith(("unix:", "unix-abstract:"))
            port = self._core.add_listener(address, None if unix else secured, unix_mode=mode)
            self._listening.append(
                (address if unix else f"{address.rpartition(':')[0]}:{port}")
                + (" (TLS)" if secured is not None and not unix else "")
            )

    def reload_tls(self) -> bool:
        """Reads the TLS files again, now: new connections use them, running calls go on. Whether
        they were good; if not, the old ones stay and the log says why."""
        return self._tls.reload()

    def _reload_tls(self) -> None:
        self._core.reload_tls()
        if self._admin.remote is not None:
            self._admin.remote.reload_tls()

    def stop(self, grace_s: float | None = None) -> bool:
        """Not ready at once; running requests may finish within `grace_s` (exit_timeout_secs).
        True if none had to be ended. Idempotent."""
        if self._state == "stopped":
            return True
        started = self._state == "started"
        self._state = "stopped"
        grace = self.config.exit_timeout_secs if grace_s is None else grace_s
        deadline = time.monotonic() + grace
        self.manager.begin_stop()
        self._admin.stop()
        self.rollouts.stop()
        if started:
            self._tls.stop()
        finished = self._core.stop(grace) if started else True
        finished = self.manager.stop(max(0.0, deadline - time.monotonic())) and finished
        if self._traces is not None:
            self._traces.stop()
        if self._metrics is not None:
            self._metrics.stop()
        if self._speech is not None:
            self._speech.close()
        if self._local is not None:
            self._local.cleanup()
        if self._people is not None:
            self._people.stop()
        return finished

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The first TCP port of gRPC, after start(); 0 when there are only unix sockets."""
        return self._core.port

    @property
    def address(self) -> str:
        """ "host:port" that a client in this machine can use."""
        host = self.config.host
        if host in ("0.0.0.0", "::", ""):
            host = "127.0.0.1" if host != "::" else "::1"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def admin_socket(self) -> Path | None:
        """The admin service's unix socket, after start(), where there is one."""
        return self._admin.socket

    @property
    def admin_address(self) -> str:
        """ "host:port" of `admin_listen`, after start(); "" without."""
        return self._admin.address

    @property
    def metrics_port(self) -> int:
        """-1 when metrics are off."""
        return self._metrics.port if self._metrics is not None else -1

    @property
    def ready(self) -> bool:
        return self.manager.registry.ready

    def reload_access(self) -> bool:
        """Reads `auth_file` again, now: it holds for the calls from now on. Whether it was good; if
        not, the old policy stays and the log says why."""
        try:
            self._access = read_access_file(Path(self.config.auth_file))
        except HeadraceError as error:
            _log.error("the access policy stays as it was: %s", error.details)
            return False
        self._set_access(self._core)
        if self._admin.remote is not None:
            self._set_access(self._admin.remote)
        _log.info("the access policy was read again")
        return True

    def _set_access(self, core: runtime.Server) -> None:
        policy = self._access
        assert policy is not None
        core.set_access(
            policy.anonymous,
            [(m.name, m.rights, m.keys, m.certificates, _pair(m.quota)) for m in policy.members],
            _pair(policy.anonymous_quota),
        )

    def rights(self) -> list[tuple[str, str]]:
        """[(method, right it needs)], after start()."""
        return self._core.rights()

    @property
    def tls_not_after(self) -> int:
        """When the first certificate in use ends, in seconds since 1970; 0 without TLS."""
        return self._core.tls_not_after

    def statistics(self) -> dict[str, Any]:
        """The core's connection and call counters."""
        return self._core.statistics()

    def _announce(self) -> None:
        milliseconds = (time.monotonic() - self._began) * 1e3
        models = [
            f"{v.model}/{v.number} ({v.instances}x{v.threads})"
            for v in self.manager.registry.ready_versions()
        ]
        shown = ", ".join(models[:20]) + (
            f" and {len(models) - 20} more" if len(models) > 20 else ""
        )
        _log.info(
            "%s in %.0f ms: gRPC %s, %s %s, models (instances x threads): %s",
            "ready" if self.ready else "started, NOT ready",
            milliseconds,
            ", ".join(self._listening),
            "metrics and dashboard" if self.config.dashboard else "metrics",
            f":{self.metrics_port}" if self._metrics is not None else "off",
            shown or "none",
            extra={
                "fields": {
                    "ready": self.ready,
                    "start_ms": round(milliseconds),
                    "grpc_port": self.port,
                    "metrics_port": self.metrics_port,
                    "models": models,
                }
            },
        )


def _pair(quota: Quota | None) -> tuple[float, float] | None:
    return (quota.rate, quota.burst) if quota is not None else None


def _manager_options(config: ServerConfig, desk: runtime.HumanDesk | None) -> ManagerOptions:
    return ManagerOptions(
        repositories=config.model_repository,
        mode=config.model_control_mode,
        load=config.load_model,
        poll_secs=config.repository_poll_secs,
        strict_readiness=config.strict_readiness,
        cores=config.cores,
        load_threads=config.load_threads,
        default_max_batch_size=config.default_max_batch_size,
        onnx_engine=config.onnx_engine,
        cache_dir=config.cache_dir,
        response_cache_bytes=config.response_cache_byte_size,
        desk=desk,
    )


class _Task(threading.Thread):
    """Runs `function` and then calls `done`; `result` or `error` is set by then."""

    def __init__(
        self, name: str, function: Callable[[], object], done: Callable[[], object]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._done = done
        self.result: object = None
        self.error: BaseException | None = None
        self.ended = False

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error
        self.ended = True
        self._done()


# Past the exit timeout, when every call has been answered, an instance may hold the stop this long.
_HANGING_SECS = 2.0


def run_until_signal(
    config: ServerConfig, *, on_event: Callable[[LoadEvent], None] | None = None
) -> int:
    """`headrace serve`: runs until SIGTERM or SIGINT, then drains. Answers the exit status, 0;
    raises when the server cannot start. SIGHUP reads the TLS files and `auth_file` again. A second
    signal ends the process at once, with 1; so does a model that hangs, two seconds after the exit
    timeout. Main thread only.

    Start and stop run on threads of their own, so that signals are heard also while the core
    compiles a model or waits for requests to finish. Signals arrive through a socket
    (`set_wakeup_fd`): a lock that this thread waited on would not be woken by a signal that
    another thread receives.
    """
    ended = b"\0"  # no signal has this number
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signals = [signal.SIGTERM, signal.SIGINT]
    if config.tls_files or config.auth_file:
        signals.append(signal.SIGHUP)  # else it ends the process, as ever
    previous = {number: signal.signal(number, lambda *_: None) for number in signals}
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        server = Server(config, on_event=on_event)
        start = _Task("start", server.start, lambda: writer.send(ended))
        stop = _Task("stop", server.stop, lambda: writer.send(ended))
        start.start()
        asked: float | None = None  # when
        while not stop.ended:
            if asked is not None:
                patience = config.exit_timeout_secs + _HANGING_SECS
                reader.settimeout(max(0.01, asked + patience - time.monotonic()))
            try:
                received = reader.recv(1)
            except TimeoutError:
                # Its callers have their answer; a thread inside a model cannot be ended.
                _log.error("a model still runs a batch after the exit timeout: ending without it")
                os._exit(1)
            if received == bytes([signal.SIGHUP]):
                if asked is None and config.tls_files:
                    server.reload_tls()
                if asked is None and config.auth_file:
                    server.reload_access()
            elif received != ended:
                if asked is not None:
                    sys.stderr.write("second signal: ending at once\n")
                    sys.stderr.flush()
                    os._exit(1)
                asked = time.monotonic()
                _log.info("stopping: running requests have %g s", config.exit_timeout_secs)
                # Also ends a start that is still loading, after the models it is at.
                server.manager.begin_stop()
            if start.error is not None:
                raise start.error
            if asked is not None and start.ended and stop.ident is None:
                stop.start()
        if stop.error is not None:
            raise stop.error
        if not stop.result:
            _log.warning("some requests did not finish in time and were ended")
        assert asked is not None
        _log.info("stopped in %.0f ms", (time.monotonic() - asked) * 1e3)
        return 0
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()
