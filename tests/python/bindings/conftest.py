"""Small models and servers made straight from the extension."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from headrace import _ext

Model = Callable[[dict[str, Any]], Mapping[str, Any]]


def version_of(
    models: Model | Sequence[Model],
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    outputs: Mapping[str, tuple[str, Sequence[int]]],
    *,
    name: str = "m",
    number: int = 1,
    max_batch_size: int = 0,
    start: bool = True,
    health: _ext.HealthPolicy | None = None,
    **policy: Any,
) -> _ext.ModelVersion:
    """Tensors are {name: (datatype, dims without the batch dimension)}."""
    callables = [models] if callable(models) else list(models)
    batch = [-1] if max_batch_size else []

    def specs(tensors: Mapping[str, tuple[str, Sequence[int]]], first: list[int]) -> list[Any]:
        return [_ext.TensorSpec(n, dt, first + list(dims)) for n, (dt, dims) in tensors.items()]

    model = _ext.callback_model(callables, specs(inputs, batch), specs(outputs, batch))
    spec = _ext.ModelSpec(name, number, max_batch_size, specs(inputs, []), specs(outputs, []))
    policy.setdefault("max_rows", max(1, max_batch_size))
    version = _ext.ModelVersion(
        spec,
        model,
        policy=_ext.BatchPolicy(**policy),
        instances=len(callables),
        health=health or _ext.HealthPolicy(),
    )
    if start:
        version.start()
    return version


def identity(arrays: dict[str, Any]) -> dict[str, Any]:
    return {"Y": arrays["X"]}


@pytest.fixture
def make_version() -> Callable[..., _ext.ModelVersion]:
    return version_of


@pytest.fixture
def identity_version() -> Callable[..., _ext.ModelVersion]:
    def make(datatype: str = "FP32", **options: Any) -> _ext.ModelVersion:
        return version_of(identity, {"X": (datatype, [-1])}, {"Y": (datatype, [-1])}, **options)

    return make


@pytest.fixture
def make_server() -> Iterator[Callable[..., _ext.Server]]:
    """Not started, so that methods can be added; stopped in the end."""
    servers = []

    def make(**options: Any) -> _ext.Server:
        options = {"host": "127.0.0.1", "port": 0, "io_threads": 2} | options
        servers.append(_ext.Server(_ext.ServerOptions(**options)))
        return servers[-1]

    yield make
    for server in servers:
        server.stop(0.0)


class Caller:
    """Calls with bytes in and bytes out."""

    def __init__(self, server: _ext.Server) -> None:
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{server.port}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
        )

    def __call__(self, path: str, message: bytes = b"", **options: Any) -> Any:
        options.setdefault("timeout", 60)
        return self.channel.unary_unary(path)(message, **options)

    def begin(self, path: str, message: bytes = b"", **options: Any) -> Any:
        options.setdefault("timeout", 60)
        return self.channel.unary_unary(path).future(message, **options)

    def error(self, path: str, message: bytes = b"", **options: Any) -> Any:
        with pytest.raises(grpc.RpcError) as raised:
            self(path, message, **options)
        return raised.value


@pytest.fixture
def connect() -> Iterator[Callable[[_ext.Server], Caller]]:
    with ExitStack() as channels:

        def make(server: _ext.Server) -> Caller:
            caller = Caller(server)
            channels.callback(caller.channel.close)
            return caller

        yield make
