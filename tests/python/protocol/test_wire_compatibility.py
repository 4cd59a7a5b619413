"""proto/ against the descriptors that others ship: same names, numbers, types, labels, oneofs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.protocol import health, kserve, model_config
from headrace.protocol.descriptors import pool

PEERS = {
    "service": (kserve, service_pb2),
    "model_config": (model_config, model_config_pb2),
    "health": (health, health_pb2),
}
# The List RPC of newer health protocols enumerates services; we do not serve it.
NOT_OURS = "grpc.health.v1.HealthList"


def messages_of(container: Any) -> Iterator[Any]:
    types = getattr(container, "message_types_by_name", None) or getattr(
        container, "nested_types_by_name", {}
    )
    for message in types.values():
        yield message
        yield from messages_of(message)


def describe_field(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    synthetic = oneof is not None and oneof.name.startswith("_")  # of `optional`: not on the wire
    # `label` is deprecated where `is_repeated` exists.
    repeated = (
        field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    )
    return (
        field.number,
        field.type,
        repeated,
        kind.full_name if kind is not None else None,
        oneof.name if oneof is not None and not synthetic else None,
    )


def describe_file(file: Any) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for message in messages_of(file):
        described[message.full_name] = {f.name: describe_field(f) for f in message.fields}
        for enum in message.enum_types:
            described[enum.full_name] = {v.name: v.number for v in enum.values}
    for enum in file.enum_types_by_name.values():
        described[enum.full_name] = {v.name: v.number for v in enum.values}
    return described


@pytest.mark.parametrize("name", PEERS)
def test_every_message_and_enum_is_the_peers(name: str) -> None:
    ours, theirs = (describe_file(module.DESCRIPTOR) for module in PEERS[name])
    theirs = {key: value for key, value in theirs.items() if not key.startswith(NOT_OURS)}
    assert len(ours) >= 2
    assert sorted(ours) == sorted(theirs)
    for full_name, described in theirs.items():
        assert ours[full_name] == described, full_name


def test_every_rpc_is_the_peers() -> None:
    def describe(service: Any) -> dict[str, tuple[str, str, bool, bool]]:
        return {
            m.name: (
                m.input_type.full_name,
                m.output_type.full_name,
                m.client_streaming,
                m.server_streaming,
            )
            for m in service.methods
        }

    ours = pool().FindServiceByName("inference.GRPCInferenceService")
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert describe(ours) == describe(theirs)
    assert len(describe(ours)) == 20

    ours = describe(pool().FindServiceByName("grpc.health.v1.Health"))
    theirs = describe(health_pb2.DESCRIPTOR.services_by_name["Health"])
    assert ours == {name: theirs[name] for name in ("Check", "Watch")}


def test_bytes_pass_between_the_two() -> None:
    request = service_pb2.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"\0\1"])
    tensor = request.inputs.add(name="x", datatype="UINT8", shape=[2])
    tensor.parameters["p"].uint64_param = 2**64 - 1
    ours = kserve.ModelInferRequest.FromString(request.SerializeToString())
    assert ours.inputs[0].parameters["p"].uint64_param == 2**64 - 1
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()) == request


def test_a_config_that_says_zero_reads_the_same_elsewhere() -> None:
    config = model_config.ModelConfig(name="m", max_batch_size=0)
    assert config.HasField("max_batch_size")
    theirs = model_config_pb2.ModelConfig.FromString(config.SerializeToString())
    assert theirs == model_config_pb2.ModelConfig(name="m")
    back = model_config.ModelConfig.FromString(theirs.SerializeToString())
    assert not back.HasField("max_batch_size")


def test_rivas_messages_and_rpcs_are_the_clients() -> None:
    peers = [
        pytest.importorskip(f"riva.client.proto.riva_{part}_pb2").DESCRIPTOR
        for part in ("asr", "audio", "common")
    ]
    ours: dict[str, Any] = {}
    for name in ("riva_asr", "riva_common"):
        ours |= describe_file(pool().FindFileByName(f"headrace/{name}.proto"))
    theirs: dict[str, Any] = {}
    for peer in peers:
        theirs |= describe_file(peer)
    assert len(theirs) > 15
    assert ours == theirs

    def methods(service: Any) -> dict[str, tuple[str, str, bool, bool]]:
        return {
            m.name: (
                m.input_type.full_name,
                m.output_type.full_name,
                m.client_streaming,
                m.server_streaming,
            )
            for m in service.methods
        }

    name = "nvidia.riva.asr.RivaSpeechRecognition"
    described = peers[0].services_by_name["RivaSpeechRecognition"]
    assert methods(pool().FindServiceByName(name)) == methods(described)
