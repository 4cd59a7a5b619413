"""The quantiser on small real graphs. Accuracy is compared in arithmetic that no machine's
saturation touches; where stock runtimes take part, with 7-bit weights, which cannot saturate."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import onnx_models  # noqa: E402
from onnx import TensorProto, helper, numpy_helper, version_converter  # noqa: E402

from headrace.errors import (  # noqa: E402
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.optimize import measure, qdq  # noqa: E402
from headrace.optimize.layers import find_layers, inputs_of, open_model  # noqa: E402
from headrace.optimize.quantize import Options, Quantized, quantize  # noqa: E402
from headrace.optimize.samples import Chunk, Division, divide  # noqa: E402

Array = onnx_models.Array
ANY = 1e6  # a budget that everything meets


def division_of(x: Array) -> Division:
    return divide([Chunk({"x": x[i : i + 1]}, None, 1, True) for i in range(len(x))])


def run(path: Path, x: Array, **options: Any) -> Quantized:
    options.setdefault("max_error", ANY)
    return quantize(path, division_of(x), Options(**options))


def answer(model: bytes, x: Array, *, exact: bool = False) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def relative(got: Array, wanted: Array) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def check_form(model: bytes, layers: int) -> None:
    """The one form that all runtimes take."""
    loaded = onnx.load_from_string(model)
    onnx.checker.check_model(loaded, full_check=True)
    constants = {t.name: numpy_helper.to_array(t) for t in loaded.graph.initializer}
    producer = {out: node for node in loaded.graph.node for out in node.output}
    assert all(n.domain in ("", "ai.onnx") for n in loaded.graph.node)
    found = 0
    for node in loaded.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
            scale = constants[node.input[1]]
            assert scale.dtype == np.float32
            assert np.isfinite(scale).all()
            assert (scale > 0).all()
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[1]].shape == ()
            readers = [n for n in loaded.graph.node if node.output[0] in n.input]
            assert [n.op_type for n in readers] == ["DequantizeLinear"]
        if node.op_type == "DequantizeLinear":
            # Never at an output, and biases are not behind one.
            for reader in (n for n in loaded.graph.node if node.output[0] in n.input):
                assert reader.op_type in ("Conv", "MatMul", "Gemm")
                assert node.output[0] not in reader.input[2:]
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            x, w = producer.get(node.input[0]), producer.get(node.input[1])
            if w is None or w.op_type != "DequantizeLinear":
                continue
            found += 1
            assert x is not None
            assert x.op_type == "DequantizeLinear"
            q = constants[w.input[0]]
            assert q.dtype == np.int8
            axis = helper.get_node_attr_value(w, "axis")
            trans = any(a.name == "transB" and a.i for a in node.attribute)
            assert axis == (0 if node.op_type == "Conv" or trans else 1)
            assert constants[w.input[1]].shape == (q.shape[axis],)
            assert q.min() >= -127
    assert found == layers


MODELS = {
    "mlp": (onnx_models.mlp, (160, 64), 3),
    "attention": (onnx_models.attention, (48, 8, 32), 12),
    "conv_net": (onnx_models.conv_net, (64, 3, 12, 12), 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_seven_bit_weights_agree_everywhere(tmp_path: Path, name: str) -> None:
    """onnxruntime's and OpenVINO's integer kernels, and the arithmetic as written."""
    make, shape, layers = MODELS[name]
    path = make(tmp_path / "model.onnx")
    x = onnx_models.rows(*shape)
    result = run(path, x, weight_bits=7)
    check_form(result.model, layers)
    assert result.layers == layers
    assert result.error < 0.08
    x = x[:16]
    written = answer(result.model, x, exact=True)
    # Not equal: where sums differ in their last bit, a number may round to the next level.
    assert relative(answer(result.model, x), written) < 0.2 * result.error
    assert result.on_this_machine is not None
    assert result.on_this_machine[0].relative_l2 == pytest.approx(result.error, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_the_form_is_what_all_runtimes_take(tmp_path: Path, name: str) -> None:
    make, shape, layers = MODELS[name]
    result = run(make(tmp_path / "model.onnx"), onnx_models.rows(*shape), calibration="minmax")
    check_form(result.model, layers)
    assert result.error < 0.05
    assert len(result.model) < (tmp_path / "model.onnx").stat().st_size
    assert result.on_this_machine is not None  # OpenVINO ran it


def test_the_answers_are_those_of_onnxruntimes_own_quantiser(tmp_path: Path) -> None:
    """quantize_static with everything set to this form gives the same numbers."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    x = onnx_models.rows(64, 64)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter([{"x": x}])

        def get_next(self) -> Any:
            return next(self.rows, None)

    theirs = tmp_path / "theirs.onnx"
    quantize_static(
        str(path),
        str(theirs),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Add", "Relu"],
        },
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    division = Division(*([Chunk({"x": x}, None, len(x))] for _ in range(3)))
    ours = quantize(path, division, Options(ANY, calibration="minmax", smooth="off"))
    exact = answer(path.read_bytes(), x)
    reference = answer(theirs.read_bytes(), x, exact=True)
    got = answer(ours.model, x, exact=True)
    # Their weights reach -128..127 or -127..127, depending on the version.
    assert relative(got, reference) < 0.3 * relative(reference, exact)
    assert relative(got, exact) == pytest.approx(relative(reference, exact), rel=0.1)


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_smoothing_wins_where_channels_are_outliers(tmp_path: Path, name: str) -> None:
    make, shape, _ = MODELS[name]
    path = make(tmp_path / "model.onnx", outliers=True)
    x = onnx_models.rows(*shape)
    plain, smoothed = run(path, x, smooth="off"), run(path, x)
    assert plain.smoothed == 0
    assert smoothed.smoothed > 0
    assert plain.error > 0.2
    assert smoothed.error < 0.05
    assert smoothed.error < plain.error / 6


