"""TLS, mTLS, reload, several addresses and unix sockets, with real gRPC clients."""

from __future__ import annotations

import datetime
import queue
import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import trustme
from cryptography import x509
from harness import Server, eventually, infer_request, raw_input, tensor, write_identity
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

Start = Callable[..., Server]
ONE = np.ones((1, 4), np.int32)


class Files:
    """An authority, and the server's certificate signed by it, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_path)
        self.cert, self.key = folder / "server.pem", folder / "server.key"
        self.issue()

    def issue(
        self, ca: trustme.CA | None = None, not_after: datetime.datetime | None = None
    ) -> None:
        """A new certificate for the server, in the same files."""
        made = (ca or self.ca).issue_cert("localhost", "127.0.0.1", not_after=not_after)
        for path, content in (
            (self.cert, b"".join(blob.bytes() for blob in made.cert_chain_pems)),
            (self.key, made.private_key_pem.bytes()),
        ):
            aside = path.with_suffix(".new")
            aside.write_bytes(content)
            aside.replace(path)

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def trust(self, client: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.ca.cert_pem.bytes(),
            client.private_key_pem.bytes() if client else None,
            client.cert_chain_pems[0].bytes() if client else None,
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "tls"
    folder.mkdir()
    return Files(folder)


@contextmanager
def stub(
    address: str, credentials: grpc.ChannelCredentials | None = None
) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    # A pool of its own: a test's connections are the test's.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    )
    with channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def live(address: str, credentials: grpc.ChannelCredentials | None = None) -> bool:
    with stub(address, credentials) as client:
        return bool(client.ServerLive(service_pb2.ServerLiveRequest(), timeout=30).live)


def refused(address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
    with pytest.raises(grpc.RpcError) as error:
        live(address, credentials)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def certificate_shown(server: Server) -> x509.Certificate:
    """To a new connection."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain,
        context.wrap_socket(plain) as sealed,
    ):
        certificate = sealed.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate)


def serial_shown(server: Server) -> int:
    return certificate_shown(server).serial_number


def secured(start: Start, *options: str) -> Server:
    """Without waiting through the harness's client, which speaks no TLS."""
    server = start(*options, ready=False)
    eventually(lambda: "ready in" in server.log() or server.process.poll() is not None, "ready")
    assert server.process.poll() is None, server.log()
    return server


def test_tls_with_grpcio_and_tritonclient(start: Start, repository: Path, files: Files) -> None:
    write_identity(repository, "identity", "INT32")
    server = secured(start, *files.options)
    address = f"localhost:{server.port}"
    assert live(address, files.trust())
    with triton.InferenceServerClient(
        address, ssl=True, root_certificates=str(files.ca_path)
    ) as client:
        big = np.arange(1 << 20, dtype=np.int32).reshape(1, -1)
        for value in (ONE, big):
            answer = client.infer("identity", [tensor("X", value)])
            np.testing.assert_array_equal(answer.as_numpy("Y"), value)
    refused(address)  # without TLS
    refused(address, grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes()))
    assert server.metric("headrace_tls_handshakes_total", result="ok") >= 2
    eventually(
        lambda: server.metric("headrace_tls_handshakes_total", result="malformed") >= 1,
        "the client without TLS is counted",
    )
    # grpcio leaves without the alert that OpenSSL made.
    eventually(
        lambda: server.metric("headrace_tls_handshakes_total", result="disconnected") >= 1,
        "the client that does not trust us is counted",
    )


@pytest.mark.parametrize("triton_flags", [False, True])
def test_mtls(start: Start, files: Files, triton_flags: bool) -> None:
    if triton_flags:
        options: tuple[str, ...] = (
            "--grpc-use-ssl=1",
            "--grpc-use-ssl-mutual=1",
            f"--grpc-server-cert={files.cert}",
            f"--grpc-server-key={files.key}",
            f"--grpc-root-cert={files.ca_path}",
        )
    else:
        options = (*files.options, "--tls-client-ca", str(files.ca_path))
    server = secured(start, *options)
    address = f"localhost:{server.port}"
    client = files.ca.issue_cert("client.example")
    assert live(address, files.trust(client))
    refused(address, files.trust())
    refused(address, files.trust(trustme.CA().issue_cert("mallory.example")))
    assert server.metric("headrace_tls_handshakes_total", result="client_certificate") >= 2
    with triton.InferenceServerClient(
        address,
        ssl=True,
        root_certificates=str(files.ca_path),
        private_key=_write(files.folder / "client.key", client.private_key_pem.bytes()),
        certificate_chain=_write(files.folder / "client.pem", client.cert_chain_pems[0].bytes()),
    ) as triton_client:
        assert triton_client.is_server_live()


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_a_reload_drops_no_call(start: Start, repository: Path, files: Files) -> None:
    """By SIGHUP, by the files' change, and not with a file that is no good."""
    write_identity(repository, "identity", "INT32")
    server = secured(start, *files.options, "--tls-reload-secs", "0.05")
    address = f"localhost:{server.port}"
    failures: list[Exception] = []
    answered = 0
    done = threading.Event()

    def call() -> None:
        nonlocal answered
        with triton.InferenceServerClient(
            address, ssl=True, root_certificates=str(files.ca_path)
        ) as client:
            while not done.is_set():
                try:
                    client.infer("identity", [tensor("X", ONE)])
                    answered += 1
                except InferenceServerException as error:
                    failures.append(error)
                    return

    def some_more() -> None:
        before = answered
        eventually(lambda: answered > before + 20 or failures, "calls go on")

    thread = threading.Thread(target=call)
    thread.start()
    try:
        some_more()
        serials = {serial_shown(server)}
        files.issue()
        eventually(lambda: serial_shown(server) not in serials, "found by polling")
        serials.add(serial_shown(server))
        some_more()

        files.key.write_text("no key")
        eventually(lambda: "TLS files cannot be used" in server.log(), "the log says so")
        assert serial_shown(server) in serials
        assert live(address, files.trust())
        some_more()

        files.issue()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: serial_shown(server) not in serials, "the next good one is used")
        some_more()
    finally:
        done.set()
        thread.join()
    assert not failures


