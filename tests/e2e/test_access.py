"""Authorisation, through the server: who is refused what, and that every RPC has a right."""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from harness import Server, eventually

import headrace
from headrace import runtime
from headrace.access import RIGHTS

DOC = Path(__file__).resolve().parents[2] / "docs" / "RPC_RIGHTS.md"
SERVICE = "/inference.GRPCInferenceService/"
OF_RIGHT = {
    "probe": SERVICE + "ServerLive",
    "metadata": SERVICE + "ServerMetadata",
    "infer": SERVICE + "ModelInfer",
    "control": SERVICE + "LogSettings",
}
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED


def code_of(server: Server, path: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """OK with the first answer: a watch goes on for ever."""
    call = server.channel.unary_stream(path)(b"", metadata=metadata, timeout=60)
    try:
        for _ in call:
            break
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    finally:
        call.cancel()
    return grpc.StatusCode.OK


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| `(/\S+)` \| (\w+) \|$", DOC.read_text(), re.MULTILINE)
    return dict(rows)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("access")
    (folder / "models").mkdir()

    def digest(key: str) -> str:
        return "sha256:" + hashlib.sha256(key.encode()).hexdigest()

    file = folder / "auth.yaml"
    file.write_text(
        f"""
anonymous: [probe]
members:
  - {{name: reader, rights: [probe, metadata], keys: ["{digest("key-r")}"]}}
  - {{name: caller, rights: [infer], keys: ["{digest("key-c")}"]}}
  - {{name: operator, rights: [control], keys: ["{digest("key-o")}"]}}
"""
    )
    with Server(folder / "models", "--auth-file", str(file)) as server:
        yield server


HOLDERS = {"key-r": {"probe", "metadata"}, "key-c": {"infer"}, "key-o": {"control"}}


def test_the_file_is_read_again_on_sighup(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    file = tmp_path / "auth.yaml"
    file.write_text("anonymous: [probe, metadata]")
    with Server(tmp_path / "models", "--auth-file", str(file)) as server:
        assert code_of(server, OF_RIGHT["metadata"]) == grpc.StatusCode.OK
        file.write_text("anonymous: [probe]")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: code_of(server, OF_RIGHT["metadata"]) == UNAUTHENTICATED, "read again")
        file.write_text("anonymous: [everything]")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "stays as it was" in server.log(), "the log says why")
        assert code_of(server, OF_RIGHT["metadata"]) == UNAUTHENTICATED
        assert code_of(server, OF_RIGHT["probe"]) == grpc.StatusCode.OK


@pytest.mark.parametrize("right", OF_RIGHT)
def test_who_has_the_right_is_let_through_and_nobody_else(closed: Server, right: str) -> None:
    path = OF_RIGHT[right]
    for key, rights in HOLDERS.items():
        for metadata in (("authorization", f"Bearer {key}"), ("x-api-key", key)):
            code = code_of(closed, path, metadata)
            assert (code == DENIED) == (right not in rights)
            assert code != UNAUTHENTICATED
    assert (code_of(closed, path) == UNAUTHENTICATED) == (right != "probe")


def test_a_wrong_credential_is_no_anonymous_caller(closed: Server) -> None:
    for metadata in (
        ("x-api-key", "wrong"),
        ("authorization", "Bearer key-r "[:-2]),
        ("authorization", "Basic a2V5LXI="),
    ):
        assert code_of(closed, OF_RIGHT["probe"], metadata) == UNAUTHENTICATED
    both = (("x-api-key", "key-r"), ("authorization", "Bearer key-r"))
    assert code_of(closed, OF_RIGHT["probe"], *both) == UNAUTHENTICATED


def test_every_method_of_the_server_needs_what_the_table_says(closed: Server) -> None:
    """Each method of the table, asked without a credential and with one that has no such right."""
    for path, right in documented().items():
        for key, rights in HOLDERS.items():
            code = code_of(closed, path, ("x-api-key", key))
            if code == grpc.StatusCode.UNIMPLEMENTED and right in rights:
                continue
            assert (code == DENIED) == (right not in rights) or (
                code == grpc.StatusCode.UNIMPLEMENTED
            ), (path, key, code)


def test_the_table_is_whole() -> None:
    with headrace.Server(
        headrace.ServerConfig(grpc_port=0, metrics_port=-1, host="127.0.0.1")
    ) as server:
        registered = dict(server.rights())
    table = documented()
    assert registered.items() <= table.items()
    assert set(table.values()) <= set(RIGHTS)


def test_a_method_of_an_application_needs_the_right_call() -> None:
    core = runtime.Server(runtime.ServerOptions(host="127.0.0.1", port=0))
    seen: list[str | None] = []

    def handler(_: bytes, call: runtime.ServerCall) -> bytes:
        seen.append(call.principal)
        return b""

    core.add_method("/app.Own/Method", handler)
    key = hashlib.sha256(b"key").digest()
    core.set_access(
        [],
        [
            ("app", ["call"], [key], [], None),
            ("other", ["infer"], [key[::-1]], [], None),
        ],
    )
    core.start()
    try:
        assert ("/app.Own/Method", "call") in core.rights()
        with grpc.insecure_channel(f"127.0.0.1:{core.port}") as channel:
            call: Callable[..., bytes] = channel.unary_unary("/app.Own/Method")
            with pytest.raises(grpc.RpcError) as error:
                call(b"", timeout=30)
            assert error.value.code() == UNAUTHENTICATED
            call(b"", timeout=30, metadata=[("x-api-key", "key")])
            core.clear_access()
            call(b"", timeout=30)
        assert seen == ["app", None]
    finally:
        core.stop(0.0)


def test_what_is_no_right_and_no_digest_is_refused() -> None:
    core = runtime.Server(runtime.ServerOptions(host="127.0.0.1", port=0))
    for anonymous, members in (
        (["everything"], []),
        (["none"], []),
        ([], [("a", ["infer"], [b"short"], [], None)]),
        ([], [("a", ["infer"], [], [], (0.0, 1.0))]),
        ([], [("a", ["infer"], [], [], (1.0, 0.5))]),
    ):
        with pytest.raises(headrace.errors.InvalidArgumentError):
            core.set_access(anonymous, members)