def test_smoothing_keeps_the_function(tmp_path: Path) -> None:
    for name, (make, shape, _) in MODELS.items():
        path = make(tmp_path / f"{name}.onnx")
        model = open_model(path)
        x = onnx_models.rows(*shape)[:8]
        random = np.random.default_rng(1)
        groups: dict[str, list[Any]] = {}
        for layer in find_layers(model)[0]:
            if layer.op != "Conv":
                groups.setdefault(layer.x, []).append(layer)
        weights = {t.name: t.dims for t in model.graph.initializer}
        made = []
        for tensor, layers in groups.items():
            k = weights[layers[0].weight][1 - layers[0].axis]
            factors = np.exp(random.normal(size=k)).astype(np.float32)
            made.append(qdq.Group(tensor, tuple(one.key for one in layers), factors))
        smoothed = qdq.smooth(model, made)
        onnx.checker.check_model(smoothed)
        got = answer(smoothed.SerializeToString(), x)
        assert relative(got, answer(path.read_bytes(), x)) < 1e-5, name


def test_factors_are_folded_where_nobody_else_reads(tmp_path: Path) -> None:
    """Into the layer before through its activation, and into a normalisation; not through GELU."""
    model = open_model(onnx_models.mlp(tmp_path / "mlp.onnx"))
    assert qdq.foldable(model, "r0", ("m1",), 96)
    assert qdq.foldable(model, "r1", ("y",), 96)
    assert not qdq.foldable(model, "x", ("h0",), 64)
    model = open_model(onnx_models.attention(tmp_path / "attention.onnx"))
    assert qdq.foldable(model, "a.normal", ("a.q.m", "a.k.m", "a.v.m"), 32)
    assert not qdq.foldable(model, "a.normal", ("a.q.m", "a.k.m"), 32)
    assert not qdq.foldable(model, "a.residual", ("a.up.m",), 32)
    assert not qdq.foldable(model, "a.gelu", ("a.down.m",), 64)
    model = open_model(onnx_models.mlp(tmp_path / "mlp.onnx"))
    model.graph.output.append(helper.make_tensor_value_info("r0", TensorProto.FLOAT, None))
    assert not qdq.foldable(model, "r0", ("m1",), 96)


def test_the_budget_is_met_by_layers_in_float(tmp_path: Path) -> None:
    path = onnx_models.attention(tmp_path / "attention.onnx")
    x = onnx_models.rows(48, 8, 32)
    everything = run(path, x)
    budget = everything.error * 0.6
    said: list[tuple[str, int, int]] = []
    result = quantize(
        path, division_of(x), Options(budget), lambda *progress: said.append(progress)
    )
    assert result.error <= budget < everything.error
    assert 0 < result.layers < everything.layers == 12
    check_form(result.model, result.layers)
    put_back = [one for one in result.left if "alone in INT8 it gives" in one.reason]
    assert len(put_back) == 12 - result.layers
    assert set(result.effects) == {layer.name for layer in find_layers(open_model(path))[0]}
    # Measured again, from the file.
    held = division_of(x).held_out
    reference = {"y": [answer(path.read_bytes(), c.inputs["x"]) for c in held]}
    got = {"y": [answer(result.model, c.inputs["x"], exact=True) for c in held]}
    assert measure.worst(measure.compare(reference, got, held)) == pytest.approx(
        result.error, rel=1e-3
    )
    steps = [what for what, _, _ in said]
    assert "observing activations" in steps
    assert "measuring each layer" in steps
    assert all(0 <= done <= of for _, done, of in said)


