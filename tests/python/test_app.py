"""Server in this process, and `headrace serve` in one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from headrace.app import Server
from headrace.client import Client
from headrace.config import ServerConfig
from headrace.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)

QUIET = {"host": "127.0.0.1", "grpc_port": 0, "metrics_port": -1, "cache_dir": ""}


def test_a_callable_is_served_in_batches() -> None:
    shapes: list[tuple[int, ...]] = []

    def double(inputs):
        shapes.append(inputs["x"].shape)
        return {"y": inputs["x"] * 2}

    server = Server(ServerConfig(**QUIET))
    server.add_callable(
        "double", double, {"x": ("FP32", [3])}, {"y": (np.float32, [3])}, max_batch_size=4
    )
    with server, Client(server.address) as client:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert client.infer("double", {"x": x})["y"].tolist() == (x * 2).tolist()
        assert client.model_ready("double")
        assert server.ready
        (y,) = client.model_metadata("double").outputs
        assert (y.name, y.datatype, list(y.shape)) == ("y", "FP32", [-1, 3])
    assert shapes == [(2, 3)]
    assert not server.ready


def test_callables_can_come_later_and_not_twice() -> None:
    with Server(ServerConfig(**QUIET)) as server, Client(server.address) as client:
        tensor = {"x": ("INT64", [-1])}
        server.add_callable("late", lambda i: i, tensor, tensor)
        with pytest.raises(AlreadyExistsError):
            server.add_callable("late", lambda i: i, tensor, tensor)
        server.add_callable("late", lambda i: {"x": i["x"] + 1}, tensor, tensor, version=2)
        one = {"x": np.array([1], np.int64)}
        assert client.infer("late", one)["x"].tolist() == [2]
        assert client.infer("late", one, version="1")["x"].tolist() == [1]


@pytest.mark.parametrize(
    "declaration", [{"x": "FP32"}, {"x": ("FP99", [1])}, {"x": ("FP32", [-2])}, ["x"]]
)
def test_bad_declarations(declaration) -> None:
    server = Server(ServerConfig(**QUIET))
    with pytest.raises(InvalidArgumentError, match="model 'm': inputs"):
        server.add_callable("m", lambda i: i, declaration, {"y": ("FP32", [1])})
    server.stop()


def test_a_taken_port_is_named() -> None:
    with Server(ServerConfig(**QUIET)) as server:
        again = Server(ServerConfig(**(QUIET | {"grpc_port": server.port})))
        with pytest.raises(UnavailableError, match=str(server.port)):
            again.start()


def test_a_server_is_started_once_and_stopped_as_often_as_you_like() -> None:
    server = Server(ServerConfig(**QUIET))
    server.start()
    with pytest.raises(FailedPreconditionError):
        server.start()
    assert server.stop()
    assert server.stop()


def test_many_servers_one_after_the_other() -> None:
    def threads() -> set[str]:
        return {t.name for t in threading.enumerate()}

    before = threads()
    for _ in range(10):
        with Server(ServerConfig(**(QUIET | {"metrics_port": 0}))) as server:
            assert server.metrics_port > 0
    assert threads() <= before


def serve(*flags: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headrace", "serve", "--host", "127.0.0.1"]
    return subprocess.Popen(
        [*command, "--grpc-port", "0", "--log-format", "json", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def ready_line(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stderr is not None
    for line in process.stderr:
        fields = json.loads(line)
        if "grpc_port" in fields:
            return fields
    raise AssertionError(f"ended with {process.wait()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_cleanly(number: signal.Signals) -> None:
    process = serve("--metrics-port", "0")
    fields = ready_line(process)
    with Client(f"127.0.0.1:{fields['grpc_port']}") as client:
        assert client.server_ready()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    messages = [json.loads(line)["message"] for line in errors.splitlines()]
    assert messages[-1].startswith("stopped in")


def test_running_requests_finish_and_a_second_signal_ends_at_once(tmp_path) -> None:
    model = tmp_path / "models" / "stuck" / "1"
    model.mkdir(parents=True)
    (model / "model.py").write_text(
        "import threading\n"
        "inputs = outputs = {'x': ('FP32', [1])}\n"
        "def infer(inputs):\n"
        f"    open({str(tmp_path / 'entered')!r}, 'w').close()\n"
        "    threading.Event().wait()\n"
    )
    os.mkfifo(tmp_path / "entered")
    process = serve("--model-repository", str(tmp_path / "models"), "--no-metrics")
    fields = ready_line(process)
    client = Client(f"127.0.0.1:{fields['grpc_port']}")
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            client.infer("stuck", {"x": np.zeros(1, np.float32)})
        except Exception as error:
            ended.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    with (tmp_path / "entered").open():  # the model has the request
        pass
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    for line in process.stderr:
        if "stopping" in json.loads(line)["message"]:
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    asker.join()
    process.stderr.close()
    client.close()
    assert len(ended) == 1


def test_a_broken_model_ends_serve_with_a_readable_error(tmp_path) -> None:
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "model.onnx").write_bytes(b"garbage")
    process = serve("--model-repository", str(tmp_path))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "INVALID_ARGUMENT: model 'bad' could not be loaded" in errors
    assert str(tmp_path / "bad" / "1" / "model.onnx") in errors
    assert "--no-exit-on-error" in errors


def test_serve_imports_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys\n"
        "from headrace.app import Server\n"
        "from headrace.config import ServerConfig\n"
        "import headrace.cli\n"
        "s = Server(ServerConfig(host='127.0.0.1', grpc_port=0, metrics_port=-1))\n"
        "s.start()\n"
        "s.stop()\n"
        "heavy = ('grpc', 'rich', 'prometheus_client', 'openvino', 'onnxruntime', 'torch', "
        "'pydantic', 'yaml', 'numpy')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"
