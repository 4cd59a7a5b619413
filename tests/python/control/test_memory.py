"""200 load/unload cycles leave the process as large as they found it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def wide_model() -> bytes:
    """y = x @ W with 1 MiB of weights: a leak of a model shows within a few cycles."""
    weights = np.random.default_rng(1).standard_normal((512, 512)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 512))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 512))],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_200_load_unload_cycles_leave_rss_flat(repository, start_server, connect) -> None:
    repository.put("wide/1/model.onnx", wide_model())
    repository.put(
        "py/1/model.py",
        """
        import numpy as np

        class Model:
            inputs = {"x": ("FP32", [4])}
            outputs = {"y": ("FP32", [4])}

            def __init__(self):
                self.weights = np.ones(1 << 20, np.float32)
                self.itself = self  # a cycle: only the collector frees it

            def __call__(self, inputs):
                return {"y": inputs["x"]}
        """,
    )
    server = start_server()
    client = connect(server)
    x = np.ones((1, 512), np.float32)

    def cycle() -> None:
        client.load("wide")
        client.load("py")
        client.infer("wide", {"x": x})
        client.unload("wide")
        client.unload("py")
        assert server.manager.wait_drained(60)

    for _ in range(40):  # allocators, thread pools and caches reach their size
        cycle()
    before = resident_bytes()
    for _ in range(200):
        cycle()
    grown = resident_bytes() - before
    # A leaked model a cycle would be 200 to 1000 MiB.
    print(f"{grown / 2**20:.1f} MiB in 200 cycles, from {before / 2**20:.0f} MiB")
    assert grown < 16 << 20