def test_a_budget_that_cannot_be_met_is_told(tmp_path: Path) -> None:
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    text = (
        r"no layer of .*mlp.onnx can be INT8 within the budget of 1e-07: the least error of any "
        r"choice is 0\.0\d+. Allow more with --max-error"
    )
    with pytest.raises(FailedPreconditionError, match=text):
        run(path, onnx_models.rows(40, 64), max_error=1e-7)


def test_layers_are_kept_in_float_when_asked(tmp_path: Path) -> None:
    path = onnx_models.attention(tmp_path / "attention.onnx")
    result = run(path, onnx_models.rows(32, 8, 32), keep_float=("a.*", "b.down"))
    assert result.layers == 5
    reasons = {one.name: one.reason for one in result.left}
    assert reasons["a.q"] == reasons["b.down"] == "asked for"
    assert reasons["b.scores"] == "both sides are activations, as in attention"
    check_form(result.model, 5)


def test_old_opsets_are_converted(tmp_path: Path) -> None:
    x = onnx_models.rows(48, 64)
    path = onnx_models.mlp(tmp_path / "mlp.onnx", opset=11)
    model = open_model(path)
    assert [o.version for o in model.opset_import] == [13]
    assert relative(answer(model.SerializeToString(), x), answer(path.read_bytes(), x)) < 1e-6
    check_form(run(path, x).model, 3)


def test_inputs_are_read_from_the_model(tmp_path: Path) -> None:
    (x,) = inputs_of(open_model(onnx_models.attention(tmp_path / "attention.onnx")))
    assert (x.name, np.dtype(x.dtype), x.dims) == ("x", np.float32, (None, 8, 32))


def saved(path: Path, change: Any) -> Path:
    model = onnx.load(str(onnx_models.mlp(path)))
    change(model)
    onnx.save(model, str(path))
    return path


def test_files_that_are_no_float_models_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        open_model(tmp_path / "none.onnx")
    path = tmp_path / "model.onnx"
    for content in (b"", b"no model at all", b"\x00" * 50):
        path.write_bytes(content)
        with pytest.raises(InvalidArgumentError, match="is no ONNX model"):
            open_model(path)

    onnx_models.mlp(path, opset=11)

    def fail(*arguments: Any) -> None:
        raise RuntimeError("no adapter for Loop")

    with monkeypatch.context() as patched:
        patched.setattr(version_converter, "convert_version", fail)
        with pytest.raises(
            FailedPreconditionError,
            match=r"has opset 11; INT8 weights need 13, and converting it failed "
            r"\(no adapter for Loop\). Export it again with opset 13 or newer",
        ):
            open_model(path)

    def broken(model: Any) -> None:
        model.graph.node[0].input[0] = "nothing"

    with pytest.raises(InvalidArgumentError, match="is no valid ONNX model"):
        open_model(saved(path, broken))

    def half(model: Any) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float16), "half"))

    with pytest.raises(FailedPreconditionError, match="has float16 weights; give the float32"):
        open_model(saved(path, half))

    def not_finite(model: Any) -> None:
        tensor = model.graph.initializer[0]
        array = numpy_helper.to_array(tensor).copy()
        array[0] = np.inf
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    with pytest.raises(InvalidArgumentError, match="NaN or infinity"):
        run(saved(path, not_finite), onnx_models.rows(8, 64))

    onnx_models.mlp(path)
    path.write_bytes(run(path, onnx_models.rows(8, 64)).model)
    with pytest.raises(
        FailedPreconditionError, match=r"is quantised already.*give the float model"
    ):
        open_model(path)


