"""What any client may send (compression, health) and what no decent one does."""

from __future__ import annotations

import gzip
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest
from conformance.wire import Connection
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import Server, eventually, infer_request, raw_input, tensor, write_identity
from tritonclient.grpc import service_pb2

SERVICE = "/inference.GRPCInferenceService/"
METHODS = [
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "ModelInfer",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
]


def infer_bytes() -> bytes:
    request = infer_request(
        "identity_int32",
        inputs=[raw_input("X", "INT32", [1, 2])],
        raw_input_contents=[np.ones(2, np.int32).tobytes()],
    )
    return bytes(request.SerializeToString())


def send_bytes(server: Server, method: str, message: bytes) -> grpc.StatusCode:
    call = server.channel.unary_unary(SERVICE + method)
    try:
        call(message, timeout=20)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


# --- what any client may do ------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["gzip", "deflate", None])
def test_compressed_requests(server: Server, algorithm: str | None) -> None:
    array = np.tile(np.arange(64, dtype=np.float32), (8, 64))
    answer = server.client.infer(
        "identity_fp32", [tensor("X", array)], compression_algorithm=algorithm
    )
    np.testing.assert_array_equal(answer.as_numpy("Y"), array)


def test_health(server: Server) -> None:
    health = health_pb2_grpc.HealthStub(server.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert health.Check(health_pb2.HealthCheckRequest()).status == serving
    named = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
    assert health.Check(named).status == serving
    with pytest.raises(grpc.RpcError) as error:
        health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_watch(start: Callable[..., Server], repository: Path) -> None:
    write_identity(repository, "m", "INT32")
    # Not strict: else the server is not ready for a moment while it loads.
    server = start("--model-control-mode=explicit", "--load-model=m", "--no-strict-readiness")
    status = health_pb2.HealthCheckResponse
    stub = health_pb2_grpc.HealthStub(server.channel)
    watch = {name: stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "m")}
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert next(watch[""]).status == status.SERVING
    assert next(watch["m"]).status == status.SERVING
    assert next(unknown).status == status.SERVICE_UNKNOWN
    server.client.unload_model("m")
    assert next(watch["m"]).status == status.NOT_SERVING
    assert server.client.is_server_live()
    server.client.load_model("m")
    assert next(watch["m"]).status == status.SERVING
    server.terminate()
    for calls in watch.values():
        assert next(calls).status == status.NOT_SERVING
    for calls in (*watch.values(), unknown):
        with pytest.raises(grpc.RpcError) as error:
            next(calls)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(timeout=60) == 0


def test_response_compression(start: Callable[..., Server], repository: Path) -> None:
    write_identity(repository, "m", "INT32")
    server = start("--response-compression", "gzip")
    zeros = np.zeros((1, 10000), np.int32)
    request = infer_request(
        "m",
        inputs=[raw_input("X", "INT32", [1, 10000])],
        raw_input_contents=[zeros.tobytes()],
    ).SerializeToString()
    with Connection(server.port) as raw:
        for accepted, encoding in (
            ("identity, deflate, gzip", "gzip"),
            ("gzip", "gzip"),
            ("identity,deflate", None),
            ("", None),
            (None, None),
        ):
            extra = [] if accepted is None else [("grpc-accept-encoding", accepted)]
            answer = raw.call(SERVICE + "ModelInfer", request, extra)
            assert (answer.status, answer.get("grpc-encoding")) == (0, encoding), accepted
            (body,) = answer.messages
            assert answer.body[0] == (encoding is not None)
            assert (len(body) < 5000) == (encoding is not None)
            content = gzip.decompress(body) if encoding else body
            assert zeros.tobytes() in content
    # Clients that accept it do not notice, and those that stream have it too.
    assert np.array_equal(server.infer("m", zeros), zeros)
    (streamed,) = server.stub.ModelStreamInfer(
        iter([service_pb2.ModelInferRequest.FromString(request)])
    )
    assert streamed.infer_response.raw_output_contents == [zeros.tobytes()]


