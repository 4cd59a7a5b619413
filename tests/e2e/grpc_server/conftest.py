"""Servers that tests run their servicers on: grpcio's own and Headrace's, one parameter each, so
that behaviour is compared with the original."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_servers import Running
from grpc_tools import protoc

import headrace.grpc

PROTOS = Path(__file__).parent / "protos"


@pytest.fixture(scope="session")
def testing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The modules generated from protos/: empty, messages, service."""
    out = tmp_path_factory.mktemp("generated")
    files = [str(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    arguments = ["protoc", f"-I{PROTOS}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, str(out))
    try:
        modules = [
            importlib.import_module(f"interop.{name}")
            for name in ("empty_pb2", "messages_pb2", "test_pb2_grpc", "test_pb2")
        ]
    finally:
        sys.path.remove(str(out))
    return SimpleNamespace(empty=modules[0], messages=modules[1], service=modules[2])


@pytest.fixture(params=["grpcio", "headrace"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(kind: str) -> Iterator[Callable[..., Running]]:
    """serve(add, ...) -> a running server; `add(server)` registers its handlers."""
    make = {"grpcio": grpc.server, "headrace": headrace.grpc.server}[kind]
    with ExitStack() as stack:

        def start(add: Callable[[Any], object], *, workers: int = 10, **options: Any) -> Running:
            pool = stack.enter_context(futures.ThreadPoolExecutor(workers))
            server = make(pool, **options)
            add(server)
            running = Running(server, workers)
            server.start()
            stack.callback(lambda: server.stop(None).wait())
            return running

        yield start
