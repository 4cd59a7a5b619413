"""Stand-ins for TensorRT, for what has to be tested without a GPU: the states around engines.

`StandInRuntime` takes the place of libheadrace_tensorrt.so, `standin_builder` that of the process
that builds engines. An "engine" of theirs is a file that names its GPU and the ONNX file, which
onnxruntime executes. They prove nothing about TensorRT.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import onnxruntime

from headrace import runtime
from headrace.control.engine_builds import Device
from headrace.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError

VERSION = "11.1.0"


def engine_of(gpu: str, onnx: Path) -> bytes:
    return f"stand-in engine\n{gpu}\n{onnx}".encode()


class StandInRuntime:
    """An EngineRuntime. `gpu` "": there is none. `refuses`: engines of this GPU, too. `full`: its
    memory is."""

    gpu = "Stand-in GPU"
    refuses = False
    full = False

    def __init__(self) -> None:
        pass

    def device(self) -> Device:
        if not self.gpu:
            raise UnavailableError("no CUDA device: no CUDA-capable device is detected")
        return Device("tensorrt", VERSION, self.gpu, "9.0")

    def load(self, path: Path) -> runtime.Model:
        kind, gpu, onnx = [*path.read_text().split("\n"), "", ""][:3]
        if kind != "stand-in engine" or gpu != self.device().name or self.refuses:
            raise InvalidArgumentError(f"'{path}' is no engine for this TensorRT and GPU")
        if self.full:
            raise ResourceExhaustedError(f"no device memory for '{path}'")
        return self.model_of(Path(onnx))

    def model_of(self, onnx: Path) -> runtime.Model:
        session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])

        def infer(inputs: dict[str, Any]) -> dict[str, Any]:
            names = [o.name for o in session.get_outputs()]
            return dict(zip(names, session.run(names, inputs), strict=True))

        def specs(tensors: Any) -> list[runtime.TensorSpec]:
            return [
                runtime.TensorSpec(
                    t.name, "FP32", [d if isinstance(d, int) else -1 for d in t.shape]
                )
                for t in tensors
            ]

        return runtime.callback_model(
            [infer] * 8,
            specs(session.get_inputs()),
            specs(session.get_outputs()),
            description=f"stand-in TensorRT {VERSION} on {self.gpu}",
        )


def standin_builder(folder: Path) -> list[str]:
    """The command. What it does is in the files of `folder`: it waits until `go` is there, unless
    `hold` is not; leaves its pid in `pid`; counts in `builds`; obeys `refuse` (an error), `crash`
    (SIGSEGV), `silent` (ends without a word), `version` (is of another)."""
    script = folder / "standin_builder.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, os, pathlib, signal, sys, time
        folder = pathlib.Path({str(folder)!r})
        request = json.loads(sys.stdin.readline())
        (folder / "request").write_text(json.dumps(request))
        with (folder / "builds").open("a") as file:
            file.write("x")
        (folder / "pid.new").write_text(str(os.getpid()))
        (folder / "pid.new").rename(folder / "pid")
        print(json.dumps({{"progress": ["building", 1, 2]}}), flush=True)
        print("no JSON", flush=True)
        while (folder / "hold").exists() and not (folder / "go").exists():
            time.sleep(0.01)
        if (folder / "crash").exists():
            print("about to crash", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if (folder / "silent").exists():
            sys.exit(3)
        if (folder / "refuse").exists():
            print(json.dumps({{"error": "node 'n' (Odd): there is no such operator"}}), flush=True)
            sys.exit(1)
        plan = "stand-in engine\\nStand-in GPU 9.0\\n" + request["onnx"]
        pathlib.Path(request["plan"]).write_text(plan)
        said = folder / "version"
        version = said.read_text() if said.exists() else "{VERSION}.7"
        built = {{"seconds": 0.5, "bytes": len(plan), "profiles": 1, "runtime": "tensorrt"}}
        print(json.dumps({{"built": {{**built, "version": version}}}}), flush=True)
        """)
    )
    return [sys.executable, str(script)]
