"""Builds TensorRT-RTX engines from ONNX files, ahead of time, on a machine without a GPU.

    pip install tensorrt-rtx        # NVIDIA's, 1 GB; in a virtual environment of its own
    python bench/build_engines.py model.onnx model.int8.onnx --target SM80

One line a file: engine size, seconds, how many Q and DQ it has; the parser's own words where it
does not take one, and exit status 1. A free first dimension is 1 to --batch, others --least
to --free.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt


class RefusedError(Exception):
    pass


class _Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what is wrong, instead of printing it among the lines."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


def profile_of(network: Any, builder: Any, batch: int, least: int, free: int) -> Any:
    """Smallest, usual and largest shape of each input."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tensor.shape:
            continue
        shapes = []
        for rows, others in ((1, least), (max(1, batch // 2), free), (batch, free)):
            shapes.append(
                [
                    d if d >= 0 else (rows if at == 0 else others)
                    for at, d in enumerate(tensor.shape)
                ]
            )
        profile.set_shape(tensor.name, *shapes)
    return profile


def build(path: Path, targets: list[str], batch: int, least: int, free: int) -> dict[str, Any]:
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not path.is_file():
        raise RefusedError("does not exist")
    if not parser.parse(path.read_bytes()):
        problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise RefusedError("; ".join(problems) or "; ".join(log.errors) or "does not parse")
    config = builder.create_builder_config()
    config.add_optimization_profile(profile_of(network, builder, batch, least, free))
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(trt.ComputeCapability.__members__[target], index)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RefusedError("; ".join(log.errors) or "does not build")
    kinds = [network.get_layer(i).type for i in range(network.num_layers)]
    return {
        "file": str(path),
        "targets": targets,
        "onnx_bytes": path.stat().st_size,
        "engine_bytes": plan.nbytes,
        "seconds": round(time.perf_counter() - start, 2),
        "quantize_layers": kinds.count(trt.LayerType.QUANTIZE),
        "dequantize_layers": kinds.count(trt.LayerType.DEQUANTIZE),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--target", nargs="+", default=["SM80"], metavar="SM")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--free", type=int, default=64, help="other dimensions that are free")
    parser.add_argument("--least", type=int, default=2, help="the least that those may be")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.target) - set(trt.ComputeCapability.__members__):
        sys.exit(f"no target {min(unknown)}; {', '.join(trt.ComputeCapability.__members__)}")
    failed = False
    results = []
    for path in arguments.files:
        try:
            result = build(path, arguments.target, arguments.batch, arguments.least, arguments.free)
            text = (
                f"engine {result['engine_bytes'] / 1e6:.2f} MB of ONNX "
                f"{result['onnx_bytes'] / 1e6:.2f} MB in {result['seconds']} s, "
                f"{result['quantize_layers']} Q, {result['dequantize_layers']} DQ"
            )
        except RefusedError as refused:
            failed = True
            result = {"file": str(path), "refused": str(refused)}
            text = f"refused: {refused}"
        results.append(result)
        if not arguments.json:
            print(f"{path}: {text}", flush=True)
    if arguments.json:
        print(json.dumps({"tensorrt_rtx": trt.__version__, "engines": results}, indent=2))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
