"""What a TLS port shows and asks of clients. grpc.ssl_server_credentials() makes an opaque C object
that nobody else can read; this one takes the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

__all__ = ["ServerCredentials", "credentials_of", "ssl_server_credentials"]


@dataclass(frozen=True)
class ServerCredentials:
    """PEM text."""

    private_key: bytes
    certificate_chain: bytes
    root_certificates: bytes | None = None
    require_client_auth: bool = False

    def __repr__(self) -> str:  # the key stays out of logs
        return f"ServerCredentials(require_client_auth={self.require_client_auth})"


def ssl_server_credentials(
    private_key_certificate_chain_pairs: Sequence[tuple[bytes, bytes]],
    root_certificates: bytes | None = None,
    require_client_auth: bool = False,
) -> ServerCredentials:
    """As grpc.ssl_server_credentials, for one pair of key and chain."""
    if not private_key_certificate_chain_pairs:
        raise ValueError("At least one private key-certificate chain pair is required!")
    if require_client_auth and root_certificates is None:
        raise ValueError("Illegal to require client auth without providing root certificates!")
    if len(private_key_certificate_chain_pairs) > 1:
        raise ValueError("a port shows one certificate: give one key and chain")
    ((private_key, certificate_chain),) = private_key_certificate_chain_pairs
    return ServerCredentials(private_key, certificate_chain, root_certificates, require_client_auth)


def credentials_of(given: object) -> ServerCredentials:
    if isinstance(given, ServerCredentials):
        return given
    if isinstance(given, grpc.ServerCredentials):
        raise TypeError(
            "the keys inside grpc.ssl_server_credentials() cannot be read by another server; call "
            "headrace.grpc.ssl_server_credentials() with the same arguments"
        )
    raise TypeError(f"expected headrace.grpc.ServerCredentials, not {type(given).__name__}")