def test_unknown_methods(server: Server) -> None:
    assert send_bytes(server, "NoSuchMethod", b"") == grpc.StatusCode.UNIMPLEMENTED
    call = server.channel.unary_unary("/no.such.Service/Method")
    with pytest.raises(grpc.RpcError) as error:
        call(b"", timeout=20)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_metadata_of_any_kind_is_accepted(server: Server) -> None:
    answer = server.client.infer(
        "identity_int32",
        [tensor("X", np.ones((1, 2), np.int32))],
        headers={
            "authorization": "Bearer x",
            "traceparent": "00-" + "a" * 32 + "-01",
            "x": "y" * 500,
        },
    )
    assert answer.as_numpy("Y").shape == (1, 2)


# --- garbage in a proper frame ---------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_garbage_messages(server: Server, method: str) -> None:
    source = random.Random(method)
    whole = infer_bytes()
    messages = [b"\xff" * 64, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x7f", b"\x08" + b"\xff" * 11]
    messages += [source.randbytes(source.randrange(1, 200)) for _ in range(60)]
    for _ in range(60):
        bent = bytearray(whole)
        bent[source.randrange(len(bent))] = source.randrange(256)
        messages.append(bytes(bent[: source.randrange(1, len(bent) + 1)]))
    for message in messages:
        # Garbage may happen to be a message; what it must not be is the end of the server.
        code = send_bytes(server, method, message)
        assert code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), message
    server.still_answers()


def test_undecodable_messages_say_so(server: Server) -> None:
    for method in ("ModelInfer", "ModelMetadata", "ModelReady"):
        code = send_bytes(server, method, b"\x0a\x7fshort")
        assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT), method


# --- by hand ---------------------------------------------------------------------------------


