"""headrace quantize, as it is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx_models

from headrace.cli import main

Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object, status: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["quantize", *map(str, arguments)])
        output = capsys.readouterr()
        assert (ended.value.code or 0) == status, output.err
        return output.out, output.err

    return run


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """models/net/1/model.onnx, and samples.npz with labels that the model gives itself."""
    folder = tmp_path / "models" / "net" / "1"
    folder.mkdir(parents=True)
    x = onnx_models.rows(80, 64)
    np.savez(tmp_path / "samples.npz", x=x, labels=np.zeros(80, np.int64))
    return onnx_models.mlp(folder / "model.onnx")


def test_a_version_in_a_repository_and_its_report(run: Run, mlp: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "net" / "2"
    samples = tmp_path / "samples.npz"
    out, err = run(mlp, "--samples", samples, "--to", target, "--max-error", "0.2")
    assert err == ""  # no progress where nobody looks
    assert f"{target / 'model.onnx'}: 3 layers in INT8" in out
    assert "on 20 samples that were held out of 80" in out
    for heading in ("relative L2", "top-1 same", "accuracy float", "y, OpenVINO here", "faster"):
        assert heading in out
    assert "1 row " in out
    assert "20 rows" in out
    _, err = run(mlp, "--samples", samples, "--to", target, status=1)
    assert err.startswith("ALREADY_EXISTS: ")


def test_the_report_as_json(run: Run, mlp: Path, tmp_path: Path) -> None:
    out, _ = run(
        mlp, "--samples", tmp_path / "samples.npz", "--json", "--no-speed", "--max-error", "0.2",
        "--keep-float", "first", "--weight-bits", "7", "--calibration", "mse", "--smooth", "off",
    )  # fmt: skip
    report: dict[str, Any] = json.loads(out)
    written = mlp.with_suffix(".int8.onnx")
    assert report["output"] == str(written)
    assert report["bytes"] == {
        "before": mlp.stat().st_size,
        "after": written.stat().st_size,
    }
    assert report["layers"]["int8"] == 2
    assert report["layers"]["float"] == [{"name": "first", "op": "Gemm", "reason": "asked for"}]
    assert 0 < report["error"] < 0.2
    assert report["outputs"][0]["output"] == "y"
    assert report["this_machine"][0]["relative_l2"] == pytest.approx(report["error"], rel=0.05)
    assert (report["calibration"], report["smoothed"], report["speed"]) == ("mse", 0, [])
    assert report["samples"] == {"observed": 45, "held_out": 20}


def test_without_samples_the_model_is_marked(run: Run, mlp: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "net" / "2"
    out, _ = run(mlp, "--to", target)
    assert "3 linear layers, marked to run in INT8 with dynamic scales" in out
    assert "version 1 runs so, too" in out
    config = (target.parent / "config.pbtxt").read_text()
    assert config == 'parameters { key: "int8" value { string_value: "dynamic" } }\n'
    out, _ = run(mlp, "-o", tmp_path / "other.onnx")
    assert "For config.pbtxt of the model that serves it" in out
    assert (tmp_path / "other.onnx").exists()
    out, _ = run(mlp, "-o", tmp_path / "other.onnx", "--force", "--json")
    assert json.loads(out)["int8"] == "dynamic"


def test_mistakes_are_told_before_the_work(run: Run, mlp: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    for arguments, text in (
        (("--to", "a/1", "-o", "b"), "INVALID_ARGUMENT: --output and --to: give one of them"),
        (("--held-out", samples), "INVALID_ARGUMENT: --held-out is given without --samples"),
        (("--samples", samples, "-o", tmp_path), "is a folder"),
        (("--samples", samples, "--calibration", "x"), "INVALID_ARGUMENT: calibration is 'x'"),
        (("--samples", tmp_path / "none"), "NOT_FOUND: "),
        (("--samples", samples, "--max-error", "1e-9"), "FAILED_PRECONDITION: no layer of"),
    ):
        _, err = run(mlp, *arguments, status=1)
        assert text in err
    assert not mlp.with_suffix(".int8.onnx").exists()
    conv = onnx_models.conv_net(tmp_path / "conv.onnx")
    run(conv, "-o", tmp_path / "x.onnx")  # its dense layer
    _, err = run(tmp_path / "none.onnx", status=1)
    assert err.startswith("NOT_FOUND: ")
