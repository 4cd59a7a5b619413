from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from headrace.grpc.reflection import Pools, _v1_pool
from headrace.protocol.descriptors import pool


def pools() -> Pools:
    return Pools([pool(), _v1_pool(reflection_pb2.DESCRIPTOR), descriptor_pool.Default()])


@pytest.mark.parametrize(
    "symbol",
    [
        "inference.GRPCInferenceService",  # in the private pool
        "grpc.reflection.v1.ServerReflection",  # made here
        "grpc.reflection.v1alpha.ServerReflection",  # in the default pool
    ],
)
def test_symbols_are_found_wherever_they_are(symbol: str) -> None:
    everywhere = pools()
    file = everywhere.FindFileContainingSymbol(symbol)
    assert symbol.rpartition(".")[2] in file.services_by_name
    assert everywhere.FindFileByName(file.name) is file


def test_what_is_nowhere_is_a_key_error() -> None:
    for look in (
        pools().FindFileContainingSymbol,
        pools().FindFileByName,
        pools().FindMessageTypeByName,
    ):
        with pytest.raises(KeyError):
            look("no.such.Thing")


def test_v1_is_v1alpha_under_another_name() -> None:
    old, new = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(old)
    pools().FindFileContainingSymbol("grpc.reflection.v1.ServerReflection").CopyToProto(new)
    assert "v1alpha" not in str(new)
    fields = [[(f.name, f.number, f.type) for f in m.field] for m in old.message_type]
    assert fields == [[(f.name, f.number, f.type) for f in m.field] for m in new.message_type]