class RawCall:
    """One gRPC call with frames of our own making."""

    def __init__(self, server: Server, method: str, headers: list[tuple[str, str]]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        pseudo = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", SERVICE + method),
            (":authority", "test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self.h2.send_headers(1, pseudo + headers)
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def data(self, content: bytes, *, end: bool = False) -> None:
        for start in range(0, len(content) or 1, 16384):
            piece = content[start : start + 16384]
            self.h2.send_data(1, piece, end_stream=end and start + 16384 >= len(content))
        self.flush()

    def status(self) -> dict[str, str]:
        """All header fields of the answer; {"reset": code} when the stream was reset."""
        fields: dict[str, str] = {}
        while True:
            received = self.socket.recv(65536)
            if not received:
                return {**fields, "closed": "1"}
            for event in self.h2.receive_data(received):
                if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    fields |= {str(k): str(v) for k, v in event.headers or []}
                if isinstance(event, h2.events.StreamReset):
                    fields["reset"] = str(int(event.error_code))
                if "grpc-status" in fields or "reset" in fields:
                    return fields
            self.flush()

    def close(self) -> None:
        self.socket.close()


def raw_call(server: Server, method: str, body: bytes, *headers: tuple[str, str]) -> dict[str, str]:
    call = RawCall(server, method, list(headers))
    try:
        call.data(body, end=True)
        return call.status()
    finally:
        call.close()


def message(content: bytes, *, length: int | None = None, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(content) if length is None else length) + content


def test_a_call_made_by_hand_is_answered(server: Server) -> None:
    assert raw_call(server, "ModelInfer", message(infer_bytes()))["grpc-status"] == "0"


def test_a_length_of_4_gib_is_refused_before_memory_is_taken(server: Server) -> None:
    before = server.rss_kib()
    for _ in range(8):
        call = RawCall(server, "ModelInfer", [])
        call.data(message(b"abc", length=0xFFFFFFFF))  # and the stream stays open
        assert call.status().get("grpc-status") == "8"
        call.close()
    assert server.rss_kib() - before < 64 * 1024
    server.still_answers()


def test_a_length_just_allowed_takes_no_memory_before_it_comes(server: Server) -> None:
    before = server.rss_kib()
    calls = []
    for _ in range(8):
        call = RawCall(server, "ModelInfer", [])
        call.data(message(b"abc", length=2**31 - 2))
        calls.append(call)
    server.still_answers()
    assert server.rss_kib() - before < 64 * 1024
    for call in calls:
        call.close()
    server.still_answers()


def test_other_methods_have_a_small_limit(server: Server) -> None:
    call = RawCall(server, "ModelMetadata", [])
    call.data(message(b"abc", length=64 << 20))
    assert call.status().get("grpc-status") == "8"
    call.close()


def test_a_message_cut_short(server: Server) -> None:
    for body in (b"", b"\0\0", message(infer_bytes())[:-3], message(b"ab", length=100)):
        fields = raw_call(server, "ModelInfer", body)
        assert fields.get("grpc-status") not in (None, "0") or "reset" in fields, fields
    server.still_answers()


def test_two_messages_in_a_unary_call(server: Server) -> None:
    fields = raw_call(server, "ModelInfer", message(infer_bytes()) * 2)
    assert fields.get("grpc-status") not in (None, "0"), fields


def test_compression_that_was_not_declared(server: Server) -> None:
    fields = raw_call(server, "ModelInfer", message(infer_bytes(), compressed=1))
    assert fields["grpc-status"] in ("12", "13")
    unknown = ("grpc-encoding", "snappy")
    fields = raw_call(server, "ModelInfer", message(infer_bytes(), compressed=1), unknown)
    assert fields["grpc-status"] == "12"


def test_broken_compression(server: Server) -> None:
    for encoding in ("gzip", "deflate"):
        declared = ("grpc-encoding", encoding)
        fields = raw_call(server, "ModelInfer", message(b"not compressed", compressed=1), declared)
        assert fields["grpc-status"] in ("3", "13"), fields


def test_a_gzip_bomb_is_bounded(server: Server) -> None:
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(bytes(60 << 20)) + packer.flush()  # 60 MiB in 60 KiB
    before = server.rss_kib()
    fields = raw_call(
        server, "ModelMetadata", message(bomb, compressed=1), ("grpc-encoding", "gzip")
    )
    assert fields["grpc-status"] == "8", fields  # 4 MiB for this method
    assert server.rss_kib() - before < 32 * 1024


def test_wrong_content_types_and_timeouts(server: Server) -> None:
    # A timeout that has no meaning ends the call or is ignored; it does not hang it.
    for timeout in ("1", "S", "-1S", "999999999999S", "1x"):
        fields = raw_call(server, "ModelInfer", message(infer_bytes()), ("grpc-timeout", timeout))
        assert "grpc-status" in fields or "reset" in fields, timeout
    assert raw_call(server, "ModelInfer", message(infer_bytes()), ("grpc-timeout", "0n"))[
        "grpc-status"
    ] in ("4", "0")


def test_random_bytes_on_a_connection(server: Server) -> None:
    source = random.Random(5)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for trial in range(40):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
            try:
                raw.sendall((preface if trial % 2 else b"") + source.randbytes(3000))
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65536):  # until the server closes, which it must
                    pass
            except ConnectionError:
                pass
    server.still_answers()


def test_connections_that_are_dropped(server: Server) -> None:
    for _ in range(50):
        call = RawCall(server, "ModelInfer", [])
        call.data(message(infer_bytes())[:20])
        call.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        call.close()  # a TCP reset
    server.still_answers()


def test_file_descriptors_are_given_back(server: Server) -> None:
    from pathlib import Path

    def open_files() -> int:
        return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

    server.still_answers()
    before = open_files()
    calls = [RawCall(server, "ServerLive", []) for _ in range(30)]
    for call in calls:
        call.close()
    eventually(lambda: open_files() <= before + 5, "connections are closed")


def test_http_1_is_told_off(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        received = b""
        try:
            while chunk := raw.recv(65536):
                received += chunk
        except ConnectionError:
            pass
    server.still_answers()


def test_a_flood_of_resets(server: Server) -> None:
    """Open and reset streams as fast as a socket takes them (rapid reset)."""
    call = RawCall(server, "ModelInfer", [])
    connection: Any = call.h2
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", SERVICE + "ModelInfer"),
        (":authority", "test"),
        ("content-type", "application/grpc"),
    ]
    try:
        for stream in range(3, 4003, 2):
            connection.send_headers(stream, headers)
            connection.reset_stream(stream)
            if stream % 101 == 0:
                call.flush()
        call.flush()
    except (ConnectionError, h2.exceptions.ProtocolError):
        pass  # the server may well have had enough
    call.close()
    server.still_answers()
