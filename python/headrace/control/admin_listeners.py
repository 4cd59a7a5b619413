"""AdminListeners: where the admin service is served. Each has a core with nothing else on it:
what reaches the data port does not reach it.

- a unix socket, for the server's user alone, who needs no credential;
- `--admin-listen`: TCP, always with TLS, and with the access policy: a key or a client certificate
  with the right that the method needs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headrace import runtime
from headrace.admin_socket import default_admin_socket, make_socket_folder
from headrace.config import ServerConfig
from headrace.control.admin_service import AdminService
from headrace.errors import HeadraceError
from headrace.logs import get_logger

__all__ = ["AdminListeners"]

_log = get_logger("admin")


class AdminListeners:
    """start() and stop() once each."""

    def __init__(self, config: ServerConfig, service: AdminService) -> None:
        self._config = config
        self._service = service
        self._local: runtime.Server | None = None
        self._remote: runtime.Server | None = None
        self.socket: Path | None = None  # after start(), where there is one
        self.address = ""  # of --admin-listen, after start()

    def start(
        self,
        grpc_port: int,
        tls: runtime.TlsOptions | None,
        set_access: Callable[[runtime.Server], None],
    ) -> None:
        """`tls` and `set_access` are for `--admin-listen`. Raises when an address that was asked
        for cannot be had; without a default socket it goes on, and says so."""
        if self._config.admin_socket:
            self._start_local(grpc_port)
        if self._config.admin_listen:
            assert tls is not None  # ServerConfig saw to it
            self._remote = self._core()
            set_access(self._remote)
            port = self._remote.add_listener(self._config.admin_listen, tls)
            self.address = f"{self._config.admin_listen.rpartition(':')[0]}:{port}"
            self._remote.start()

    def _start_local(self, grpc_port: int) -> None:
        auto = self._config.admin_socket == "auto"
        path = (
            default_admin_socket(grpc_port) if auto else Path(self._config.admin_socket).absolute()
        )
        try:
            if auto:
                make_socket_folder(path)
            core = self._core()
            core.add_listener(f"unix:{path}", unix_mode=0o600)
            core.start()
        except (HeadraceError, OSError) as error:
            if not auto:
                raise
            _log.warning("no admin service: %s", error)
        else:
            self._local = core
            self.socket = path

    def _core(self) -> runtime.Server:
        core = runtime.Server(
            runtime.ServerOptions(
                host="", io_threads=1, python_threads=1, service_threads=1, kserve=False
            )
        )
        self._service.add_to(core)
        return core

    @property
    def remote(self) -> runtime.Server | None:
        """What serves `--admin-listen`."""
        return self._remote

    def stop(self) -> None:
        for core in (self._local, self._remote):
            if core is not None:
                core.stop(0)
