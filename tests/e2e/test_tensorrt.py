"""`backend: "tensorrt"` in a real server on a machine without TensorRT: another backend serves, and
that is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import Server, onnx_model, write_model
from onnx import TensorProto

from headrace.control.tensorrt_models import TensorRt
from headrace.errors import HeadraceError


def test_without_tensorrt_another_backend_serves(tmp_path: Path) -> None:
    try:
        found = TensorRt().device()
    except HeadraceError:
        pass
    else:
        pytest.skip(f"there is {found}")
    folder = tmp_path / "models"
    folder.mkdir()
    shape = ["batch", 16]
    onnx = onnx_model(
        "Softmax", {"X": (TensorProto.FLOAT, shape)}, {"Y": (TensorProto.FLOAT, shape)}
    )
    config = 'platform: "tensorrt_plan" max_batch_size: 4 instance_group { kind: KIND_GPU }'
    plan = b"an engine of another GPU"
    write_model(folder, "both", config, {"model.plan": plan, "model.onnx": onnx})
    write_model(folder, "onnx", 'backend: "tensorrt"', {"model.onnx": onnx})
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    with Server(folder) as server:
        for model in ("both", "onnx"):
            np.testing.assert_allclose(server.infer(model, x).sum(axis=1), 1, rtol=1e-5)
        listed = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("headrace")), "models", "--json"),
                *("--url", server.address),
            ],
            capture_output=True,
            check=True,
            text=True,
        )
        for row in json.loads(listed.stdout):
            assert row["platform"] == "tensorrt_plan"
            assert "OpenVINO" in row["backend"]
            assert row["why"].startswith("no TensorRT engine: ")
        log = server.log()
        assert re.search(r"model 'both' version 1: \S+model\.plan is not used: ", log)
        assert "model 'onnx' version 1 runs without TensorRT: " in log


def test_a_plan_alone_fails_and_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_model(folder, "plan", 'backend: "tensorrt"', {"model.plan": b"no engine of any GPU"})
    with Server(folder, "--no-exit-on-error", "--no-strict-readiness") as server:
        (row,) = server.client.get_model_repository_index().models
        assert row.state == "UNAVAILABLE"
        assert "model.plan cannot be executed: " in row.reason
        server.checked = False
