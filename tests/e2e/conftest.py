"""Fixtures: a server that most tests share, and a maker of servers for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import DTYPES, Server, onnx_model, write_identity, write_model
from onnx import TensorProto

SUM_CONFIG = """
backend: "openvino"
max_batch_size: 8
input [
  { name: "A", data_type: TYPE_FP32, dims: [16] },
  { name: "B", data_type: TYPE_FP32, dims: [16] }
]
output [{ name: "SUM", data_type: TYPE_FP32, dims: [16], label_filename: "labels.txt" }]
dynamic_batching {}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def start(repository: Path) -> Iterator[Callable[..., Server]]:
    """start(*options) -> a server on `repository`; stopped and checked after the test."""
    with ExitStack() as stack:
        yield lambda *options, **more: stack.enter_context(Server(repository, *options, **more))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """identity_fp32, flat_fp32 (which does not batch), ... for every datatype; fixed; sum."""
    folder = tmp_path_factory.mktemp("shared") / "models"
    folder.mkdir()
    for dtype in DTYPES:
        write_identity(folder, f"identity_{dtype.lower()}", dtype)
        write_identity(folder, f"flat_{dtype.lower()}", dtype, max_batch_size=0, dims="-1, -1")
    write_identity(folder, "fixed", "FP32", dims="16")
    batch = ["batch", 16]
    write_model(
        folder,
        "sum",
        SUM_CONFIG,
        {
            "model.onnx": onnx_model(
                "Add",
                {"A": (TensorProto.FLOAT, batch), "B": (TensorProto.FLOAT, batch)},
                {"SUM": (TensorProto.FLOAT, batch)},
            )
        },
    )
    (folder / "sum" / "labels.txt").write_text("\n".join(f"label{i}" for i in range(16)) + "\n")
    with Server(folder) as running:
        yield running
