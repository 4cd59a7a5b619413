"""A real server in a process of its own, and model repositories for it to serve."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
    "BF16": np.uint16,  # bit patterns
}
CONFIG_TYPES = {"BYTES": "STRING"}


def config_type(dtype: str) -> str:
    return "TYPE_" + CONFIG_TYPES.get(dtype, dtype)


# --- waiting ---------------------------------------------------------------------------------


def eventually(condition: Callable[[], Any], what: str, within_s: float = 30) -> Any:
    """What `condition` answers once that is true. Fails when it never is."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)  # between looks, never instead of one
    raise AssertionError(f"never happened within {within_s:.0f} s: {what}")


# --- the server ------------------------------------------------------------------------------


_PORTS_GIVEN: set[int] = set()


def free_port() -> int:
    """Never the same twice, nor in two workers of pytest-xdist. Below the range from which the
    kernel gives clients their ports: a connection of another test cannot take it before the
    server has it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    while True:
        port = random.SystemRandom().randrange(10_000 + worker, 32_000, 8)
        if port in _PORTS_GIVEN:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _PORTS_GIVEN.add(port)
        return port


class Server:
    """`headrace serve` on free ports. The `with` ends with SIGTERM and an exit status of 0."""

    def __init__(
        self,
        repository: Path,
        *options: str,
        ready: bool = True,
        port: int = 0,
        wrap: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`port` 0: a free one. `wrap`: a command that executes its arguments, like prlimit."""
        self.repository = repository
        self.port = port or free_port()
        self.metrics_port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log_path = repository.parent / f"server-{self.port}.log"
        self.checked = True  # whether __exit__ asserts a clean end
        self._wait = ready
        command = [
            *wrap,
            str(Path(sys.executable).with_name("headrace")),
            "serve",
            "--model-repository",
            str(repository),
            "--host",
            "127.0.0.1",
            "--grpc-port",
            str(self.port),
            "--metrics-port",
            str(self.metrics_port),
            "--cache-dir",
            "",
            "--state-dir",
            "",
            *options,
        ]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}
            )

    def __enter__(self) -> Server:
        self.client = triton.InferenceServerClient(self.address)
        self.channel = grpc.insecure_channel(
            self.address,
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        if self._wait:
            try:
                self.wait_ready()
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise
        return self

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"the server ended:\n{self.log()}"
            try:
                return bool(self.client.is_server_ready(client_timeout=5))
            except InferenceServerException:
                return False

        eventually(ready, f"server ready; its log:\n{self.log()}", within_s=60)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        self.channel.close()
        if self.process.poll() is None:
            self.terminate()
        try:
            status = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = None
        if self.checked and error is None:
            assert status == 0, f"exit status {status}:\n{self.log()}"

    # --- looking at it ---

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found.group(1))

    def metrics_text(self) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that carry these labels."""
        total = 0.0
        for line in self.metrics_text().splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? ([0-9.eE+-]+)", line)
            if match and all(f'{k}="{v}"' in (match.group(1) or "") for k, v in labels.items()):
                total += float(match.group(2))
        return total

    def counts(self, value: float, name: str, **labels: str) -> None:
        """The metric comes to be `value`: counters move on threads that a client does not wait
        for, so an answer may be here before its count."""
        try:
            eventually(lambda: self.metric(name, **labels) == value, name)
        except AssertionError:
            assert self.metric(name, **labels) == value  # says what it is
            raise

    def statistics(self, model: str) -> Any:
        return self.client.get_inference_statistics(model).model_stats[0]

    def pending(self, model: str) -> int:
        return int(self.metric("nv_inference_pending_request_count", model=model))

    # --- asking it ---

    def infer(self, model: str, value: np.ndarray[Any, Any], **options: Any) -> Any:
        """Input X of an identity model; its output Y."""
        return self.client.infer(model, [tensor("X", value)], **options).as_numpy("Y")

    def still_answers(self) -> None:
        assert self.process.poll() is None, f"the server died:\n{self.log()}"
        with triton.InferenceServerClient(self.address) as client:
            assert client.is_server_live(client_timeout=10)


def tensor(name: str, value: np.ndarray[Any, Any], dtype: str | None = None) -> Any:
    from tritonclient.utils import np_to_triton_dtype

    made = triton.InferInput(name, list(value.shape), dtype or np_to_triton_dtype(value.dtype))
    made.set_data_from_numpy(value)
    return made


def infer_request(model: str, **fields: Any) -> Any:
    return service_pb2.ModelInferRequest(model_name=model, **fields)


def raw_input(name: str, dtype: str, shape: list[int]) -> Any:
    return service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=dtype, shape=shape)


@contextmanager
def many(calls: list[Callable[[], Any]]) -> Iterator[list[Any]]:
    """Runs each call on a thread of its own; the list holds their answers after the `with`.

    A call that fails has its exception as answer."""
    answers: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            answers[index] = calls[index]()
        except Exception as error:
            answers[index] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a call was never answered"


# --- models ----------------------------------------------------------------------------------

IDENTITY = """
class Model:
    def __call__(self, inputs):
        return {"Y": inputs["X"]}
