from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import InvalidArgumentError
from headrace.protocol.model_config import ModelConfig
from headrace.repository import Artifact, engines, find_artifact, parse_config, scan_model


def model_with(tmp_path: Path, *files: str) -> Path:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def found(tmp_path: Path, config: str = "") -> Artifact:
    return find_artifact(scan_model(tmp_path / "m"), 1, parse_config(config, "t"))


def refusal(tmp_path: Path, config: str = "") -> str:
    with pytest.raises(InvalidArgumentError) as raised:
        found(tmp_path, config)
    return raised.value.details


@pytest.mark.parametrize(
    ("files", "config", "backend", "path"),
    [
        (["model.onnx"], "", "onnxruntime", "model.onnx"),
        (["model.onnx", "model.onnx.data", "notes.txt"], "", "onnxruntime", "model.onnx"),
        (["model.onnx"], 'backend: "onnxruntime"', "onnxruntime", "model.onnx"),
        (["model.onnx"], 'platform: "onnxruntime_onnx"', "onnxruntime", "model.onnx"),
        (["model.onnx"], 'backend: "openvino"', "openvino", "model.onnx"),
        (["model.xml", "model.bin"], "", "openvino", "model.xml"),
        (["model.xml", "model.bin"], 'platform: "openvino"', "openvino", "model.xml"),
        (["model.xml", "model.bin", "model.onnx"], 'backend: "openvino"', "openvino", "model.xml"),
        (
            ["model.xml", "model.bin", "model.onnx"],
            'backend: "onnxruntime"',
            "onnxruntime",
            "model.onnx",
        ),
        (["model.py", "weights.onnx"], "", "callback", "model.py"),
        (["model.py", "model.onnx"], 'backend: "callback"', "callback", "model.py"),
        (["model.pt"], "", "pytorch", "model.pt"),
        (["model.pt2", "model.pt"], "", "pytorch", "model.pt2"),
        (["model.pt"], 'platform: "pytorch_libtorch"', "pytorch", "model.pt"),
        (["a.onnx", "model.onnx"], 'default_model_filename: "a.onnx"', "onnxruntime", "a.onnx"),
        (["sub/b.pt2"], 'default_model_filename: "sub/b.pt2"', "pytorch", "sub/b.pt2"),
        (["blob"], 'default_model_filename: "blob" backend: "pytorch"', "pytorch", "blob"),
        (["model.onnx/model.onnx", "model.onnx/w.bin"], "", "onnxruntime", "model.onnx/model.onnx"),
    ],
)
def test_what_is_found(
    tmp_path: Path, files: list[str], config: str, backend: str, path: str
) -> None:
    folder = model_with(tmp_path, *files)
    artifact = found(tmp_path, config)
    assert artifact == Artifact(artifact.backend, folder / path)
    assert artifact.backend == backend


def test_nothing_there(tmp_path: Path) -> None:
    folder = model_with(tmp_path)
    text = refusal(tmp_path)
    assert str(folder) in text
    assert (
        "looked for model.onnx, model.xml, model.pt2, model.pt, model.plan, model.py, speech.yaml; "
        "it is empty" in text
    )


def test_a_model_by_another_name_is_pointed_out(tmp_path: Path) -> None:
    model_with(tmp_path, "magika.onnx", "readme.md")
    text = refusal(tmp_path)
    assert "it holds magika.onnx, readme.md" in text
    assert 'rename magika.onnx to model.onnx, or set default_model_filename: "magika.onnx"' in text


def test_a_long_listing_is_cut(tmp_path: Path) -> None:
    model_with(tmp_path, *(f"{i:03}.txt" for i in range(500)))
    assert "009.txt and 490 more" in refusal(tmp_path)


def test_two_models_in_one_version(tmp_path: Path) -> None:
    model_with(tmp_path, "model.onnx", "model.py")
    text = refusal(tmp_path)
    assert "more than one model: model.onnx, model.py" in text
    assert 'backend: "onnxruntime"' in text


def test_the_backends_own_file_is_missing(tmp_path: Path) -> None:
    model_with(tmp_path, "model.onnx")
    text = refusal(tmp_path, 'backend: "pytorch"')
    assert "looked for model.pt2, model.pt; it holds model.onnx" in text


def test_ir_without_weights(tmp_path: Path) -> None:
    model_with(tmp_path, "model.xml")
    assert "model.bin is missing" in refusal(tmp_path)


def test_a_directory_without_its_graph(tmp_path: Path) -> None:
    model_with(tmp_path, "model.onnx/weights")
    assert "a directory without a model.onnx in it; it holds weights" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../../m/1/model.onnx", "/etc/passwd", "..", "a/../model.onnx"])
def test_default_model_filename_stays_inside(tmp_path: Path, name: str) -> None:
    model_with(tmp_path, "model.onnx")
    text = refusal(tmp_path, f'default_model_filename: "{name}"')
    assert text.startswith("default_model_filename: ")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ('default_model_filename: "x.onnx"', 'has no "x.onnx", the default_model_filename'),
        ('default_model_filename: "model"', "set `backend` to one of"),
        ('backend: "dali"', 'backend "dali" is not supported yet; it must be one of'),
        ('backend: "auto" platform: "ensemble"', 'platform "ensemble" is not supported yet'),
        ('platform: "ensemble"', 'platform "ensemble" is not supported yet'),
        ('backend: "python"', 'a model.py with a class Model is served by backend: "callback"'),
        ('backend: "onxruntime"', 'backend "onxruntime" is unknown; it must be one of onnxruntime'),
        ('backend: "openvino" platform: "onnxruntime_onnx"', "contradict"),
    ],
)
def test_configurations_that_lead_nowhere(tmp_path: Path, config: str, text: str) -> None:
    model_with(tmp_path, "model.onnx")
    assert text in refusal(tmp_path, config)


def test_a_version_that_went_away(tmp_path: Path) -> None:
    folder = model_with(tmp_path)
    entry = scan_model(tmp_path / "m")
    folder.rmdir()
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*1: No such file"):
        find_artifact(entry, 1, ModelConfig())


def test_which_engine_executes() -> None:
    onnx = Artifact("onnxruntime", Path("model.onnx"))
    nothing = ModelConfig()
    assert engines(onnx, nothing) == ("openvino", "onnxruntime")
    assert engines(onnx, nothing, "openvino") == ("openvino",)
    assert engines(onnx, nothing, "onnxruntime") == ("onnxruntime",)
    own = parse_config(
        'parameters { key: "onnx_engine" value { string_value: "onnxruntime" } }', "t"
    )
    assert engines(onnx, own, "openvino") == ("onnxruntime",)
    assert engines(Artifact("openvino", Path("model.onnx")), own) == ("openvino",)
    assert engines(Artifact("callback", Path("model.py")), nothing) == ("callback",)
    own.parameters["onnx_engine"].string_value = "tvm"
    with pytest.raises(InvalidArgumentError, match=r'parameters\["onnx_engine"\] is "tvm"'):
        engines(onnx, own)
