"""The private pool: beside others' stubs, from many threads, with what the stubs name."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import headrace.protocol
from headrace.protocol import descriptors, health, kserve, model_config

USE_OURS = """
from headrace.protocol import kserve, model_config, health
ours = kserve.ModelInferRequest(model_name="m", id="1")
config = model_config.ModelConfig(name="m", platform="p")
health.HealthCheckRequest(service="s").SerializeToString()
"""
USE_THEIRS = """
from tritonclient.grpc import service_pb2, model_config_pb2
from grpc_health.v1 import health_pb2
theirs = service_pb2.ModelInferRequest(model_name="m", id="1")
"""
COMPARE = """
assert theirs.SerializeToString() == ours.SerializeToString()
assert type(theirs) is not type(ours)
assert model_config_pb2.ModelConfig.FromString(config.SerializeToString()).platform == "p"
print("same bytes")
"""


@pytest.mark.parametrize("order", [USE_OURS + USE_THEIRS, USE_THEIRS + USE_OURS])
@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_others_stubs_of_the_same_package_coexist(order: str, implementation: str) -> None:
    program = (
        f"import os; os.environ['PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION'] = '{implementation}'\n"
        + order
        + COMPARE
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same bytes"


def test_importing_builds_nothing() -> None:
    program = (
        "from headrace.protocol import health, kserve, model_config, descriptors\n"
        "assert descriptors._pool is None\n"
        "kserve.ModelInferRequest\n"
        "assert descriptors._pool is not None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_that_come_first_together_get_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_pool", None)
    barrier = threading.Barrier(8)
    pools: list[Any] = []

    def ask() -> None:
        barrier.wait()
        pools.append(descriptors.pool())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pools) == 8
    assert len({id(pool) for pool in pools}) == 1


@pytest.mark.parametrize("module", [health, kserve, model_config])
def test_dir_lists_what_getattr_gives(module: Any) -> None:
    names = dir(module)
    assert "DESCRIPTOR" in names
    for name in names:
        assert getattr(module, name) is not None


def test_enums() -> None:
    assert model_config.DataType.Value("TYPE_FP32") == model_config.TYPE_FP32 == 11
    assert model_config.DataType.Name(model_config.TYPE_BF16) == "TYPE_BF16"
    assert model_config.ModelInstanceGroup.Kind.Name(2) == "KIND_CPU"
    assert model_config.ModelInstanceGroup.KIND_CPU == 2
    assert health.HealthCheckResponse.ServingStatus.Value("SERVING") == 1


def test_nested_messages_and_maps() -> None:
    response = kserve.ModelMetadataResponse(name="m")
    response.inputs.append(kserve.ModelMetadataResponse.TensorMetadata(name="x", shape=[-1, 2]))
    config = kserve.ModelConfigResponse(config=model_config.ModelConfig(name="m"))
    config.config.parameters["k"].string_value = "v"
    assert response.inputs[0].shape == [-1, 2]
    assert kserve.ModelConfigResponse.FromString(config.SerializeToString()) == config


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"headrace/kserve\.proto defines no 'NoSuchMessage'"):
        _ = kserve.NoSuchMessage  # type: ignore[attr-defined]


def test_a_missing_descriptor_set_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(descriptors, "_pool", None)
    monkeypatch.setattr(headrace.protocol, "__path__", [str(tmp_path)])
    with pytest.raises(ImportError, match=r"headrace\.binpb is missing .*pip install"):
        descriptors.pool()
