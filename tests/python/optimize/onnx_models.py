"""Small float models, written with onnx, and data for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


def save(
    path: Path,
    nodes: list[Any],
    weights: dict[str, Array],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    *,
    opset: int = 17,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.array(w, order="C"), n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def mlp(path: Path, *, outliers: bool = False, opset: int = 17, k: int = 64) -> Path:
    """x (batch, k) -> Gemm, Relu, MatMul + Add, Relu, Gemm -> y (batch, 10). With `outliers` some
    channels are 60 times as large and made small again by the next weights: the same function."""
    random = np.random.default_rng(3)

    def normal(*shape: int) -> Array:
        return (random.normal(size=shape) * (2 / shape[0]) ** 0.5).astype(np.float32)

    w = {
        "w0": normal(k, 96),
        "b0": normal(96),
        "w1": normal(96, 96),
        "b1": normal(96),
        "w2": normal(10, 96),  # transB
        "b2": normal(10),
    }
    if outliers:
        s = np.ones(96, np.float32)
        s[random.choice(96, 6, replace=False)] = 60
        w["w0"], w["b0"], w["w1"] = w["w0"] * s, w["b0"] * s, w["w1"] / s[:, None]
        w["w1"], w["b1"], w["w2"] = w["w1"] * s, w["b1"] * s, w["w2"] / s
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h0"], name="first"),
        helper.make_node("Relu", ["h0"], ["r0"]),
        helper.make_node("MatMul", ["r0", "w1"], ["m1"], name="second"),
        helper.make_node("Add", ["m1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["y"], name="third", transB=1),
    ]
    return save(path, nodes, w, {"x": ["batch", k]}, {"y": ["batch", 10]}, opset=opset)


def attention(path: Path, *, outliers: bool = True) -> Path:
    """x (batch, 8, 32): two residual blocks, each LayerNormalization, attention of one head and a
    linear GELU pair: what transformers consist of. Outliers are in the normalisations' scales."""
    random = np.random.default_rng(5)
    k, weights, nodes = 32, {}, []
    x = "x"

    def constant(name: str, value: Array) -> str:
        weights[name] = np.asarray(value, np.float32)
        return name

    def linear(x: str, name: str, rows: int, columns: int, undo: Array | None = None) -> str:
        w = random.normal(size=(rows, columns)) / rows**0.5
        w = w if undo is None else w / undo[:, None]
        nodes.append(
            helper.make_node("MatMul", [x, constant(f"{name}.w", w)], [f"{name}.m"], name=name)
        )
        b = constant(f"{name}.b", random.normal(size=columns) * 0.1)
        nodes.append(helper.make_node("Add", [f"{name}.m", b], [f"{name}.y"]))
        return f"{name}.y"

    def node(op: str, inputs: list[str], out: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    for block in ("a", "b"):
        gamma = np.ones(k)
        if outliers:
            gamma[random.choice(k, 2, replace=False)] = 50
        g, b = constant(f"{block}.gamma", gamma), constant(f"{block}.beta", np.zeros(k))
        normal = node("LayerNormalization", [x, g, b], f"{block}.normal")
        q, key, v = (linear(normal, f"{block}.{n}", k, k, gamma) for n in "qkv")
        t = node("Transpose", [key], f"{block}.t", perm=[0, 2, 1])
        p = node("Softmax", [node("MatMul", [q, t], f"{block}.scores")], f"{block}.p", axis=-1)
        o = linear(node("MatMul", [p, v], f"{block}.mixed"), f"{block}.o", k, k)
        x = node("Add", [x, o], f"{block}.residual")
        h = linear(x, f"{block}.up", k, 64)
        e = node("Erf", [node("Mul", [h, constant("r2", np.float32(0.5**0.5))], f"{block}.s")],
                 f"{block}.erf")  # fmt: skip
        e = node("Add", [e, constant("one", np.float32(1))], f"{block}.e1")
        e = node("Mul", [h, e], f"{block}.he")
        gelu = node("Mul", [e, constant("half", np.float32(0.5))], f"{block}.gelu")
        x = node("Add", [x, linear(gelu, f"{block}.down", 64, k)], f"{block}.out")
    node("Identity", [x], "y")
    return save(path, nodes, weights, {"x": ["batch", 8, k]}, {"y": ["batch", 8, k]})


def conv_net(path: Path, *, opset: int = 13) -> Path:
    """x (batch, 3, 12, 12): Conv, BatchNormalization, Relu, Conv with groups, Relu, pool, Gemm."""
    random = np.random.default_rng(7)

    def normal(*shape: int) -> Array:
        return (random.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)

    weights = {
        "c0": normal(16, 3, 3, 3),
        "gamma": random.uniform(0.5, 2, 16).astype(np.float32),
        "beta": normal(16, 1)[:, 0],
        "mean": normal(16, 1)[:, 0],
        "var": random.uniform(0.5, 2, 16).astype(np.float32),
        "c1": normal(32, 4, 3, 3),
        "b1": normal(32, 1)[:, 0],
        "w": normal(32, 5),
        "b": normal(5, 1)[:, 0],
    }
    nodes = [
        helper.make_node("Conv", ["x", "c0"], ["h0"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["h0", "gamma", "beta", "mean", "var"], ["n0"]),
        helper.make_node("Relu", ["n0"], ["r0"]),
        helper.make_node("Conv", ["r0", "c1", "b1"], ["h1"], name="conv1", group=4),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], name="dense"),
    ]
    return save(path, nodes, weights, {"x": ["batch", 3, 12, 12]}, {"y": ["batch", 5]}, opset=opset)


def rows(*shape: int, seed: int = 11) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
