"""While models are served, loading leaves them the processors; no thread that serves is lowered."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace import runtime

Counters = dict[str, tuple[str, int, int]]


def threads() -> Counters:
    """Of this process: name, nice value, nanoseconds on a processor."""
    rows: Counters = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            stat = (task / "stat").read_text()
            spent = int((task / "schedstat").read_text().split()[0])
        except OSError:  # it has ended
            continue
        name, rest = stat[stat.index("(") + 1 :].rsplit(")", 1)
        rows[task.name] = (name, int(rest.split()[16]), spent)
    return rows


def normal() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def matmul_model(width: int) -> bytes:
    """y = x W; more than 16 MiB of weights from 2048 on: instances then share a compiled model."""
    weights = np.full((width, width), 0.5, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return onnx.load_model_from_string(model.SerializeToString()).SerializeToString()


def config(instances: int, per_instance: int) -> str:
    return f"""
        max_batch_size: 8
        instance_group {{ count: {instances} }}
        parameters {{ key: "INFERENCE_NUM_THREADS" value {{ string_value: "{per_instance}" }} }}
    """


def spent_lower(work: Callable[[], object]) -> int:
    """Nanoseconds that lowered threads of this process ran during `work`."""
    before = threads()
    work()
    return sum(
        spent - before.get(task, ("", 0, 0))[2]
        for task, (_, nice, spent) in threads().items()
        if nice > normal()
    )


@pytest.mark.parametrize(
    ("width", "instances", "per_instance"),
    [(256, 1, 1), (256, 2, 1), (512, 1, 2), (2560, 2, 1), (2560, 1, 2)],
)
def test_nothing_that_serves_is_lowered(
    repository, start_server, connect, width: int, instances: int, per_instance: int
) -> None:
    repository.add("first", 1.0)
    server = start_server(load_model=("first",))
    client = connect(server)
    repository.put("m/1/model.onnx", matmul_model(width))
    repository.put("m/config.pbtxt", config(instances, per_instance))
    client.load("m")
    x = np.ones((8, width), np.float32)
    expected = np.full((8, width), width / 2, np.float32)

    names = {name: nice for name, nice, _ in threads().values()}
    for number in range(instances):
        assert names[f"m:{number}"] == normal()

    def infer() -> None:
        for _ in range(50):
            np.testing.assert_array_equal(client.infer("m", {"x": x})["y"], expected)

    def together() -> None:
        callers = [threading.Thread(target=infer) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    together()
    assert spent_lower(together) == 0
    assert np.all(client.infer("first", {"x": np.ones((1, 4), np.float32)})["y"] == 2)


def test_a_load_at_low_priority_takes_its_time_from_lowered_threads(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(matmul_model(1024))
    backend = runtime.OpenVinoBackend()
    first = backend.load(str(path))  # what is done once
    own = normal()
    before = time.thread_time()
    model = backend.load(str(path), low_priority=True)
    caller = time.thread_time() - before
    assert normal() == own
    before = time.thread_time()
    again = backend.load(str(path))
    assert caller < time.thread_time() - before
    assert first.description == model.description == again.description


def test_errors_of_a_load_at_low_priority_are_the_same(tmp_path: Path) -> None:
    backend = runtime.OpenVinoBackend()
    path = tmp_path / "model.onnx"
    texts = []
    for content in (None, b"nothing"):
        if content is not None:
            path.write_bytes(content)
        for low in (False, True):
            with pytest.raises(Exception, match=r"model\.onnx") as caught:
                backend.load(str(path), low_priority=low)
            texts.append(f"{type(caught.value)} {caught.value}")
            with pytest.raises(Exception, match=r"model\.onnx") as caught:
                backend.inspect(str(path), low_priority=low)
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]


def test_a_version_is_warmed_up_at_low_priority(tmp_path: Path, make_model) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make_model(1.0))
    model = runtime.OpenVinoBackend().load(str(path), low_priority=True)
    spec = runtime.ModelSpec(
        "add",
        1,
        8,
        [runtime.TensorSpec("x", "FP32", [4])],
        [runtime.TensorSpec("y", "FP32", [4])],
    )
    version = runtime.ModelVersion(spec, model, policy=runtime.BatchPolicy(max_rows=8), instances=1)
    version.warm_up({"x": np.zeros((8, 4), np.float32)}, low_priority=True)
    with pytest.raises(Exception, match="unexpected shape"):
        version.warm_up({"x": np.zeros((8, 5), np.float32)}, low_priority=True)
    version.start()
    assert np.all(version.infer({"x": np.zeros((1, 4), np.float32)})["y"] == 1)
    version.close()
