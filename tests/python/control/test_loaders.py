"""Which runtime a model gets, and that all of them answer the same."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.control.torch_models import input_positions
from headrace.errors import InvalidArgumentError


@pytest.mark.parametrize("engine", ["auto", "openvino", "onnxruntime"])
def test_onnx_engines_agree(repository, start_server, connect, engine: str) -> None:
    repository.add("a", 2.5)
    server = start_server(load_model=("a",), onnx_engine=engine)
    client = connect(server)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(client.infer("a", {"x": x})["y"], x + np.float32(2.5), rtol=1e-6)
    description = server.manager.registry.find("a").version.description.lower()
    assert ("onnxruntime" if engine == "onnxruntime" else "openvino") in description
    assert client.model_config("a").platform == "onnxruntime_onnx"


def test_a_model_may_choose_its_engine(repository, start_server, connect) -> None:
    repository.add("a", 1)
    repository.put(
        "a/config.pbtxt",
        'parameters { key: "onnx_engine" value { string_value: "onnxruntime" } }',
    )
    server = start_server(load_model=("a",))
    assert "onnxruntime" in server.manager.registry.find("a").version.description


def foreign_operator() -> bytes:
    """com.microsoft::Inverse has a CPU kernel in onnxruntime and none in OpenVINO."""
    graph = helper.make_graph(
        [helper.make_node("Inverse", ["x"], ["y"], domain="com.microsoft")],
        "inverse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 2))],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_auto_falls_back_to_onnxruntime_and_says_so(
    repository, start_server, connect, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(logging.getLogger("headrace"), "propagate", True)
    repository.put("inverse/1/model.onnx", foreign_operator())
    with caplog.at_level(logging.WARNING):
        server = start_server(load_model=("inverse",))
    assert "it runs on onnxruntime instead" in caplog.text
    client = connect(server)
    x = np.array([[2, 0], [0, 4]], np.float32)
    assert client.infer("inverse", {"x": x})["y"].tolist() == [[0.5, 0], [0, 0.25]]


def test_openvino_alone_says_what_it_cannot_do(repository, start_server, connect) -> None:
    path = repository.put("inverse/1/model.onnx", foreign_operator())
    client = connect(start_server(onnx_engine="openvino"))
    with pytest.raises(InvalidArgumentError) as caught:
        client.load("inverse")
    assert str(path) in caught.value.details
    assert "Inverse" in caught.value.details


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_exports_of_optimum_load_as_they_are(repository, start_server, connect, engine) -> None:
    """Tokenizer and settings beside model.onnx, weights in model.onnx_data."""
    folder = repository.put("text/1/config.json", "{}").parent
    for name in ("tokenizer.json", "special_tokens_map.json", "vocab.txt"):
        repository.put(f"text/1/{name}", "{}")
    table = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    ids, axes = TensorProto.INT64, ["batch_size", "sequence_length"]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "main_graph",
        [helper.make_tensor_value_info("input_ids", ids, axes)],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*axes, 64])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    assert (folder / "model.onnx_data").stat().st_size == table.nbytes
    client = connect(start_server(load_model=("text",), onnx_engine=engine))
    x = np.array([[1, 2, 3], [4, 5, 49]])
    assert client.model_config("text").max_batch_size == 32
    np.testing.assert_array_equal(
        client.infer("text", {"input_ids": x})["last_hidden_state"], table[x]
    )


def test_strings_on_onnxruntime(repository, start_server, connect) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "strings",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ("n",))],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ("n",))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    repository.put("strings/1/model.onnx", model.SerializeToString())
    repository.put("strings/config.pbtxt", "max_batch_size: 0")
    client = connect(start_server(load_model=("strings",)))
    x = np.array([b"", "\u00fcber".encode(), b"x" * 1000], object)
    assert client.infer("strings", {"x": x})["y"].tolist() == x.tolist()


@pytest.mark.parametrize(
    ("names", "arguments", "positions"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["b", "a"], ["a", "b"], [1, 0]),
        (["INPUT__1", "INPUT__0"], ["x", "y"], [1, 0]),
        (["p", "q"], ["x", "y"], [0, 1]),
    ],
)
def test_torch_inputs_find_their_arguments(names, arguments, positions) -> None:
    assert input_positions(names, arguments, "model") == positions


def test_torch_input_numbers_must_be_complete() -> None:
    with pytest.raises(InvalidArgumentError, match="__0 to __1"):
        input_positions(["x__0", "x__2"], ["a", "b"], "model")


def torch_config(inputs: str, outputs: str) -> str:
    return f"""
    max_batch_size: 8
    input [ {{ name: "{inputs}" data_type: TYPE_FP32 dims: [3] }} ]
    output [ {{ name: "{outputs}" data_type: TYPE_FP32 dims: [3] }} ]
    """


def test_a_pytorch_model_without_torch_names_the_fix(repository, start_server, connect) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("torch is installed")
    repository.put("t/1/model.pt", b"anything")
    repository.put("t/config.pbtxt", torch_config("x", "y"))
    client = connect(start_server())
    with pytest.raises(InvalidArgumentError, match=r"pip install headrace\[torch\]"):
        client.load("t")


def test_broken_files_of_every_kind(repository, start_server, connect) -> None:
    for name in ("model.onnx", "model.xml", "model.py"):
        model = name.replace(".", "_")
        repository.put(f"{model}/1/{name}", b"\x00garbage\xff" * 50)
    repository.put("model_xml/1/model.bin", b"")
    client = connect(start_server())
    for entry in client.index():
        with pytest.raises(InvalidArgumentError) as caught:
            client.load(entry.name)
        assert str(repository.root / entry.name) in caught.value.details