def not_after(server: Server) -> float:
    """Of the certificate that a new connection is shown."""
    shown = certificate_shown(server).not_valid_after_utc
    return shown.timestamp()


def test_when_the_certificate_ends_is_a_metric(start: Start, files: Files) -> None:
    name = "headrace_tls_certificate_not_after_seconds"
    soon = datetime.datetime(2037, 5, 6, 7, 8, 9, tzinfo=datetime.timezone.utc)
    files.issue(not_after=soon)
    server = secured(start, *files.options, "--tls-reload-secs", "0")
    assert server.metric(name) == soon.timestamp() == not_after(server)
    later = soon.replace(year=2038)
    files.issue(not_after=later)
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: server.metric(name) == later.timestamp(), "the new one's end")


def test_no_certificate_no_metric(server: Server) -> None:
    assert "headrace_tls_certificate_not_after" not in server.metrics_text()


def test_a_stream_outlives_a_reload(start: Start, repository: Path, files: Files) -> None:
    """With client certificates: the stream goes on as it was, though its authority is gone."""
    write_identity(repository, "identity", "INT32")
    server = secured(
        start, *files.options, "--tls-client-ca", str(files.ca_path), "--tls-reload-secs", "0"
    )
    address = f"localhost:{server.port}"
    client = files.ca.issue_cert("client.example")
    requests: queue.Queue[object] = queue.Queue()

    def exchange(answers: Iterator[Any], number: int) -> None:
        requests.put(
            infer_request(
                "identity",
                id=str(number),
                inputs=[raw_input("X", "INT32", [1, 4])],
                raw_input_contents=[ONE.tobytes()],
            )
        )
        answer = next(answers)
        assert (answer.error_message, answer.infer_response.id) == ("", str(number))

    with stub(address, files.trust(client)) as calls:
        stream = calls.ModelStreamInfer(iter(requests.get, None), timeout=100)
        exchange(stream, 1)
        other = trustme.CA()
        before = serial_shown(server)
        other.cert_pem.write_to_path(files.ca_path)
        files.issue(other)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: serial_shown(server) != before, "read again")
        exchange(stream, 2)
        refused(address, files.trust(client))
        both = grpc.ssl_channel_credentials(
            other.cert_pem.bytes(),
            client.private_key_pem.bytes(),
            client.cert_chain_pems[0].bytes(),
        )
        refused(address, both)  # it trusts the new one, which does not trust it
        exchange(stream, 3)
        requests.put(None)
        assert list(stream) == []


def test_sighup_alone(start: Start, files: Files) -> None:
    server = secured(start, *files.options, "--tls-reload-secs", "0")
    before = serial_shown(server)
    files.issue()
    assert serial_shown(server) == before
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: serial_shown(server) != before, "read again")


def test_a_stream_of_calls_outlives_its_authority(start: Start, files: Files) -> None:
    """Another CA altogether: who is connected stays, who comes must trust the new one."""
    server = secured(start, *files.options, "--tls-reload-secs", "0")
    address = f"localhost:{server.port}"
    with stub(address, files.trust()) as client:
        assert client.ServerLive(service_pb2.ServerLiveRequest(), timeout=30).live
        other = trustme.CA()
        before = serial_shown(server)
        files.issue(other)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: serial_shown(server) != before, "read again")
        assert client.ServerLive(service_pb2.ServerLiveRequest(), timeout=30).live
        refused(address, files.trust())
        assert live(address, grpc.ssl_channel_credentials(other.cert_pem.bytes()))


def test_several_addresses(start: Start, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "headrace.sock"
    abstract = f"headrace-e2e-{tmp_path.name}"
    server = secured(
        start,
        *files.options,
        "--listen",
        "127.0.0.1:0",
        "--listen",
        f"unix:{path}",
        "--listen",
        f"unix-abstract:{abstract}",
        "--listen-insecure",
        "localhost:0",
    )
    ports = re.search(r"gRPC 127\.0\.0\.1:(\d+) \(TLS\), .*localhost:(\d+)", server.log())
    assert ports is not None, server.log()
    assert live(f"127.0.0.1:{ports[1]}", files.trust())
    assert live(f"localhost:{ports[2]}")
    assert live(f"unix:{path}")
    assert live(f"unix-abstract:{abstract}")
    assert path.stat().st_mode & 0o777 == 0o600
    server.terminate()
    server.process.wait(timeout=60)
    assert not path.exists()


def test_what_cannot_be_used_ends_the_start(start: Start, files: Files) -> None:
    files.key.write_bytes(trustme.CA().issue_cert("other").private_key_pem.bytes())
    server = start(*files.options, ready=False)
    server.checked = False
    assert server.process.wait(timeout=60) == 1
    assert "does not belong to the certificate" in server.log()
    assert "Traceback" not in server.log()
