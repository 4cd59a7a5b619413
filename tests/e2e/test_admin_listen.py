"""The admin service over TCP: TLS always, and only for those whom the access policy names."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from harness import IDENTITY, Server, eventually, free_port, identity_config, write_model

from headrace.client.admin import AdminClient
from headrace.config import ServerConfig
from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnauthenticatedError,
)

OPERATOR, READER = "key-of-the-operator", "key-of-the-reader"


def policy(*members: str) -> str:
    return "anonymous: [probe, metadata, infer]\nmembers:\n" + "".join(
        f"  - {member}\n" for member in members
    )


def member(name: str, rights: str, key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f'{{name: {name}, rights: [{rights}], keys: ["sha256:{digest}"]}}'


class Admin:
    def __init__(self, server: Server, port: int, folder: Path) -> None:
        self.server = server
        self.address = f"127.0.0.1:{port}"
        self.folder = folder
        self.ca = (folder / "ca.pem").read_bytes()

    def client(self, **options: object) -> AdminClient:
        return AdminClient.over_tls(self.address, ca=self.ca, timeout_s=60, **options)

    def cli(self, *options: str, command: tuple[str, ...] = ("status",), key: str = "") -> str:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("headrace")),
                "rollout",
                "--server",
                self.address,
                "--tls-ca",
                str(self.folder / "ca.pem"),
                *options,
                *command,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "HEADRACE_API_KEY": key},
        )
        return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    folder = tmp_path_factory.mktemp("admin")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own = authority.issue_cert("localhost", "127.0.0.1")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    own.private_key_pem.write_to_path(folder / "key.pem")
    for name in ("ops.example", "nobody.example"):
        client = authority.issue_cert(name)
        client.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        client.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / "auth.yaml").write_text(
        policy(
            member("operator", "metadata, control", OPERATOR),
            member("reader", "metadata", READER),
            "{name: ops, rights: [metadata, control], certificates: [ops.example]}",
        )
    )
    repository = folder / "models"
    repository.mkdir()
    config = identity_config("FP32") + "version_policy { specific { versions: [1] } }"
    for version in (1, 2):
        write_model(repository, "m", config, {"model.py": IDENTITY}, version=version)
    port = free_port()
    with Server(
        repository,
        "--admin-listen",
        f"127.0.0.1:{port}",
        "--admin-socket",
        str(folder / "admin.sock"),
        "--tls-cert",
        str(folder / "cert.pem"),
        "--tls-key",
        str(folder / "key.pem"),
        "--tls-client-ca",
        str(folder / "ca.pem"),
        "--tls-client-auth",
        "request",
        "--auth-file",
        str(folder / "auth.yaml"),
        ready=False,
    ) as server:
        eventually(lambda: "ready in" in server.log(), "the server is ready")
        yield Admin(server, port, folder)


def test_a_rollout_with_a_key_and_with_a_certificate(admin: Admin) -> None:
    with admin.client(api_key=OPERATOR) as client:
        assert client.start("m", 2, share=0.5, manual_promotion=True).state == "running"
    (row,) = json.loads(admin.cli(command=("status", "m", "--json"), key=OPERATOR))
    assert (row["candidate"], row["state"]) == (2, "running")
    key_file = admin.folder / "operator.key"
    key_file.write_text(OPERATOR + "\n")
    assert "running" in admin.cli("--api-key-file", str(key_file))
    ops = [str(admin.folder / f"ops.example.{kind}") for kind in ("pem", "key")]
    with_certificate = ("--tls-cert", ops[0], "--tls-key", ops[1])
    assert "rolled back" in admin.cli(*with_certificate, command=("rollback", "m"))


def test_who_has_no_right_is_refused(admin: Admin) -> None:
    # The metadata right lets one look. Anonymous callers have it here, so they may look as well.
    for key in ("", READER):
        with admin.client(api_key=key) as client:
            client.status()
    with admin.client() as client, pytest.raises(UnauthenticatedError):
        client.start("m", 2)
    with admin.client(api_key="wrong") as client, pytest.raises(UnauthenticatedError):
        client.status()
    with admin.client(api_key=READER) as client:
        for call in (client.promote, client.rollback):
            with pytest.raises(PermissionDeniedError):
                call("m")
        with pytest.raises(PermissionDeniedError):
            client.start("m", 2)
    stranger = {
        "certificate": (admin.folder / "nobody.example.pem").read_bytes(),
        "key": (admin.folder / "nobody.example.key").read_bytes(),
    }
    with admin.client(**stranger) as client, pytest.raises(HeadraceError):
        client.start("m", 2)
    assert "UNAUTHENTICATED" in admin.cli(command=("promote", "m"))


def test_the_unix_socket_needs_no_credential(admin: Admin) -> None:
    with AdminClient(admin.folder / "admin.sock") as client:
        client.status()


def test_each_port_has_its_own_services(admin: Admin) -> None:
    credentials = grpc.ssl_channel_credentials(admin.ca)
    bearer = (("authorization", f"Bearer {OPERATOR}"),)
    for address, path in (
        (admin.server.address, "/headrace.v1.Admin/RolloutStatus"),
        (admin.address, "/inference.GRPCInferenceService/ServerLive"),
    ):
        with grpc.secure_channel(address, credentials) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", metadata=bearer, timeout=60)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_nothing_without_tls(admin: Admin) -> None:
    with grpc.insecure_channel(admin.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/headrace.v1.Admin/RolloutStatus")(b"", timeout=60)
    other = AdminClient.over_tls(admin.address, ca=trustme.CA().cert_pem.bytes(), timeout_s=60)
    with other, pytest.raises(HeadraceError):
        other.status()


def test_a_new_policy_holds_after_sighup(admin: Admin) -> None:
    file = admin.folder / "auth.yaml"
    before = file.read_text()
    file.write_text(policy(member("reader", "metadata", READER)))
    admin.server.process.send_signal(signal.SIGHUP)

    def answer(call: Callable[[], object]) -> str:
        try:
            call()
        except HeadraceError as error:
            return error.status
        return "OK"

    with admin.client(api_key=OPERATOR) as client:
        eventually(lambda: answer(client.status) == "UNAUTHENTICATED", "the operator is gone")
        file.write_text(before)
        admin.server.process.send_signal(signal.SIGHUP)
        eventually(lambda: answer(client.status) == "OK", "and back")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"admin_listen": "127.0.0.1:9000"}, "needs TLS"),
        ({"admin_listen": "9000"}, "host:port"),
        ({"admin_listen": "unix:/tmp/x:1"}, "host:port"),
        (
            {"admin_listen": "127.0.0.1:9000", "tls_cert": __file__, "tls_key": __file__},
            "auth-file",
        ),
    ],
)
def test_it_is_never_open_by_mistake(options: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        ServerConfig(**options)
