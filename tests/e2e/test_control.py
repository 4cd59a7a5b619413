"""Metadata, configuration, index, load, unload and reload, through tritonclient."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from harness import (
    Server,
    eventually,
    identity_config,
    many,
    occupy,
    tensor,
    write_gated,
    write_identity,
    write_model,
)
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

Start = Callable[..., Server]
ONE = np.ones((1, 2), np.int32)
EXPLICIT = ("--model-control-mode", "explicit")
POLL = ("--model-control-mode", "poll", "--repository-poll-secs", "0.1")

# Answers its version: every element plus `add`.
PLUS = "def infer(inputs):\n    return {{'Y': inputs['X'] + {add}}}\n"


def plus(repository: Path, add: int, version: int) -> Path:
    code = PLUS.format(add=add)
    return write_model(repository, "plus", identity_config("INT32"), {"model.py": code}, version)


def index(server: Server) -> dict[tuple[str, str], tuple[str, str]]:
    models = server.client.get_model_repository_index().models
    return {(m.name, m.version): (m.state, m.reason) for m in models}


def failure(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        call()
    return str(error.value.status()), error.value.message()


# --- questions -------------------------------------------------------------------------------


def test_server_metadata(server: Server) -> None:
    metadata = server.client.get_server_metadata()
    assert metadata.name == "headrace"
    assert metadata.version
    assert {"model_repository", "model_configuration", "statistics", "classification"} <= set(
        metadata.extensions
    )


def test_live_and_ready(server: Server) -> None:
    assert server.client.is_server_live()
    assert server.client.is_server_ready()
    assert server.client.is_model_ready("sum")
    assert server.client.is_model_ready("sum", "1")
    assert not server.client.is_model_ready("sum", "7")
    assert not server.client.is_model_ready("nobody")


def test_model_metadata(server: Server) -> None:
    metadata = server.client.get_model_metadata("sum")
    assert metadata.name == "sum"
    assert list(metadata.versions) == ["1"]
    assert metadata.platform
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("A", "FP32", [-1, 16]),
        ("B", "FP32", [-1, 16]),
    ]
    assert [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs] == [
        ("SUM", "FP32", [-1, 16])
    ]
    flat = server.client.get_model_metadata("flat_fp32")
    assert list(flat.inputs[0].shape) == [-1, -1]


def test_model_config(server: Server) -> None:
    config = server.client.get_model_config("sum").config
    assert config.name == "sum"
    assert config.max_batch_size == 8
    assert [(i.name, list(i.dims)) for i in config.input] == [("A", [16]), ("B", [16])]
    assert config.output[0].label_filename == "labels.txt"
    assert config.HasField("dynamic_batching")


def test_index_lists_every_model_by_name(server: Server) -> None:
    models = server.client.get_model_repository_index().models
    names = [m.name for m in models]
    assert names == sorted(names)
    assert "sum" in names
    assert {m.state for m in models} == {"READY"}


def test_statistics_of_all_models(server: Server) -> None:
    stats = server.client.get_inference_statistics().model_stats
    assert {"sum", "fixed", "identity_fp32"} <= {m.name for m in stats}


# --- explicit mode ---------------------------------------------------------------------------


def test_load_and_unload(start: Start, repository: Path) -> None:
    plus(repository, 1, 1)
    write_identity(repository, "other", "INT32")
    server = start(*EXPLICIT)
    assert index(server) == {("other", ""): ("", ""), ("plus", ""): ("", "")}
    assert not server.client.is_model_ready("plus")

    server.client.load_model("plus")
    np.testing.assert_array_equal(server.infer("plus", ONE), ONE + 1)
    assert index(server)["plus", "1"][0] == "READY"

    server.client.unload_model("plus")
    eventually(lambda: index(server)["plus", "1"] == ("UNAVAILABLE", "unloaded"), "unloaded")
    assert not server.client.is_model_ready("plus")
    status, text = failure(lambda: server.infer("plus", ONE))
    assert status == "StatusCode.NOT_FOUND"
    assert text == "Request for unknown model: 'plus' has no available versions"
    # Again, and one that never was: no error.
    server.client.unload_model("plus")
    server.client.unload_model("nobody")

    server.client.load_model("plus")
    np.testing.assert_array_equal(server.infer("plus", ONE), ONE + 1)


def test_chosen_models_are_loaded_at_start(start: Start, repository: Path) -> None:
    plus(repository, 1, 1)
    write_identity(repository, "other", "INT32")
    server = start(*EXPLICIT, "--load-model", "plus")
    assert server.client.is_model_ready("plus")
    assert not server.client.is_model_ready("other")


def test_load_again_takes_the_new_version(start: Start, repository: Path) -> None:
    plus(repository, 1, 1)
    server = start(*EXPLICIT)
    server.client.load_model("plus")
    plus(repository, 2, 2)
    np.testing.assert_array_equal(server.infer("plus", ONE), ONE + 1)
    server.client.load_model("plus")
    np.testing.assert_array_equal(server.infer("plus", ONE), ONE + 2)
    assert list(server.client.get_model_metadata("plus").versions) == ["2"]


def test_a_version_policy_keeps_several(start: Start, repository: Path) -> None:
    config = identity_config("INT32") + "version_policy { latest { num_versions: 2 } }\n"
    for version in (1, 2, 3):
        code = PLUS.format(add=version)
        write_model(repository, "plus", config, {"model.py": code}, version)
    server = start()
    assert list(server.client.get_model_metadata("plus").versions) == ["2", "3"]
    np.testing.assert_array_equal(server.infer("plus", ONE), ONE + 3)
    np.testing.assert_array_equal(server.infer("plus", ONE, model_version="2"), ONE + 2)
    assert failure(lambda: server.infer("plus", ONE, model_version="1"))[0] in (
        "StatusCode.NOT_FOUND",
        "StatusCode.UNAVAILABLE",
    )


def test_a_failed_load_keeps_what_serves(start: Start, repository: Path) -> None:
    plus(repository, 1, 1)
    server = start(*EXPLICIT)
    server.client.load_model("plus")
    broken = "raise RuntimeError('boom')\n"
    write_model(repository, "plus", identity_config("INT32"), {"model.py": broken}, 2)
    status, text = failure(lambda: server.client.load_model("plus"))
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert text.startswith("load failed for model 'plus': version 2 is at UNAVAILABLE state: ")
    assert "boom" in text
    np.testing.assert_array_equal(server.infer("plus", ONE), ONE + 1)
    assert index(server)["plus", "1"][0] == "READY"
    state, reason = index(server)["plus", "2"]
    assert state == "UNAVAILABLE"
    assert "boom" in reason


def test_a_config_sent_with_the_load(start: Start, repository: Path) -> None:
    write_identity(repository, "identity", "INT32", max_batch_size=8)
    server = start(*EXPLICIT)
    server.client.load_model(
        "identity",
        config='{"backend": "callback", "max_batch_size": 4, '
        '"input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [-1]}], '
        '"output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [-1]}]}',
    )
    assert server.client.get_model_config("identity").config.max_batch_size == 4


@pytest.mark.parametrize(
    ("files", "config"),
    [
        ({"model.onnx": b"this is no ONNX file"}, ""),
        ({"model.onnx": b""}, ""),
        ({"model.onnx": b"\x08\x08\x12\x00:\xff\xff\xff\xff\x0f"}, ""),
        ({"model.py": "def infer(:\n"}, identity_config("INT32")),
        ({"model.py": "x = 1\n"}, identity_config("INT32")),
        ({"model.py": "import no_such_module_anywhere\n"}, identity_config("INT32")),
        ({"readme.txt": "no model here"}, ""),
        ({}, ""),
        ({"model.py": "def infer(i):\n    return i\n"}, 'max_batch_size: "many"\n'),
        ({"model.py": "def infer(i):\n    return i\n"}, "no_such_field: 1\n"),
        ({"model.py": "def infer(i):\n    return i\n"}, 'backend: "no_such_backend"\n'),
    ],
)
def test_a_broken_model_is_an_error_that_names_it(
    start: Start, repository: Path, files: dict[str, str | bytes], config: str
) -> None:
    write_model(repository, "broken", config, files)
    write_identity(repository, "good", "INT32")
    server = start(*EXPLICIT, "--load-model", "good")
    status, text = failure(lambda: server.client.load_model("broken"))
    assert status in ("StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL")
    assert text.startswith(("load failed for model 'broken': ", "failed to load 'broken', "))
    # More than the client's text: the cause.
    assert len(text) > len("failed to load 'broken', failed to poll from model repository: ")
    assert not server.client.is_model_ready("broken")
    assert "broken" in server.log()
    np.testing.assert_array_equal(server.infer("good", ONE), ONE)


def test_a_truncated_real_model(start: Start, repository: Path, server: Server) -> None:
    whole = (server.repository / "sum" / "1" / "model.onnx").read_bytes()
    for cut in range(1, len(whole), 7):
        write_model(repository, f"cut{cut}", "", {"model.onnx": whole[:cut]})
    own = start(*EXPLICIT)
    loaded = 0
    codes: set[str | None] = set()
    for cut in range(1, len(whole), 7):
        try:
            own.client.load_model(f"cut{cut}")
            loaded += 1
        except InferenceServerException as error:
            codes.add(error.status())
    own.still_answers()
    assert codes <= {"StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL"}
    assert loaded <= 2  # a cut inside the trailing metadata may still parse


def test_a_broken_model_at_start_ends_the_server(repository: Path) -> None:
    write_model(repository, "broken", "", {"model.onnx": b"this is no ONNX file"})
    server = Server(repository, ready=False)
    assert server.process.wait(timeout=60) != 0
    assert "broken" in server.log()
    assert "model.onnx" in server.log()
    assert "Traceback" not in server.log()


def test_unload_lets_running_requests_finish(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated")
    server = start(*EXPLICIT, "--load-model", "gated")
    first = occupy(server, gate)
    with many([lambda: server.infer("gated", ONE) for _ in range(2)]) as answers:
        eventually(lambda: server.pending("gated") == 2, "two wait")
        server.client.unload_model("gated")
        assert not server.client.is_model_ready("gated")
        gate.touch()
    assert first.exception() is None
    for answer in answers:
        np.testing.assert_array_equal(answer, ONE)


# --- poll mode -------------------------------------------------------------------------------


class Load:
    """Requests without pause while something else happens."""

    def __init__(self, server: Server, model: str) -> None:
        self.server = server
        self.model = model
        self.answers: list[int] = []
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with triton.InferenceServerClient(self.server.address) as client:
            while not self._stop.is_set():
                try:
                    got = client.infer(self.model, [tensor("X", ONE)]).as_numpy("Y")
                    self.answers.append(int(got[0, 0]) - 1)
                except InferenceServerException as error:
                    self.errors.append(error)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_poll_swaps_without_losing_a_request(start: Start, repository: Path) -> None:
    plus(repository, 1, 1)
    server = start(*POLL)
    with Load(server, "plus") as load:
        eventually(lambda: len(load.answers) > 20, "version 1 serves")
        plus(repository, 2, 2)
        eventually(lambda: load.answers and load.answers[-1] == 2, "version 2 serves")
        plus(repository, 3, 3)
        eventually(lambda: load.answers and load.answers[-1] == 3, "version 3 serves")
    assert load.errors == []
    assert load.answers == sorted(load.answers)  # never back to an older one
    eventually(lambda: index(server)["plus", "3"][0] == "READY", "READY in the index")
    eventually(lambda: index(server)["plus", "1"][0] == "UNAVAILABLE", "version 1 is gone")


def test_the_old_version_serves_until_the_new_one_is_warm(start: Start, repository: Path) -> None:
    plus(repository, 1, 1)
    server = start(*POLL)
    slow = """
