"""Server reflection, v1 and v1alpha, of services whose messages lie in several descriptor pools:
Headrace keeps its own in a private one. Needs grpcio-reflection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool

from headrace.grpc.dispatch import Run, bind

__all__ = ["Pools", "reflection_run"]


class Pools:
    """The lookups of a DescriptorPool over several, the first that knows answers."""

    def __init__(self, pools: Iterable[Any]) -> None:
        self._pools = tuple(pools)

    def _first(self, look: Callable[[Any], Any]) -> Any:
        for pool in self._pools:
            try:
                return look(pool)
            except KeyError:
                continue
        raise KeyError("in no descriptor pool")

    def FindFileByName(self, name: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindExtensionByNumber(message, number))

    def FindAllExtensions(self, message: Any) -> Any:  # noqa: N802
        return message.file.pool.FindAllExtensions(message)


def _v1_pool(v1alpha: Any) -> Any:
    """v1's file: v1alpha's under another package, which is all the difference there is."""
    file = descriptor_pb2.FileDescriptorProto()
    v1alpha.CopyToProto(file)
    old, new = ".grpc.reflection.v1alpha.", ".grpc.reflection.v1."
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = "grpc.reflection.v1"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def reflection_run(services: Iterable[str], pools: Iterable[Any]) -> Run:
    """run() of ServerReflectionInfo, of both versions. `services`: full names. Raises ImportError
    without grpcio-reflection."""
    import grpc
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    everywhere = Pools([*pools, _v1_pool(reflection_pb2.DESCRIPTOR), descriptor_pool.Default()])
    servicer = reflection.ReflectionServicer(services, pool=everywhere)
    return bind(
        grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    )
