"""Builds TensorRT-RTX engines from ONNX files, ahead of time, on a machine without a GPU.

    pip install tensorrt-rtx        # NVIDIA's, 1 GB; in a virtual environment of its own
    python bench/build_engines.py model.onnx model.int8.onnx --target SM80

One line a file: engine size, seconds, how many Q and DQ it has; the parser's own words where it
does not take one, and exit status 1. A free first dimension is 1 to --batch, others --least
to --free. `headrace build` is the same for people who serve.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from headrace.errors import HeadraceError
from headrace.optimize.engines import Builder, EngineSpec, build, find_builder


def build_one(path: Path, spec: EngineSpec, builder: Builder) -> dict[str, Any]:
    try:
        built = build(path, spec, builder)
    except HeadraceError as error:
        if not spec.batch_sizes or "batch dimension" not in error.details:
            raise
        built = build(path, EngineSpec(free=spec.free, targets=spec.targets), builder)
    return {
        "file": str(path),
        "targets": list(spec.targets),
        "onnx_bytes": path.stat().st_size,
        "engine_bytes": len(built.plan),
        "seconds": round(built.seconds, 2),
        "quantize_layers": built.quantize_layers,
        "dequantize_layers": built.dequantize_layers,
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
    builder = find_builder("tensorrt_rtx")
    free = (arguments.least, arguments.free, arguments.free)
    spec = EngineSpec((arguments.batch,), free, targets=tuple(arguments.target))
    failed = False
    results = []
    for path in arguments.files:
        try:
            result = build_one(path, spec, builder)
            text = (
                f"engine {result['engine_bytes'] / 1e6:.2f} MB of ONNX "
                f"{result['onnx_bytes'] / 1e6:.2f} MB in {result['seconds']} s, "
                f"{result['quantize_layers']} Q, {result['dequantize_layers']} DQ"
            )
        except HeadraceError as refused:
            failed = True
            result = {"file": str(path), "refused": refused.details}
            text = f"refused: {refused.details}"
        results.append(result)
        if not arguments.json:
            print(f"{path}: {text}", flush=True)
    if arguments.json:
        print(json.dumps({"tensorrt_rtx": builder.version, "engines": results}, indent=2))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
