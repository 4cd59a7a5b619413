"""Secure ports: the same handler and certificates on grpcio's server and on ours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import trustme
from grpc_servers import unary

import headrace.grpc


@pytest.mark.parametrize("client_shows", [True, False])
@pytest.mark.parametrize("required", [True, False])
def test_peer_identity(kind: str, client_shows: bool, required: bool) -> None:
    seen: dict[str, Any] = {}

    def handler(request: bytes, context: Any) -> bytes:
        seen.update(
            key=context.peer_identity_key(),
            identities=list(context.peer_identities() or ()),
            auth=context.auth_context(),
        )
        return b"secret"

    ca = trustme.CA()
    own = ca.issue_cert("localhost", "127.0.0.1")
    client = ca.issue_cert("client.example", common_name="the client")
    module: Any = {"grpcio": grpc, "headrace": headrace.grpc}[kind]
    credentials = module.ssl_server_credentials(
        [(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())],
        ca.cert_pem.bytes(),
        required,
    )
    with ThreadPoolExecutor(2) as pool:
        server = module.server(pool)
        unary("/t.S/M", handler)(server)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        channel_credentials = grpc.ssl_channel_credentials(
            ca.cert_pem.bytes(),
            client.private_key_pem.bytes() if client_shows else None,
            client.cert_chain_pems[0].bytes() if client_shows else None,
        )
        with grpc.secure_channel(f"127.0.0.1:{port}", channel_credentials) as channel:
            call = channel.unary_unary("/t.S/M")
            if required and not client_shows:
                with pytest.raises(grpc.RpcError) as error:
                    call(b"", timeout=30)
                assert error.value.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )
            else:
                assert call(b"", timeout=60) == b"secret"
                assert seen["auth"]["transport_security_type"] == [b"ssl"]
                if required:
                    assert seen["key"] == "x509_subject_alternative_name"
                    assert seen["identities"] == [b"client.example"]
                    assert seen["auth"]["x509_common_name"] == [b"the client"]
                elif not client_shows:
                    assert seen["key"] is None and seen["identities"] == []
        server.stop(None)
