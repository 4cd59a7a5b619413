"""Secure ports: the same handler and certificates on grpcio's server and on ours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import trustme
from grpc_servers import method, unary

import headrace.grpc


def test_peer_identity_in_streams(kind: str) -> None:
    """Each kind of handler that streams, and each message of it."""

    def who(context: Any) -> bytes:
        assert context.auth_context()["transport_security_type"] == [b"ssl"]
        key = context.peer_identity_key().encode()
        return b"%s=%s" % (key, b",".join(context.peer_identities()))

    def stream_unary(requests: Any, context: Any) -> bytes:
        return b" ".join(who(context) for _ in requests)

    def unary_stream(request: bytes, context: Any) -> Any:
        for _ in range(3):
            yield who(context)

    def stream_stream(requests: Any, context: Any) -> Any:
        for request in requests:
            yield request + who(context)

    ca = trustme.CA()
    own = ca.issue_cert("localhost", "127.0.0.1")
    module: Any = {"grpcio": grpc, "headrace": headrace.grpc}[kind]
    credentials = module.ssl_server_credentials(
        [(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())], ca.cert_pem.bytes(), True
    )
    with ThreadPoolExecutor(4) as pool:
        server = module.server(pool)
        method("/t.S/Collect", grpc.stream_unary_rpc_method_handler(stream_unary))(server)
        method("/t.T/Expand", grpc.unary_stream_rpc_method_handler(unary_stream))(server)
        method("/t.U/Talk", grpc.stream_stream_rpc_method_handler(stream_stream))(server)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        for name in ("first.example", "second.example"):
            client = ca.issue_cert(name)
            expected = b"x509_subject_alternative_name=" + name.encode()
            shown = grpc.ssl_channel_credentials(
                ca.cert_pem.bytes(),
                client.private_key_pem.bytes(),
                client.cert_chain_pems[0].bytes(),
            )
            # Connections of its own: who they are is theirs.
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(f"127.0.0.1:{port}", shown, options) as channel:
                collected = channel.stream_unary("/t.S/Collect")(iter([b"", b""]), timeout=60)
                assert collected == expected + b" " + expected
                assert list(channel.unary_stream("/t.T/Expand")(b"", timeout=60)) == [expected] * 3
                talk = channel.stream_stream("/t.U/Talk")(iter([b"a ", b"b "]), timeout=60)
                assert list(talk) == [b"a " + expected, b"b " + expected]
        server.stop(None).wait()


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