def test_a_model_without_layers_to_quantise_is_told(tmp_path: Path) -> None:
    path = onnx_models.save(
        tmp_path / "relu.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        {},
        {"x": ["n", 4]},
        {"y": ["n", 4]},
    )
    with pytest.raises(
        FailedPreconditionError, match=r"no Conv, MatMul or Gemm that can be quantised \(it has"
    ):
        run(path, onnx_models.rows(8, 4))
    path = onnx_models.save(
        tmp_path / "product.onnx",
        [helper.make_node("MatMul", ["x", "x"], ["y"])],
        {},
        {"x": ["n", 4, 4]},
        {"y": ["n", 4, 4]},
    )
    with pytest.raises(FailedPreconditionError, match="MatMul: both sides are activations"):
        run(path, onnx_models.rows(8, 4, 4))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_error": 0}, "max-error is 0; expected as 0.01"),
        ({"max_error": float("nan")}, "max-error is nan"),
        ({"calibration": "best"}, "calibration is 'best'; say auto, minmax, percentile, mse"),
        ({"percentile": 0.9999}, "percentile is 0.9999; expected as 99.99"),
        ({"weight_bits": 4}, "weight-bits is 4; say 8 or 7"),
        ({"smooth": "yes"}, "smooth is 'yes'; say auto, off or a strength, as 0.5"),
        ({"smooth": "1"}, "smooth is '1'; say auto, off or a strength"),
    ],
)
def test_options_that_mean_nothing_are_told(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        Options(**options)
    assert text in raised.value.details


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from headrace.errors import UnimplementedError

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UnimplementedError, match=r"package onnx: pip install 'headrace\[optimize\]"
    ):
        quantize(tmp_path / "m.onnx", Division([], [], []), Options())


def test_differences_are_what_they_are_called() -> None:
    reference = {
        "scores": [np.array([[0.1, 0.9], [0.6, 0.4]], np.float32)],
        "ids": [np.array([1, 2, 3, 4])],
    }
    got = {
        "scores": [np.array([[0.2, 0.8], [0.4, 0.6]], np.float32)],
        "ids": [np.array([1, 2, 3, 5])],
    }
    chunks = [Chunk({}, np.array([1, 1]), 2)]
    scores, ids = measure.compare(reference, got, chunks)
    assert scores.relative_l2 == pytest.approx((0.1 / 1.34) ** 0.5, rel=1e-5)
    assert scores.max_abs == pytest.approx(0.2)
    assert scores.agreement == 0.5
    assert scores.accuracy == (0.5, 1.0)
    assert scores.cosine == pytest.approx((0.24 + 0.24) / 0.52)
    assert (ids.agreement, ids.cosine) == (0.75, None)
    assert measure.worst([scores, ids]) == scores.relative_l2
    assert measure.worst([ids]) == measure.worst([scores, ids], ["ids"]) == 0.25


def test_an_output_to_judge_by_must_be_one(tmp_path: Path) -> None:
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    with pytest.raises(InvalidArgumentError, match=r"has no output 'z'; it has y"):
        run(path, onnx_models.rows(8, 64), outputs=("z",))
    assert run(path, onnx_models.rows(8, 64), outputs=("y",), calibration="minmax").layers == 3


def test_rounds_are_interleaved_and_medians() -> None:
    now = 0.0
    calls: list[str] = []

    def call(name: str, seconds: list[float]) -> None:
        nonlocal now
        calls.append(name)
        now += seconds.pop(0) if len(seconds) > 1 else seconds[0]

    # The first calls, which are not counted, are slow; so is one round of the first.
    before, after = [9.0, 9.0, 9.0, 0.5, 50.0, 0.5], [9.0, 9.0, 0.25]
    first, second = measure.interleaved(
        lambda: call("before", before), lambda: call("after", after), seconds=1, clock=lambda: now
    )
    assert (first, second) == (0.5, 0.25)
    assert calls[5:9] == ["before", "after", "after", "before"]


def test_a_real_classifier_keeps_its_answers(tmp_path: Path) -> None:
    """Magika's file types (dense, Conv, dense; jax's export) on files of this tree."""
    spec = importlib.util.find_spec("magika")
    if spec is None or spec.origin is None:
        pytest.skip("needs the weights in the package magika")
    path = Path(spec.origin).parent / "models" / "standard_v3_3" / "model.onnx"
    root = Path(__file__).parents[3]
    files = sorted(
        p for kind in ("py", "md", "cc", "h", "toml") for p in root.glob(f"*/**/*.{kind}")
    )
    rows = []
    for file in files[:: max(1, len(files) // 16)]:
        content = file.read_bytes()
        begin, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        rows.append([*begin, *[256] * (1024 - len(begin)), *[256] * (1024 - len(end)), *end])
    chunks = [Chunk({"bytes": np.array([row], np.int32)}, None, 1, True) for row in rows]
    result = quantize(path, divide(chunks), Options(ANY, calibration="minmax", smooth="off"))
    assert result.layers == 3
    assert result.differences[0].agreement == 1
    assert result.error < 0.1
    assert len(result.model) < 0.6 * path.stat().st_size
    check_form(result.model, 3)
