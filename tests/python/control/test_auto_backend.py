"""`backend: "auto"`: what can execute a model is measured, the fastest that agrees is kept."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.cli import main
from headrace.control.auto_backend import Candidate, OpenedAuto, relative_error, worst_error
from headrace.control.decisions import Decision, Decisions, Measured, decision_key
from headrace.control.loaders import LoadedModel, Source
from headrace.control.warmup import telling_samples
from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.repository.artifact import Artifact
from headrace.repository.model_config import parse_config

AUTO = 'backend: "auto" max_batch_size: 8'


def mlp(k: int = 64) -> bytes:
    rng = np.random.default_rng(1)
    w = {f"w{i}": rng.normal(0, k**-0.5, (k, k)).astype(np.float32) for i in range(2)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w1"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", k))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", k))],
        [numpy_helper.from_array(value, name) for name, value in w.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def parameter(key: str, value: str) -> str:
    return f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def decisions_in(folder: Path) -> list[Path]:
    return sorted((folder / "auto").glob("*.json"))


@pytest.fixture
def logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("headrace"), "propagate", True)
    with caplog.at_level(logging.INFO):
        yield caplog


def test_the_choice_is_made_told_and_kept(
    repository, start_server, connect, tmp_path, logged, capsys
) -> None:
    cache = tmp_path / "cache"
    repository.put("m/1/model.onnx", mlp())
    config = AUTO + " dynamic_batching { preferred_batch_size: 4 }"
    repository.put("m/config.pbtxt", config + parameter("INFERENCE_NUM_THREADS", "1"))
    server = start_server(load_model=("m",), cache_dir=str(cache))
    client = connect(server)
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    assert client.infer("m", {"x": x})["y"].shape == (3, 64)

    (file,) = decisions_in(cache)
    decision = json.loads(file.read_text())
    assert decision["rows"] == [1, 4, 8]
    assert [m["name"] for m in decision["measured"]] == ["openvino", "onnxruntime"]
    for measured in decision["measured"]:
        assert measured["left_out"] == ""
        assert len(measured["seconds"]) == 3
        assert measured["error"] < 1e-5

    said = client.model_config("m").parameters
    runs_on = {"openvino": "OpenVINO", "onnxruntime": "onnxruntime"}[decision["chosen"]]
    assert runs_on in said["headrace.backend"].string_value
    assert said["headrace.why"].string_value.startswith("fastest of 2 at batches of 1, 4, 8: ")
    assert f"runs on {decision['chosen']}: fastest of 2" in logged.text
    with pytest.raises(SystemExit):
        main(["models", "--url", server.address])
    table = capsys.readouterr().out
    assert runs_on in table
    assert "fastest of 2 at batches of 1, 4, 8: openvino " in table


def test_what_was_decided_is_not_measured_again(repository, start_server, tmp_path, logged) -> None:
    """The kept decision holds, whatever would be measured."""
    repository.put("m/1/model.onnx", mlp())
    repository.put("m/config.pbtxt", AUTO + parameter("INFERENCE_NUM_THREADS", "1"))
    cache = tmp_path / "cache"

    def served() -> str:
        server = start_server(load_model=("m",), cache_dir=str(cache))
        return server.manager.registry.find("m").version.description

    served()
    (file,) = decisions_in(cache)
    for name, text in (("onnxruntime", "onnxruntime"), ("openvino", "OpenVINO")):
        decision = json.loads(file.read_text())
        file.write_text(json.dumps({**decision, "chosen": name}))
        assert text in served()
        assert json.loads(file.read_text())["chosen"] == name
    # One that is not there any more.
    decision["measured"][1]["name"] = decision["chosen"] = "gone"
    file.write_text(json.dumps(decision))
    served()
    assert "gone was the fastest once and cannot be loaded now" in logged.text
    file.write_text("{")
    served()
    assert f"{file} is damaged" in logged.text
    assert json.loads(file.read_text())["chosen"] in ("openvino", "onnxruntime")


def test_int8_is_tried_where_an_error_is_allowed(repository, start_server, tmp_path) -> None:
    """And left out when it is larger than that."""
    left_out = {}
    for name, allowed in (("wide", "0.5"), ("narrow", "0.00002")):
        repository.put(f"{name}/1/model.onnx", mlp())
        repository.put(
            f"{name}/config.pbtxt",
            AUTO + parameter("INFERENCE_NUM_THREADS", "1") + parameter("auto_tolerance", allowed),
        )
        cache = tmp_path / name
        server = start_server(load_model=(name,), cache_dir=str(cache))
        (file,) = decisions_in(cache)
        decision = json.loads(file.read_text())
        (int8,) = [m for m in decision["measured"] if m["name"] == "openvino int8 dynamic"]
        if "int8" not in server.manager.registry.find(name).version.description:
            assert decision["chosen"] != "openvino int8 dynamic"
        left_out[name] = int8["left_out"], int8["error"]
    if left_out["wide"][1] == 0:
        pytest.skip("no INT8 kernels on this processor")
    assert left_out["wide"][0] == ""
    assert "its answers differ by" in left_out["narrow"][0]


def test_who_cannot_run_it_is_left_out(repository, start_server, connect) -> None:
    """com.microsoft::Inverse has a CPU kernel in onnxruntime and none in OpenVINO."""
    graph = helper.make_graph(
        [helper.make_node("Inverse", ["x"], ["y"], domain="com.microsoft")],
        "inverse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 2))],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    repository.put("inverse/1/model.onnx", model)
    repository.put("inverse/config.pbtxt", 'backend: "auto"')
    client = connect(start_server(load_model=("inverse",)))
    x = np.array([[2, 0], [0, 4]], np.float32)
    assert client.infer("inverse", {"x": x})["y"].tolist() == [[0.5, 0], [0, 0.25]]
    why = client.model_config("inverse").parameters["headrace.why"].string_value
    assert why.startswith("the only one of 2 that can; not openvino: ")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (parameter("auto_tolerance", "much"), '"auto_tolerance"] is "much"; it must be'),
        (parameter("auto_tolerance", "-1"), "it must be a relative error"),
        (parameter("int8", "dynamic"), 'give "auto_tolerance"'),
    ],
)
def test_wrong_settings_are_refused(repository, start_server, connect, more, text) -> None:
    repository.add("m", 1)
    repository.put("m/config.pbtxt", AUTO + more)
    client = connect(start_server())
    with pytest.raises(InvalidArgumentError) as caught:
        client.load("m")
    assert text in caught.value.details


def test_what_leaves_no_choice_is_refused(repository, start_server, connect) -> None:
    repository.put("m/1/model.py", "def infer(inputs): return inputs")
    repository.put("m/config.pbtxt", AUTO)
    repository.put("broken/1/model.onnx", b"\x00garbage\xff" * 50)
    repository.put("broken/config.pbtxt", AUTO)
    client = connect(start_server())
    with pytest.raises(InvalidArgumentError, match='set backend: "callback"'):
        client.load("m")
    with pytest.raises(InvalidArgumentError) as caught:
        client.load("broken")
    assert str(repository.root / "broken") in caught.value.details


def test_configured_samples_are_repeated_to_the_sizes_that_are_measured() -> None:
    config = parse_config(
        """
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: 2 }
        dynamic_batching { preferred_batch_size: 4 }
        model_warmup {
          name: "two" batch_size: 2
          inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 random_data: true } }
        }
        """,
        "here",
    )
    (samples,) = telling_samples(config, None)
    assert [len(s.inputs["x"]) for s in samples] == [2, 1, 4, 8]
    two = samples[0].inputs["x"]
    assert np.array_equal(samples[3].inputs["x"], np.concatenate([two] * 4))


def test_random_samples_have_rows_that_differ_and_no_row_that_is_masked() -> None:
    config = parse_config(
        """
        max_batch_size: 4
        input { name: "ids" data_type: TYPE_INT64 dims: -1 }
        input { name: "x" data_type: TYPE_FP16 dims: [ 3, 5 ] }
        """,
        "here",
    )
    guesses = telling_samples(config, None)
    assert len(guesses) > 1
    for one, four in guesses:
        assert one.inputs["ids"].shape[0] == 1
        assert four.inputs["x"].shape == (4, 3, 5)
        assert four.inputs["x"].dtype == np.float16
        assert four.inputs["ids"].any(axis=1).all()
        assert len({row.tobytes() for row in four.inputs["x"]}) == 4


@pytest.mark.parametrize(
    ("reference", "got", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0),
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([math.nan, 1.0], [math.nan, 1.0], 0),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [math.nan, 1.0], math.inf),
        ([math.inf, 1.0], [math.inf, 1.0], 0),
        ([math.inf, 1.0], [-math.inf, 1.0], math.inf),
        ([0.0], [0.0], 0),
        ([0.0], [1e-9], math.inf),
        ([1.0], [[1.0]], math.inf),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True], [True], 0),
        ([], [], 0),
    ],
)
def test_relative_error(reference: list[float], got: list[float], error: float) -> None:
    assert relative_error(np.array(reference), np.array(got)) == pytest.approx(error)


def bf16(*values: float) -> np.ndarray:
    return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2")


def test_bfloat16_is_compared_as_the_numbers_that_it_is() -> None:
    x = np.ones(2, np.float32)
    close, far = bf16(1, 2), bf16(1.0078125, 2)  # one unit in the last place
    error, allowed = worst_error({"x": x, "y": close}, {"x": x, "y": far}, 1e-4, {"y"})
    assert 0 < error <= allowed == 2**-8
    error, allowed = worst_error({"y": close}, {"y": bf16(1, 3)}, 1e-4, {"y"})
    assert error > allowed
    # Of several outputs the one that is not allowed is told, not the one that differs most.
    off = {"x": x * 1.001, "y": far}
    error, allowed = worst_error({"x": x, "y": close}, off, 1e-4, {"y"})
    assert error == pytest.approx(1e-3, rel=1e-3)
    assert allowed == 1e-4


def test_what_a_candidate_says_of_its_model_stays(tmp_path: Path) -> None:
    class OnGpu:
        runs_user_code = False
        config = model_config.ModelConfig(name="m")
        inputs = outputs = None

        def load(self, config: object, *, instances: int, threads: int) -> LoadedModel:
            return LoadedModel(object(), why="its own", on_cpu=False, on_engine=True)  # type: ignore

    path = tmp_path / "1" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"model")
    source = Source("m", 1, Artifact("openvino", path), tmp_path, path.parent, OnGpu.config)
    decisions = Decisions(str(tmp_path / "cache"))
    decisions.keep(decision_key(path, OnGpu.config, 1), GOOD)
    opened = OpenedAuto(source, [Candidate("a", OnGpu)], decisions, None)
    loaded = opened.load(OnGpu.config, instances=1, threads=1)
    assert loaded.why == GOOD.text()
    assert not loaded.on_cpu
    assert loaded.on_engine


def test_strings_are_compared(tmp_path: Path) -> None:
    a, b = np.array([b"a", b"b"], object), np.array([b"a", b"c"], object)
    assert relative_error(a, a) == 0
    assert relative_error(a, b) == 0.5


def test_a_key_is_of_all_that_times_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"one")
    config = model_config.ModelConfig(name="m", max_batch_size=4)
    kinds = model_config.ModelInstanceGroup
    config.instance_group.add(count=1, kind=kinds.KIND_CPU)
    key = decision_key(path, config, 1)
    gpu = model_config.ModelConfig(name="m", max_batch_size=4)
    gpu.instance_group.add(count=1, kind=kinds.KIND_GPU)
    second = model_config.ModelConfig(name="m", max_batch_size=4)
    second.instance_group.add(count=1, kind=kinds.KIND_GPU, gpus=[1])
    assert len({key, decision_key(path, gpu, 1), decision_key(path, second, 1)}) == 3
    other = model_config.ModelConfig(name="other", max_batch_size=4)
    other.instance_group.add(count=2, kind=kinds.KIND_CPU)
    other.parameters["headrace.why"].string_value = "before"
    assert decision_key(path, other, 1) == key
    other.parameters["int8"].string_value = "off"
    assert decision_key(path, other, 1) != key
    assert decision_key(path, config, 2) != key
    (tmp_path / "model.plan").write_bytes(b"made of it")
    assert decision_key(path, config, 1) == key
    (tmp_path / "weights.bin").write_bytes(b"beside it")
    assert decision_key(path, config, 1) != key
    (tmp_path / "weights.bin").unlink()
    path.write_bytes(b"two")
    assert decision_key(path, config, 1) != key


GOOD = Decision("a", (1,), (Measured("a", (1e-3,)), Measured("b", left_out="slow")))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 2, "chosen": "a", "rows": [1], "measured": []}',
        b'{"format": 1, "chosen": "a", "rows": [1], "measured": []}',
        b'{"format": 1, "chosen": "b", "rows": [1], "measured": '
        b'[{"name": "b", "seconds": [], "error": 0, "left_out": "no"}]}',
        b'{"format": 1, "chosen": "a", "rows": [1], "measured": '
        b'[{"name": "a", "seconds": [], "error": 0, "left_out": ""}]}',
        b'{"format": 1, "chosen": "a", "rows": [1], "measured": '
        b'[{"name": "a", "seconds": [NaN], "error": 0, "left_out": ""}]}',
        b'{"format": 1, "chosen": "a", "rows": [1], "measured": '
        b'[{"name": "a", "seconds": [1], "error": 0, "left_out": 7}]}',
        b'{"format": 1, "chosen": "a", "rows": 1, "measured": 2}',
    ],
)
def test_damaged_decisions_are_none(tmp_path: Path, damage: bytes, logged) -> None:
    decisions = Decisions(str(tmp_path))
    assert decisions.find("k") is None
    decisions.keep("k", GOOD)
    assert decisions.find("k") == GOOD
    (tmp_path / "auto" / "k.json").write_bytes(damage)
    assert decisions.find("k") is None
    assert "k.json is damaged" in logged.text
    assert [p.name for p in (tmp_path / "auto").iterdir()] == ["k.json"]  # nothing half-written


def test_without_a_folder_nothing_is_kept(tmp_path: Path, logged) -> None:
    decisions = Decisions("")
    decisions.keep("k", GOOD)
    assert decisions.find("k") is None
    (tmp_path / "file").write_text("in the way")
    decisions = Decisions(str(tmp_path / "file"))
    decisions.keep("k", GOOD)
    assert decisions.find("k") is None
    assert "the choice of a backend is not kept" in logged.text
