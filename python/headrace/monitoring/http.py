"""The HTTP port, beside gRPC's: monitoring, and what others register as `routes`.

    /metrics             Prometheus text
    / and /dashboard     the page (dashboard.html)
    /api/state           the numbers it shows, as JSON

Nothing is computed unless somebody asks. A thread a connection, a bounded number of them; past it
the oldest connection ends, so that slow clients cannot keep others out.
"""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from headrace.errors import UnavailableError
from headrace.logs import get_logger
from headrace.monitoring.exporter import Source, exposition, make_registry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from headrace.monitoring.dashboard import Dashboard

__all__ = ["MAX_CONNECTIONS", "MonitoringServer"]

_log = get_logger("metrics")

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_CONNECTIONS = 128
_TIMEOUT_S = 10.0  # of silence
_GZIP_FROM = 1024  # bytes
# Of every answer; the page adds a Content-Security-Policy of its own.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


# Gets the handler: its headers, its streams, and send().
Route = Callable[[Any], None]


class MonitoringServer:
    """The port is bound by the constructor, so that a start with a taken port fails at once."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        dashboard: bool = True,
        routes: Mapping[tuple[str, str], Route] | None = None,
    ) -> None:
        """`port` 0: any free one. Raises UnavailableError naming address and flag. `routes`:
        (method, path) -> what answers it, on the connection's thread."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise UnavailableError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}; choose another "
                "--metrics-port (0 = any free one, -1 = none)"
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self._with_dashboard = dashboard
        self.routes: Mapping[tuple[str, str], Route] = routes or {}
        self._thread: threading.Thread | None = None
        self._http: _Http | None = None
        # Made by the thread, before it serves: their libraries take long to import.
        self._made = threading.Event()  # or failed
        self._registry: CollectorRegistry | None = None
        self._dashboard: Dashboard | None = None

    def start(self, source: Source, bounds_ns: Sequence[int], version: str) -> None:
        http = _Http(self._socket, self)

        def serve() -> None:
            try:
                registry = make_registry(source, bounds_ns, version)
                if self._with_dashboard:
                    from headrace.monitoring.dashboard import Dashboard

                    self._dashboard = Dashboard(source, registry, bounds_ns, version)
                self._registry = registry
            except Exception:
                _log.exception("no metrics: their port answers nothing")
                return
            finally:
                self._made.set()
            http.serve_forever(poll_interval=0.1)

        self._http = http
        self._thread = threading.Thread(target=serve, name="metrics", daemon=True)
        self._thread.start()

    def answer(self, path: str) -> tuple[HTTPStatus, dict[str, str], bytes]:
        """(status, headers, body) of a GET. Any thread."""
        if path == "/metrics":
            assert self._registry is not None
            return HTTPStatus.OK, {"Content-Type": METRICS_TYPE}, exposition(self._registry)
        if self._dashboard is not None:
            if path in ("/", "/dashboard"):
                return HTTPStatus.OK, self._dashboard.page_headers, self._dashboard.page
            if path == "/api/state":
                return (
                    HTTPStatus.OK,
                    {"Content-Type": "application/json"},
                    self._dashboard.state(),
                )
        text = b"metrics are at /metrics\n"
        return HTTPStatus.NOT_FOUND, {"Content-Type": "text/plain; charset=utf-8"}, text

    def stop(self) -> None:
        if self._http is not None and self._thread is not None:
            self._made.wait()
            if self._registry is not None:
                self._http.shutdown()  # waits for the end of serve_forever
            self._thread.join()
            self._http.end_connections()
            self._http = None
        self._socket.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, bound: socket.socket, monitoring: MonitoringServer) -> None:
        super().__init__(bound.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()  # the one it made; ours is bound already
        self.socket = bound
        self.monitoring = monitoring
        self._lock = threading.Lock()
        self._open: dict[Any, None] = {}  # connections, oldest first; guarded by _lock

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = None
            if len(self._open) > MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                _end(oldest)  # its thread closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                _end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("%s: connection ended", client_address[0], exc_info=True)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT_S
    server: _Http

    def do_GET(self) -> None:
        if self._routed("GET"):
            return
        try:
            status, headers, body = self.server.monitoring.answer(self.path.partition("?")[0])
        except Exception:
            _log.exception("%s could not be answered", self.path)
            self.send(HTTPStatus.INTERNAL_SERVER_ERROR, {}, b"")
            return
        if len(body) >= _GZIP_FROM and "gzip" in self.headers.get("Accept-Encoding", ""):
            headers = {**headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            body = gzip.compress(body, 1)
        self.send(status, headers, body)

    def do_POST(self) -> None:
        if not self._routed("POST"):
            self.close_connection = True
            text = {"Content-Type": "text/plain; charset=utf-8"}
            self.send(HTTPStatus.NOT_IMPLEMENTED, text, b"nothing takes a POST here\n")

    def _routed(self, method: str) -> bool:
        route = self.server.monitoring.routes.get((method, self.path.partition("?")[0]))
        if route is None:
            return False
        try:
            route(self)
        except OSError:
            raise  # the client left
        except Exception:
            _log.exception("%s could not be answered", self.path)
            self.close_connection = True
            self.send(HTTPStatus.INTERNAL_SERVER_ERROR, {}, b"")
        return True

    def send(self, status: HTTPStatus, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "headrace"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        _log.debug("%s " + format, self.address_string(), *args)