"""

# Makes the file `started`, then waits in every execution until the file `gate` lies beside it: so
# tests know what executes and what is in the queue.
GATED = """
import pathlib
import time

GATE = pathlib.Path(__file__).with_name("gate")


class Model:
    def __call__(self, inputs):
        GATE.with_name("started").touch()
        while not GATE.exists():
            time.sleep(0.001)
        return {"Y": inputs["X"]}
"""


def write_model(
    repository: Path, name: str, config: str, files: dict[str, str | bytes], version: int = 1
) -> Path:
    """repository/name/config.pbtxt and repository/name/<version>/<files>; the version folder."""
    # Written aside and moved in whole, as whoever feeds a watched repository should.
    model = repository / name
    aside = repository.parent / f".{name}"
    made = aside / str(version)
    made.mkdir(parents=True)
    for file, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (made / file).write_bytes(data)
    if model.exists():
        made.rename(model / str(version))
        aside.rmdir()
    else:
        if config:
            (aside / "config.pbtxt").write_text(config)
        aside.rename(model)
    return model / str(version)


def identity_config(
    dtype: str, *, max_batch_size: int = 8, dims: str = "-1", more: str = "dynamic_batching {}"
) -> str:
    return f"""
backend: "callback"
max_batch_size: {max_batch_size}
input [{{ name: "X", data_type: {config_type(dtype)}, dims: [{dims}] }}]
output [{{ name: "Y", data_type: {config_type(dtype)}, dims: [{dims}] }}]
{more if max_batch_size else ""}
"""


def write_identity(repository: Path, name: str, dtype: str, **options: Any) -> Path:
    return write_model(repository, name, identity_config(dtype, **options), {"model.py": IDENTITY})


def write_gated(repository: Path, name: str, **options: Any) -> Path:
    """Returns the gate: touch it to let the model run."""
    folder = write_model(repository, name, identity_config("INT32", **options), {"model.py": GATED})
    return folder / "gate"


def occupy(server: Server, gate: Path, model: str = "gated") -> Any:
    """A call that keeps the only instance of a gated model busy until the gate is there.

    Without it several calls may be taken as the first batch."""
    ones = np.ones((1, 2), np.int32)
    call = server.stub.ModelInfer.future(
        infer_request(
            model, inputs=[raw_input("X", "INT32", [1, 2])], raw_input_contents=[ones.tobytes()]
        )
    )
    eventually(gate.with_name("started").exists, "the call executes")
    return call


def onnx_model(
    node: str,
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
) -> bytes:
    """One ONNX node from all inputs to all outputs; {name: (element type, dims)}."""
    from onnx import helper

    graph = helper.make_graph(
        [helper.make_node(node, list(inputs), list(outputs))],
        "graph",
        [helper.make_tensor_value_info(n, t, d) for n, (t, d) in inputs.items()],
        [helper.make_tensor_value_info(n, t, d) for n, (t, d) in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