import pathlib
import time

while not pathlib.Path(__file__).with_name("go").exists():
    time.sleep(0.001)


def infer(inputs):
    return {"Y": inputs["X"] + 2}
"""
    folder = write_model(repository, "plus", identity_config("INT32"), {"model.py": slow}, 2)
    eventually(lambda: index(server).get(("plus", "2"), ("",))[0] == "LOADING", "2 is loading")
    for _ in range(20):
        np.testing.assert_array_equal(server.infer("plus", ONE), ONE + 1)
    (folder / "go").touch()
    eventually(lambda: server.infer("plus", ONE)[0, 0] == 3, "version 2 serves")


def test_a_broken_new_version_keeps_the_old(start: Start, repository: Path) -> None:
    plus(repository, 1, 1)
    server = start(*POLL)
    with Load(server, "plus") as load:
        eventually(lambda: len(load.answers) > 5, "version 1 serves")
        broken = "raise RuntimeError('boom')\n"
        write_model(repository, "plus", identity_config("INT32"), {"model.py": broken}, 2)
        eventually(
            lambda: "boom" in index(server).get(("plus", "2"), ("", ""))[1], "2 failed to load"
        )
        seen = len(load.answers)
        eventually(lambda: len(load.answers) > seen + 20, "version 1 still serves")
        # Mended as version 3.
        plus(repository, 3, 3)
        eventually(lambda: load.answers[-1] == 3, "version 3 serves")
    assert load.errors == []
    assert set(load.answers) == {1, 3}


def test_poll_finds_new_models_and_misses_removed_ones(start: Start, repository: Path) -> None:
    plus(repository, 1, 1)
    server = start(*POLL)
    write_identity(repository, "late", "INT32")
    eventually(lambda: server.client.is_model_ready("late"), "the new model is ready")
    shutil.rmtree(repository / "late")
    eventually(lambda: not server.client.is_model_ready("late"), "the removed model is gone")
    np.testing.assert_array_equal(server.infer("plus", ONE), ONE + 1)


# --- texts of the repository RPCs ------------------------------------------------------------

LoadRequest = service_pb2.RepositoryModelLoadRequest
Parameter = service_pb2.ModelRepositoryParameter


def test_control_is_not_allowed_in_mode_none(server: Server) -> None:
    told = (
        "StatusCode.UNAVAILABLE",
        "explicit model load / unload is not allowed if polling is enabled",
    )
    assert failure(lambda: server.client.load_model("sum")) == told
    assert failure(lambda: server.client.unload_model("sum")) == told


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (
            LoadRequest(model_name="nobody"),
            "INTERNAL",
            "failed to load 'nobody', failed to poll from model repository",
        ),
        (
            LoadRequest(model_name="../x"),
            "INVALID_ARGUMENT",
            "invalid model name '../x', model name must not contain path traversal characters",
        ),
        (
            LoadRequest(model_name=""),
            "INVALID_ARGUMENT",
            "Model name cannot be empty. Please enter a valid name to deploy.",
        ),
        (
            LoadRequest(model_name="plus", parameters={"what": Parameter(string_param="x")}),
            "INVALID_ARGUMENT",
            "unrecognized load parameter 'what'.",
        ),
        (
            LoadRequest(model_name="plus", parameters={"config": Parameter(int64_param=1)}),
            "INVALID_ARGUMENT",
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            LoadRequest(model_name="plus", parameters={"config": Parameter(string_param="{")}),
            "INTERNAL",
            "failed to load 'plus', failed to poll from model repository",
        ),
        (
            LoadRequest(
                model_name="plus", parameters={"file:1/model.py": Parameter(bytes_param=b"x = 1")}
            ),
            "INTERNAL",
            "failed to load 'plus', failed to poll from model repository",
        ),
        (
            LoadRequest(
                model_name="plus", parameters={"file:1/model.py": Parameter(string_param="x = 1")}
            ),
            "INVALID_ARGUMENT",
            "invalid value type for load parameter 'file:1/model.py', expected bytes_param.",
        ),
        (
            LoadRequest(repository_name="other", model_name="plus"),
            "UNIMPLEMENTED",
            "'repository_name' specification is not supported",
        ),
    ],
)
def test_load_errors(explicit: Server, request_: Any, code: str, text: str) -> None:
    import grpc

    with pytest.raises(grpc.RpcError) as error:
        explicit.stub.RepositoryModelLoad(request_)
    assert error.value.code().name == code
    # The cause may follow what Triton says.
    assert error.value.details().startswith(text)
    np.testing.assert_array_equal(explicit.infer("plus", ONE), ONE + 1)


def test_files_sent_with_a_load_stay_inside(explicit: Server) -> None:
    import grpc

    config = '{"backend": "callback", "max_batch_size": 8}'
    for path in ("file:1/../../../escaped.py", "file:/escaped.py", "file:../escaped.py", "file:"):
        parameters = {
            "config": Parameter(string_param=config),
            path: Parameter(bytes_param=b"x = 1"),
        }
        with pytest.raises(grpc.RpcError):
            explicit.stub.RepositoryModelLoad(LoadRequest(model_name="plus", parameters=parameters))
    assert list(explicit.repository.parent.rglob("escaped.py")) == []
    np.testing.assert_array_equal(explicit.infer("plus", ONE), ONE + 1)


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("explicit") / "models"
    folder.mkdir()
    plus(folder, 1, 1)
    with Server(folder, *EXPLICIT, "--load-model", "plus") as running:
        yield running


def test_other_repository_names(server: Server) -> None:
    import grpc

    with pytest.raises(grpc.RpcError) as error:
        server.stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(repository_name="other"))
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert error.value.details() == "'repository_name' specification is not supported"
