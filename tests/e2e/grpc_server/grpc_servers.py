"""Small servers: one running, and handlers without protobuf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc


class Running:
    """A started server and its address; the `with` stops it."""

    def __init__(self, server: Any, workers: int) -> None:
        self.server = server
        self.workers = workers
        self.port = server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"

    def channel(self, *options: tuple[str, Any], **more: Any) -> grpc.Channel:
        # A connection of its own: the same address would share grpcio's.
        return grpc.insecure_channel(
            self.address, [("grpc.use_local_subchannel_pool", 1), *options], **more
        )


def unary(path: str, handler: Callable[[Any, Any], Any], **more: Any) -> Callable[[Any], None]:
    return method(path, grpc.unary_unary_rpc_method_handler(handler, **more))


def method(path: str, handler: grpc.RpcMethodHandler) -> Callable[[Any], None]:
    """add(server) for one method without protobuf, registered as generated code does."""
    _, service, name = path.split("/")

    def add(server: Any) -> None:
        handlers = {name: handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        if hasattr(server, "add_registered_method_handlers"):
            server.add_registered_method_handlers(service, handlers)

    return add
