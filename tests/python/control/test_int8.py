"""Linear layers on our INT8 kernels, through OpenVINO: `parameters { key: "int8" }`."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import InvalidArgumentError

RNG = np.random.default_rng


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    x: tuple[int | str, ...],
    y: tuple[int | str, ...],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def config(mode: str) -> str:
    return f'max_batch_size: 64\nparameters {{ key: "int8" value {{ string_value: "{mode}" }} }}'


@pytest.fixture
def run(repository, start_server, connect):
    """Answers of one model in several modes: (y, description) each."""

    def run_modes(model: bytes, x: np.ndarray, modes: list[str], **settings: object):
        for mode in modes:
            repository.put(f"{mode}/1/model.onnx", model)
            repository.put(f"{mode}/config.pbtxt", config(mode))
        server = start_server(load_model=tuple(modes), **settings)
        client = connect(server)
        answers = []
        for mode in modes:
            description = server.manager.registry.find(mode).version.description
            assert client.infer(mode, {"x": x[:1]})["y"].shape[0] == 1
            answers.append((client.infer(mode, {"x": x})["y"], description))
        return answers

    return run_modes


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def float_mlp() -> bytes:
    rng = RNG(1)
    sizes = [48, 100, 64, 33]
    constants: dict[str, np.ndarray] = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        constants[f"w{i}"] = rng.normal(0, a**-0.5, (a, b)).astype(np.float32)
        constants[f"b{i}"] = rng.normal(0, 0.3, b).astype(np.float32)
    constants["w1"] = np.ascontiguousarray(constants["w1"].T)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["m0"]),
        helper.make_node("Add", ["b0", "m0"], ["a0"]),
        helper.make_node("Relu", ["a0"], ["r0"]),
        helper.make_node("Gemm", ["r0", "w1", "b1"], ["a1"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Sigmoid", ["a1"], ["s1"]),
        helper.make_node("Mul", ["a1", "s1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"]),
        helper.make_node("Add", ["m2", "b2"], ["y"]),
    ]
    return model_of(nodes, constants, ("n", sizes[0]), ("n", sizes[-1]))


def test_a_float_mlp_is_computed_in_int8_when_asked(run, tmp_path) -> None:
    x = RNG(2).normal(0, 1, (13, 48)).astype(np.float32)
    cache = str(tmp_path / "cache")
    (plain, before), (int8, after) = run(float_mlp(), x, ["off", "dynamic"], cache_dir=cache)
    assert "int8" not in before
    assert "3 of 3 MatMuls" in after
    assert 0 < error(int8, plain) < 0.03
    # The cache, which would lack the weights, was left alone: a second start answers the same.
    ((again, _),) = run(float_mlp(), x, ["dynamic"], cache_dir=cache)
    assert np.array_equal(again, int8)


def test_auto_measures_and_says_what_it_chose(run) -> None:
    x = RNG(2).normal(0, 1, (5, 48)).astype(np.float32)
    (plain, _), (chosen, description) = run(float_mlp(), x, ["off", "auto"])
    assert "of 3 MatMuls" in description
    assert error(chosen, plain) < 0.03


def test_a_mode_that_is_none_is_refused(repository, start_server, connect) -> None:
    repository.put("m/1/model.onnx", float_mlp())
    repository.put("m/config.pbtxt", config("int4"))
    client = connect(start_server())
    with pytest.raises(InvalidArgumentError, match=r'parameters\["int8"\] is "int4"; it must be'):
        client.load("m")


def test_a_quantised_model_is_executed_exactly(run) -> None:
    """Large weights, which saturate in 16-bit sums; signed and unsigned activations; a scale a
    channel and one for all."""
    rng = RNG(3)
    w0 = rng.choice(np.array([-127, -100, 100, 127], np.int8), (96, 70))
    w1 = rng.integers(-127, 128, (50, 70)).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, 70).astype(np.float32)
    bias0, bias1 = (rng.normal(0, 1, n).astype(np.float32) for n in (70, 50))
    xs, hs, ws1 = np.float32(0.03), np.float32(0.05), np.float32(0.004)
    constants = {
        "w0": w0,
        "w1": w1,
        "ws0": scales,
        "wz0": np.zeros(70, np.int8),
        "ws1": np.array(ws1),
        "xs": np.array(xs),
        "xz": np.array(0, np.int8),
        "hs": np.array(hs),
        "hz": np.array(3, np.uint8),
        "b0": bias0,
        "b1": bias1,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w0", "ws0", "wz0"], ["wd0"], axis=1),
        helper.make_node("MatMul", ["xd", "wd0"], ["m0"]),
        helper.make_node("Add", ["m0", "b0"], ["a0"]),
        helper.make_node("Relu", ["a0"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "hs", "hz"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "hs", "hz"], ["hd"]),
        helper.make_node("DequantizeLinear", ["w1", "ws1"], ["wd1"]),
        helper.make_node("Gemm", ["hd", "wd1", "b1"], ["y"], transB=1),
    ]
    x = rng.normal(0, 2, (64, 96)).astype(np.float32)
    x[0], x[1], x[2] = 100, -100, 0
    ((y, description),) = run(model_of(nodes, constants, ("n", 96), ("n", 50)), x, ["dynamic"])
    assert "2 of 2 MatMuls" in description

    def quantise(value: np.ndarray, scale: np.float32, zero: int, low: int, high: int):
        return np.clip(np.rint(value * (np.float32(1) / scale)) + zero, low, high).astype(np.int64)

    sums = quantise(x, xs, 0, -128, 127) @ w0.astype(np.int64)
    h = np.maximum(sums.astype(np.float32) * (xs * scales) + bias0, 0)
    sums = (quantise(h, hs, 3, 0, 255) - 3) @ w1.astype(np.int64).T
    want = sums.astype(np.float32) * (hs * ws1) + bias1
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_a_transformer_block_with_siblings(run) -> None:
    """Query, key and value read one tensor and have the same shape: one operator, three weights."""
    rng = RNG(4)
    width, heads, sequence = 64, 4, 9
    names = ["wq", "wk", "wv", "wo"]
    constants = {n: rng.normal(0, width**-0.5, (width, width)).astype(np.float32) for n in names}
    constants["w1"] = rng.normal(0, width**-0.5, (width, 200)).astype(np.float32)
    constants["w2"] = rng.normal(0, 200**-0.5, (200, width)).astype(np.float32)
    for name, size in {"bq": width, "bv": width, "b1": 200, "b2": width}.items():
        constants[name] = rng.normal(0, 0.2, size).astype(np.float32)
    constants |= {
        "ln": np.ones(width, np.float32),
        "shape": np.array([0, 0, heads, width // heads], np.int64),
        "flat": np.array([0, 0, width], np.int64),
        "root": np.array((width // heads) ** 0.5, np.float32),
        "sqrt2": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "ln"], ["n"], axis=-1),
        node("MatMul", ["n", "wq"], ["q0"]),
        node("Add", ["q0", "bq"], ["q1"]),
        node("MatMul", ["n", "wk"], ["k1"]),
        node("MatMul", ["n", "wv"], ["v0"]),
        node("Add", ["v0", "bv"], ["v1"]),
        *(node("Reshape", [f"{p}1", "shape"], [f"{p}2"]) for p in "qkv"),
        node("Transpose", ["q2"], ["q3"], perm=[0, 2, 1, 3]),
        node("Transpose", ["k2"], ["k3"], perm=[0, 2, 3, 1]),
        node("Transpose", ["v2"], ["v3"], perm=[0, 2, 1, 3]),
        node("MatMul", ["q3", "k3"], ["s0"]),
        node("Div", ["s0", "root"], ["s1"]),
        node("Softmax", ["s1"], ["s2"], axis=-1),
        node("MatMul", ["s2", "v3"], ["c0"]),
        node("Transpose", ["c0"], ["c1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["c1", "flat"], ["c2"]),
        node("MatMul", ["c2", "wo"], ["o"]),
        node("Add", ["x", "o"], ["r"]),
        node("MatMul", ["r", "w1"], ["f0"]),
        node("Add", ["f0", "b1"], ["f1"]),
        node("Div", ["f1", "sqrt2"], ["g0"]),
        node("Erf", ["g0"], ["g1"]),
        node("Add", ["g1", "one"], ["g2"]),
        node("Mul", ["f1", "g2"], ["g3"]),
        node("Mul", ["g3", "half"], ["g4"]),
        node("MatMul", ["g4", "w2"], ["f2"]),
        node("Add", ["f2", "b2"], ["f3"]),
        node("Add", ["f3", "r"], ["y"]),
    ]
    model = model_of(nodes, constants, ("n", "s", width), ("n", "s", width))
    x = rng.normal(0, 1, (3, sequence, width)).astype(np.float32)
    (plain, _), (int8, description) = run(model, x, ["off", "dynamic"])
    assert "6 of 8 MatMuls" in description
    assert error(int8, plain) < 0.02
