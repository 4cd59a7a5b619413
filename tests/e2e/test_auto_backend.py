"""`backend: "auto"` in a real server, seen by `headrace models`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from harness import Server, onnx_model, write_model
from onnx import TensorProto


def test_a_model_runs_on_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shape = ["batch", 16]
    model = onnx_model(
        "Softmax", {"X": (TensorProto.FLOAT, shape)}, {"Y": (TensorProto.FLOAT, shape)}
    )
    config = """
    backend: "auto"
    max_batch_size: 4
    parameters { key: "INFERENCE_NUM_THREADS" value { string_value: "1" } }
    """
    write_model(folder, "softmax", config, {"model.onnx": model})
    cache = str(tmp_path / "cache")
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    whys = set()
    for _ in range(2):  # the second start does as the first has found out
        with Server(folder, "--cache-dir", cache) as server:
            np.testing.assert_allclose(server.infer("softmax", x).sum(axis=1), 1, rtol=1e-5)
            listed = subprocess.run(
                [
                    *(str(Path(sys.executable).with_name("headrace")), "models", "--json"),
                    *("--url", server.address),
                ],
                capture_output=True,
                check=True,
                text=True,
            )
            (row,) = json.loads(listed.stdout)
            assert row["state"] == "READY"
            assert any(name in row["backend"] for name in ("OpenVINO", "onnxruntime"))
            assert "softmax" in server.log()
            assert row["why"] in server.log()
            whys.add(row["why"])
    (why,) = whys
    assert why.startswith("fastest of 2 at batches of 1, 4: openvino ")
