"""Answers of the OpenVINO backend equal onnxruntime's: datatypes, dynamic shapes, batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from harness import Server, onnx_model, write_model
from onnx import TensorProto

# What the CPU plugin computes in another type is still exact for these values.
TYPES = {
    "UINT8": TensorProto.UINT8,
    "INT8": TensorProto.INT8,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}
NUMPY = {
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


@pytest.fixture(scope="module")
def openvino(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """same_<dtype>: identity. relu: any picture. softmax: rows. None has a config.pbtxt."""
    folder = tmp_path_factory.mktemp("openvino") / "models"
    folder.mkdir()
    for dtype, number in TYPES.items():
        model = onnx_model("Identity", {"X": (number, ["batch", 5])}, {"Y": (number, ["batch", 5])})
        write_model(folder, f"same_{dtype.lower()}", "", {"model.onnx": model})
    shape = ["batch", 3, "height", "width"]
    relu = onnx_model("Relu", {"X": (TensorProto.FLOAT, shape)}, {"Y": (TensorProto.FLOAT, shape)})
    write_model(folder, "relu", "", {"model.onnx": relu})
    softmax = onnx_model(
        "Softmax", {"X": (TensorProto.FLOAT, ["n", 100])}, {"Y": (TensorProto.FLOAT, ["n", 100])}
    )
    write_model(folder, "softmax", "", {"model.onnx": softmax})
    with Server(folder, "--onnx-engine", "openvino") as running:
        assert running.log().count("OpenVINO") >= len(TYPES) + 2, "every model runs on OpenVINO"
        yield running


def reference(server: Server, model: str, array: np.ndarray[Any, Any]) -> Any:
    path: Path = server.repository / model / "1" / "model.onnx"
    return onnxruntime.InferenceSession(str(path)).run(None, {"X": array})[0]


@pytest.mark.parametrize("dtype", TYPES)
def test_identity_of_a_datatype(openvino: Server, dtype: str) -> None:
    low = 0 if dtype.startswith("U") else -100
    array = np.random.default_rng(1).integers(low, 100, (3, 5)).astype(NUMPY[dtype])
    got = openvino.infer(f"same_{dtype.lower()}", array)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 17, 5), (4, 3, 5, 17), (1, 3, 224, 224)])
def test_dynamic_shapes(openvino: Server, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(openvino.infer("relu", array), reference(openvino, "relu", array))


def test_every_batch_size(openvino: Server) -> None:
    limit = openvino.client.get_model_config("softmax").config.max_batch_size
    assert limit >= 1, "the model's batch dimension is dynamic: it should be completed to batching"
    for batch in range(1, limit + 1):
        array = np.random.default_rng(batch).normal(size=(batch, 100)).astype(np.float32)
        got = openvino.infer("softmax", array)
        np.testing.assert_allclose(got, reference(openvino, "softmax", array), rtol=0, atol=1e-6)


def test_config_is_completed_from_the_model(openvino: Server) -> None:
    metadata = openvino.client.get_model_metadata("relu")
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("X", "FP32", [-1, 3, -1, -1])
    ]
    assert [(o.name, o.datatype) for o in metadata.outputs] == [("Y", "FP32")]
    config = openvino.client.get_model_config("relu").config
    assert config.backend  # completed, under Triton's name for ONNX files
    assert list(config.input[0].dims) == [3, -1, -1]
