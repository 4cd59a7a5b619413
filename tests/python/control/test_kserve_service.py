"""The RPCs that Python answers, through a client that nobody here wrote where there is one."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from headrace import logs
from headrace.protocol import kserve

PATH = "/inference.GRPCInferenceService/"


@pytest.fixture
def server(repository, start_server):
    repository.put("a/config.pbtxt", "max_batch_size: 8 dynamic_batching {}")
    repository.add("a", 1)
    repository.add("b", 1)
    return start_server(load_model=("a",), id="my server")


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.address) as client:
        yield client


def failure(call, *args, **kwargs) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **kwargs)
    return caught.value.status(), caught.value.message()


def test_server_metadata(client) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "my server"
    assert metadata.version
    assert "statistics" in metadata.extensions
    assert "system_shared_memory" not in metadata.extensions, "nothing that we do not do"


def test_model_metadata_and_config(client) -> None:
    metadata = client.get_model_metadata("a")
    assert (metadata.name, list(metadata.versions)) == ("a", ["1"])
    assert metadata.platform == "onnxruntime_onnx"
    (x,) = metadata.inputs
    assert (x.name, x.datatype, list(x.shape)) == ("x", "FP32", [-1, 4])
    config = client.get_model_config("a").config
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4]
    assert config.instance_group[0].count == 1


@pytest.mark.parametrize("method", ["get_model_metadata", "get_model_config"])
def test_unknown_models_and_versions(client, method: str) -> None:
    ask = getattr(client, method)
    unknown = "Request for unknown model: "
    assert failure(ask, "nobody") == ("StatusCode.NOT_FOUND", unknown + "'nobody' is not found")
    assert failure(ask, "a", "7") == (
        "StatusCode.NOT_FOUND",
        unknown + "'a' version 7 is not found",
    )
    status, text = failure(ask, "a", "x")
    assert (status, text) == (
        "StatusCode.INVALID_ARGUMENT",
        "failed to get model version from specified version string 'x' (details: stol), "
        "version should be an integral value > 0",
    )
    assert failure(ask, "a", "-1") == (
        "StatusCode.INVALID_ARGUMENT",
        "invalid model version specified '-1' , version should be an integral value > 0",
    )


@pytest.mark.parametrize("version", ["", "1", "7", "x", "-1", "99999999999999999999", "+1", " 1"])
@pytest.mark.parametrize("model", ["a", "nobody"])
def test_metadata_and_infer_refuse_alike(client, model: str, version: str) -> None:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    if (model, version) in [("a", ""), ("a", "1")]:
        client.infer(model, [tensor], model_version=version)
        client.get_model_metadata(model, version)
    else:
        assert failure(client.infer, model, [tensor], model_version=version) == failure(
            client.get_model_metadata, model, version
        )


def test_statistics_count_as_triton_counts(client) -> None:
    tensor = triton.InferInput("x", [8, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((8, 4), np.float32))
    for _ in range(3):
        client.infer("a", [tensor])
    (stats,) = client.get_inference_statistics("a").model_stats
    assert (stats.name, stats.version) == ("a", "1")
    assert (stats.inference_count, stats.execution_count) == (24, 3)
    assert stats.inference_stats.success.count == 3
    assert stats.inference_stats.queue.count == 3
    assert stats.inference_stats.fail.count == 0
    assert [(b.batch_size, b.compute_infer.count) for b in stats.batch_stats] == [(8, 3)]
    assert stats.last_inference > 1_600_000_000_000
    everything = client.get_inference_statistics().model_stats
    assert [s.name for s in everything] == ["a"], "versions that serve, and no others"


def test_statistics_of_the_unknown(client) -> None:
    ask = client.get_inference_statistics
    assert failure(ask, "nobody") == (
        "StatusCode.INVALID_ARGUMENT",
        "requested model 'nobody' is not available",
    )
    assert failure(ask, "a", "7") == (
        "StatusCode.INVALID_ARGUMENT",
        "requested model version is not available for model 'a'",
    )


def test_repository_index(client) -> None:
    rows = [(m.name, m.version, m.state) for m in client.get_model_repository_index().models]
    assert rows == [("a", "1", "READY"), ("b", "", "")]
    client.load_model("b")
    client.unload_model("b")
    with_reason = {m.name: m for m in client.get_model_repository_index().models}["b"]
    assert with_reason.state in ("UNLOADING", "UNAVAILABLE")


def raw(server, method: str, message: bytes) -> bytes:
    with grpc.insecure_channel(server.address) as channel:
        return channel.unary_unary(PATH + method)(message, timeout=30)


def test_index_of_ready_models_only(server) -> None:
    request = kserve.RepositoryIndexRequest(ready=True).SerializeToString()
    response = kserve.RepositoryIndexResponse.FromString(raw(server, "RepositoryIndex", request))
    assert [(m.name, m.version, m.state) for m in response.models] == [("a", "1", "READY")]


@pytest.mark.parametrize("rpc", ["Index", "ModelLoad", "ModelUnload"])
def test_repository_name_is_not_supported(server, rpc: str) -> None:
    request = getattr(kserve, f"Repository{rpc}Request")(repository_name="r")
    with pytest.raises(grpc.RpcError) as caught:
        raw(server, f"Repository{rpc}", request.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "'repository_name' specification is not supported"


def load_failure(server, **parameters) -> tuple[grpc.StatusCode, str]:
    request = kserve.RepositoryModelLoadRequest(model_name="a")
    for key, (kind, value) in parameters.items():
        setattr(request.parameters[key.replace("__", ":")], kind, value)
    with pytest.raises(grpc.RpcError) as caught:
        raw(server, "RepositoryModelLoad", request.SerializeToString())
    return caught.value.code(), caught.value.details()


def test_load_parameters_of_the_wrong_kind(server) -> None:
    wrong = grpc.StatusCode.INVALID_ARGUMENT
    assert load_failure(server, other=("string_param", "x")) == (
        wrong,
        "unrecognized load parameter 'other'.",
    )
    assert load_failure(server, config=("int64_param", 3)) == (
        wrong,
        "invalid value type for load parameter 'config', expected string_param.",
    )
    assert load_failure(server, file__m=("string_param", "x")) == (
        wrong,
        "invalid value type for load parameter 'file:m', expected bytes_param.",
    )


@pytest.mark.parametrize(
    "method",
    [
        *(
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
            "RepositoryModelLoad",
        ),
        *("RepositoryModelUnload", "SystemSharedMemoryStatus", "TraceSetting", "LogSettings"),
    ],
)
def test_garbage_is_refused_as_grpcio_does(server, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(server, method, b"\xff\xff\xff\xff garbage")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "Exception deserializing request!"


def test_shared_memory_is_not_offered_but_clients_may_clean_up(client) -> None:
    client.unregister_system_shared_memory()  # perf_analyzer starts with these
    client.unregister_cuda_shared_memory()
    assert len(client.get_system_shared_memory_status().regions) == 0
    status, text = failure(client.register_system_shared_memory, "r", "/r", 64)
    assert status == "StatusCode.UNIMPLEMENTED"
    assert text.startswith("Client shared memory is disabled.")
    status, text = failure(client.get_system_shared_memory_status, "r")
    assert (status, text) == (
        "StatusCode.NOT_FOUND",
        "Unable to find system shared memory region: 'r'",
    )
    status, text = failure(client.register_cuda_shared_memory, "r", b"aGFuZGxl", 0, 64)
    assert (status, text) == (
        "StatusCode.INVALID_ARGUMENT",
        "failed to register CUDA shared memory region: 'r', GPUs not supported",
    )


def test_trace_settings(client) -> None:
    settings = client.get_trace_settings().settings
    assert {key: list(value.value) for key, value in settings.items()} == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [""],
        "trace_mode": ["triton"],
    }
    status, text = failure(client.update_trace_settings, settings={"trace_level": ["TIMESTAMPS"]})
    assert status == "StatusCode.UNIMPLEMENTED"
    assert "does not trace" in text
    assert failure(client.update_trace_settings, settings={"trace_file": "x"}) == (
        "StatusCode.UNIMPLEMENTED",
        "trace file location can not be updated through network protocol",
    )
    client.update_trace_settings(settings={"trace_level": ["OFF"], "trace_rate": None})


def test_log_settings_are_real(client) -> None:
    before = logs.switches.current
    try:
        answer = client.update_log_settings({"log_verbose_level": 1, "log_info": False})
        assert answer.settings["log_info"].bool_param is False
        assert not logs.switches.current.info
        assert logs.switches.current.verbose_level == 1
        assert client.get_log_settings().settings["log_verbose_level"].uint32_param == 1
        status, _ = failure(client.update_log_settings, {"log_info": True, "log_format": "odd"})
        assert status == "StatusCode.INVALID_ARGUMENT"
        assert not logs.switches.current.info, "wrong requests change nothing"
        assert failure(client.update_log_settings, {"log_file": "x"}) == (
            "StatusCode.UNIMPLEMENTED",
            "log file location can not be updated through network protocol",
        )
    finally:
        logs.switches.current = before
