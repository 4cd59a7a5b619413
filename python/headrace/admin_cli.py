"""Which server an administering command means: this machine's, or another's by address."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from headrace.admin_socket import default_admin_socket
from headrace.errors import InvalidArgumentError, NotFoundError

__all__ = ["AsJson", "Port", "Socket", "connected", "where"]

# typer reads annotations at run time and Python 3.10 has no `X | None` in Annotated there.
Port = Annotated[int, typer.Option("--grpc-port", help="The server's gRPC port, on this machine.")]
Socket = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--admin-socket", help="The server's admin socket, when it is not the default."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class _Remote:
    """Another machine's server, as the options before the command say."""

    address: str
    ca: Path | None
    certificate: Path | None
    key: Path | None
    api_key_file: Path | None

    def client(self) -> Any:
        from headrace.client.admin import AdminClient

        return AdminClient.over_tls(
            self.address,
            ca=_read("--tls-ca", self.ca),
            certificate=_read("--tls-cert", self.certificate),
            key=_read("--tls-key", self.key),
            api_key=self._api_key(),
        )

    def _api_key(self) -> str:
        data = _read("--api-key-file", self.api_key_file)
        return data.decode().strip() if data else os.environ.get("HEADRACE_API_KEY", "")


def _read(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{option} {path}: {error.strerror or error}") from None


OptionalPath = Optional[Path]  # noqa: UP045


def where(
    context: typer.Context,
    server: Annotated[
        str,
        typer.Option(help="host:port of a server's --admin-listen; default: this machine's."),
    ] = "",
    tls_ca: Annotated[
        OptionalPath, typer.Option(help="PEM: who signed the server's certificate.")
    ] = None,
    tls_cert: Annotated[OptionalPath, typer.Option(help="PEM: your certificate (mTLS).")] = None,
    tls_key: Annotated[OptionalPath, typer.Option(help="PEM: its key.")] = None,
    api_key_file: Annotated[
        OptionalPath,
        typer.Option(help="Your API key is in this file, or else in $HEADRACE_API_KEY."),
    ] = None,
) -> None:
    given = (tls_ca, tls_cert, tls_key, api_key_file)
    if not server and any(given):
        raise InvalidArgumentError(
            "--tls-ca, --tls-cert, --tls-key and --api-key-file need --server"
        )
    if (tls_cert is None) != (tls_key is None):
        raise InvalidArgumentError("--tls-cert and --tls-key go together")
    context.obj = _Remote(server, *given) if server else None


def connected(context: typer.Context, port: int, socket: str | None) -> Any:
    """The admin client of the server that the options name."""
    if context.obj is not None:
        if socket is not None:
            raise InvalidArgumentError("--server and --admin-socket name two servers")
        return context.obj.client()
    from headrace.client.admin import AdminClient

    return AdminClient(socket or default_admin_socket(port))
