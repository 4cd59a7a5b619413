"""TensorRT-RTX builds engines from what the quantiser writes; needs no GPU, but the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs pip install tensorrt-rtx (1 GB)")
pytest.importorskip("onnxruntime")

import onnx_models

from headrace.optimize.quantize import Options, quantize
from headrace.optimize.samples import Chunk, divide

BENCH = Path(__file__).parents[3] / "bench" / "build_engines.py"


def builder() -> Any:
    spec = importlib.util.spec_from_file_location("build_engines", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("smooth", ["off", "0.5"])
@pytest.mark.parametrize(
    ("make", "shape", "tensors", "layers"),
    [
        (onnx_models.mlp, (16, 64), 3, 3),
        (onnx_models.attention, (16, 8, 32), 8, 12),
        (onnx_models.conv_net, (16, 3, 12, 12), 3, 3),
    ],
)
def test_int8_models_build(
    tmp_path: Path, make: Any, shape: tuple[int, ...], tensors: int, layers: int, smooth: str
) -> None:
    x = onnx_models.rows(*shape)
    chunks = [Chunk({"x": x[i : i + 1]}, None, 1, True) for i in range(len(x))]
    options = Options(max_error=1e6, calibration="minmax", smooth=smooth)
    result = quantize(make(tmp_path / "model.onnx"), divide(chunks), options)
    path = tmp_path / "model.int8.onnx"
    path.write_bytes(result.model)
    built = builder().build(path, ["SM80"], batch=4, least=2, free=8)
    assert built["engine_bytes"] > 0
    # Of each tensor one Q and DQ, of each weight a DQ: none was folded away or refused.
    assert (built["quantize_layers"], built["dequantize_layers"]) == (tensors, tensors + layers)


def test_what_the_parser_refuses_is_told(tmp_path: Path) -> None:
    module = builder()
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(module.RefusedError):
        module.build(tmp_path / "model.onnx", ["SM80"], 1, 1, 1)
