"""Real model repositories and servers for the tests of the control plane."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.app import Server
from headrace.client import Client
from headrace.config import ServerConfig


def add_model(addend: float, *, dims: tuple[int | str, ...] = ("batch", 4)) -> bytes:
    """An ONNX model: y = x + addend, FP32."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(np.array([addend], np.float32), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return onnx.load_model_from_string(model.SerializeToString()).SerializeToString()


class Repository:
    """A model repository that tests write into."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, content: bytes | str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = textwrap.dedent(content).encode()
        # A new inode, as people's tools do it: never half a file, never the same fingerprint.
        fresh = target.with_name(target.name + ".new")
        fresh.write_bytes(content)
        fresh.replace(target)
        return target

    def add(self, name: str, addend: float, version: int = 1) -> Path:
        return self.put(f"{name}/{version}/model.onnx", add_model(addend))


@pytest.fixture
def make_model() -> Callable[..., bytes]:
    return add_model


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    root = tmp_path / "models"
    root.mkdir()
    return Repository(root)


StartServer = Callable[..., Server]


@pytest.fixture
def start_server(repository: Repository) -> Iterator[StartServer]:
    """Starts servers on free ports over `repository`; they are stopped at the end."""
    servers: list[Server] = []

    def start(**settings: object) -> Server:
        values: dict[str, object] = {
            "model_repository": (repository.root,),
            "host": "127.0.0.1",
            "grpc_port": 0,
            "metrics_port": -1,
            "cache_dir": "",
            "model_control_mode": "explicit",
        }
        server = Server(ServerConfig(**(values | settings)))  # type: ignore[arg-type]
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop(grace_s=5)


@pytest.fixture
def connect() -> Iterator[Callable[[Server], Client]]:
    clients: list[Client] = []

    def make(server: Server) -> Client:
        clients.append(Client(server.address, timeout_s=60))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def ones() -> np.ndarray:
    """A batch of one for add_model."""
    return np.ones((1, 4), np.float32)
