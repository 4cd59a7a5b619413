"""Engines from ONNX files: what is asked of TensorRT, and what TensorRT-RTX makes of it (no GPU
needed, but the package)."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from onnx import TensorProto, helper

from headrace.build_cli import build as build_command
from headrace.cli import main
from headrace.control import tensorrt_models
from headrace.control.engine_builds import Device
from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from headrace.optimize import engine_cache, engines
from headrace.optimize.build_process import spec_from_json, spec_to_json
from headrace.optimize.engine_cache import EngineCache, engine_key
from headrace.optimize.engines import (
    PACKAGES,
    Builder,
    Built,
    EngineSpec,
    Range,
    build,
    find_builder,
    profiles_of,
)
from headrace.optimize.quantize import Options, quantize
from headrace.optimize.samples import Chunk, divide

RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs pip install tensorrt-rtx (1 GB)"
)


class Tensor:
    def __init__(self, name: str, *dims: int) -> None:
        self.name, self.dims = name, dims


def test_a_profile_a_batch_size() -> None:
    inputs = [Tensor("ids", -1, -1), Tensor("image", -1, 3, 8, 8)]
    profiles = profiles_of(inputs, EngineSpec((1, 4, 32), (2, 16, 64)))
    assert [p["ids"] for p in profiles] == [
        Range((1, 2), (1, 16), (1, 64)),
        Range((2, 2), (4, 16), (4, 64)),
        Range((5, 2), (32, 16), (32, 64)),
    ]
    assert profiles[2]["image"] == Range((5, 3, 8, 8), (32, 3, 8, 8), (32, 3, 8, 8))


def test_without_a_batch_every_free_dimension_is_free() -> None:
    (profile,) = profiles_of([Tensor("x", -1, 4, -1)], EngineSpec((), (1, 8, 9)))
    assert profile["x"] == Range((1, 4, 1), (8, 4, 8), (9, 4, 9))
    assert profiles_of([Tensor("x", 2, 4)], EngineSpec()) == []


def test_what_the_configuration_knows_is_used() -> None:
    spec = EngineSpec((2,), dims={"x": (-1, 224)})
    assert profiles_of([Tensor("x", -1, -1)], spec)[0]["x"].most == (2, 224)
    with pytest.raises(InvalidArgumentError, match=r"which \[-1, 224\] does not fit"):
        profiles_of([Tensor("x", -1, 3)], spec)
    with pytest.raises(InvalidArgumentError, match="no input 'x'; it has y"):
        profiles_of([Tensor("y", -1, 3)], spec)
    with pytest.raises(InvalidArgumentError, match="no batch dimension that is free"):
        profiles_of([Tensor("y", 3)], EngineSpec((1,)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_sizes": (4, 1)},
        {"batch_sizes": (0,)},
        {"batch_sizes": tuple(range(1, 20))},
        {"free": (0, 1, 2)},
        {"free": (1, 5, 2)},
    ],
)
def test_specs_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        EngineSpec(**wrong)


def test_a_spec_survives_the_way_to_the_process() -> None:
    spec = EngineSpec((1, 8), (1, 2, 3), {"x": (-1, 4)}, ("SM86",))
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"pip install headrace\[tensorrt\]$"):
        find_builder("tensorrt")
    with pytest.raises(UnavailableError, match=r"headrace\[tensorrt-rtx\] or headrace\[tensorrt\]"):
        find_builder()
    with pytest.raises(InvalidArgumentError, match="no TensorRT is called 'cuda'"):
        find_builder("cuda")


def test_the_extras_exist() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    for package in PACKAGES.values():
        assert f'\n{package} = ["{package}>=' in text


def test_engines_are_kept_and_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.find("k") is None
    path = cache.keep("k", b"engine", {"model": "m"})
    assert cache.find("k") == path
    assert path.read_bytes() == b"engine"
    about = path.with_name("k.json")
    assert json.loads(about.read_text())["model"] == "m"
    path.write_bytes(b"enginE")
    assert cache.find("k") is None
    for damage in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        cache.keep("k", b"engine", {})
        about.write_bytes(damage)
        assert cache.find("k") is None
    cache.keep("k", b"engine", {})
    path.unlink()
    assert cache.find("k") is None
    cache.keep("k", b"engine", {})
    cache.drop("k")
    cache.drop("k")
    assert list(cache.folder.iterdir()) == []


def test_two_who_build_the_same_leave_one_whole_engine(tmp_path: Path) -> None:
    """At every moment the engine that is found is the one or the other."""
    one, other = EngineCache(tmp_path), EngineCache(tmp_path)
    first = one.keep("k", b"one", {"of": "one"})
    between: list[bytes] = []
    placed = engine_cache.place_file

    def look(path: Path, content: bytes) -> None:
        found = EngineCache(tmp_path).find("k")
        between.append(found.read_bytes() if found is not None else b"")
        placed(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_cache, "place_file", look)
        second = other.keep("k", b"another", {"of": "other"})
    assert between == [b"one", b"one"]
    assert first != second
    assert one.find("k") == second
    assert {p.name for p in tmp_path.iterdir()} == {"k.json", second.name}


def test_the_key_of_another_engine_is_left_alone(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    path = cache.keep(engine_key("a", EngineSpec(), "tensorrt", "11", "g"), b"engine", {})
    cache.keep(engine_key("b", EngineSpec(), "tensorrt", "11", "g"), b"engine", {})
    cache.drop(engine_key("b", EngineSpec(), "tensorrt", "11", "g"))
    assert path.exists()


def test_a_key_is_of_all_that_makes_an_engine() -> None:
    base = ("digest", EngineSpec((1,)), "tensorrt", "11.1.0", "NVIDIA H200 9.0")
    others: list[tuple[Any, ...]] = [
        ("other", *base[1:]),
        (base[0], EngineSpec((2,)), *base[2:]),
        (*base[:2], "tensorrt_rtx", *base[3:]),
        (*base[:3], "11.1.1", base[4]),
        (*base[:4], "NVIDIA A100 8.0"),
    ]
    assert len({engine_key(*one) for one in (base, base, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "give a model repository, or --onnx"),
        (("models", "--onnx", "m.onnx"), "not both"),
        (("--onnx", "m.onnx"), "--onnx needs --plan"),
        (("models", "--batch", "1"), "are for --onnx"),
        (("models", "--target", "SM86"), "add --place"),
        (("--onnx", "m.onnx", "--plan", "p", "--batch", "few"), "--batch is 'few'"),
        (("--onnx", "m.onnx", "--plan", "p", "--free", "1,2"), "--free is '1,2'"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["build", *arguments])
    assert ended.value.code == 1
    assert text in capsys.readouterr().err


def test_a_server_without_a_gpu_is_told_how_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Missing:
        def device(self) -> None:
            raise UnavailableError("no CUDA device")

    monkeypatch.setattr(tensorrt_models, "TensorRt", Missing)
    with pytest.raises(SystemExit):
        main(["build", str(tmp_path)])
    assert "no CUDA device. Without it, --target SM86 --place" in capsys.readouterr().err
    assert build_command.__doc__


@pytest.mark.parametrize(
    ("runtime", "version"), [("tensorrt_rtx", "11.1.0.7"), ("tensorrt", "11.2.0.7")]
)
def test_engines_that_the_server_would_not_execute_are_not_built_for_it(
    runtime: str,
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tensorrt_models, "TensorRt", Here)
    monkeypatch.setattr(engines, "find_builder", lambda name: Builder(runtime, version, None))
    with pytest.raises(SystemExit) as ended:
        main(["build", str(tmp_path), "--runtime", runtime])
    assert ended.value.code == 1
    text = f"executes engines of tensorrt 11.1.0, and {runtime} {version} builds for itself"
    assert text in capsys.readouterr().err


def test_the_command_builds_what_the_server_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[EngineSpec] = []

    def build(path: Path, spec: EngineSpec, builder: Builder, **_: Any) -> Built:
        asked.append(spec)
        return Built(b"engine %d" % len(asked), 0.1, 1, 0, 0, b"")

    monkeypatch.setattr(tensorrt_models, "TensorRt", Here)
    monkeypatch.setattr(engines, "find_builder", lambda name: Builder("tensorrt", "11.1.0.7", None))
    monkeypatch.setattr(engines, "build", build)
    version = tmp_path / "models" / "mlp" / "1"
    version.mkdir(parents=True)
    onnx = onnx_models.mlp(version / "model.onnx")
    (version.parent / "config.pbtxt").write_text('backend: "tensorrt"')

    def run(*more: str) -> Any:
        where = ("--cache-dir", str(tmp_path / "cache"), "--json", *more)
        with pytest.raises(SystemExit) as ended:
            main(["build", str(tmp_path / "models"), *where])
        assert ended.value.code in (0, None)
        (row,) = json.loads(capsys.readouterr().out)["engines"]
        return Path(row["plan"]).read_bytes()

    assert run() == run() == b"engine 1"
    assert asked[-1].batch_sizes == (1, 32)
    assert run("--force") == b"engine 2"
    assert run("--default-max-batch-size", "8") == b"engine 3"
    assert asked[-1].batch_sizes == (1, 8)

    def changed(path: Path, *rest: Any, **more: Any) -> Built:
        onnx.write_bytes(onnx.read_bytes() + b"\x00")
        return Built(b"engine of what", 0.1, 1, 0, 0, b"")

    monkeypatch.setattr(engines, "build", changed)
    with pytest.raises(SystemExit) as ended:
        main(["build", str(tmp_path / "models"), "--force", "--cache-dir", str(tmp_path / "cache")])
    assert ended.value.code == 1
    assert "changed while its engine was built" in capsys.readouterr().err


class Here:
    """A GPU."""

    def device(self) -> Device:
        return Device("tensorrt", "11.1.0", "Stand-in GPU", "9.0")


# ---- with TensorRT-RTX


@RTX
@pytest.mark.parametrize("smooth", ["off", "0.5"])
@pytest.mark.parametrize(
    ("make", "shape", "tensors", "layers"),
    [
        (onnx_models.mlp, (16, 64), 3, 3),
        (onnx_models.attention, (16, 8, 32), 8, 12),
        (onnx_models.conv_net, (16, 3, 12, 12), 3, 3),
    ],
)
def test_int8_models_build(
    tmp_path: Path, make: Any, shape: tuple[int, ...], tensors: int, layers: int, smooth: str
) -> None:
    pytest.importorskip("onnxruntime")
    x = onnx_models.rows(*shape)
    chunks = [Chunk({"x": x[i : i + 1]}, None, 1, True) for i in range(len(x))]
    options = Options(max_error=1e6, calibration="minmax", smooth=smooth)
    result = quantize(make(tmp_path / "model.onnx"), divide(chunks), options)
    path = tmp_path / "model.int8.onnx"
    path.write_bytes(result.model)
    steps: list[tuple[str, int, int]] = []
    built = build(
        path,
        EngineSpec((1, 4), targets=("SM80",)),
        find_builder("tensorrt_rtx"),
        progress=lambda *step: steps.append(step),
    )
    assert len(built.plan) > 0
    assert built.profiles == 2
    # Of each tensor one Q and DQ, of each weight a DQ: none was folded away or refused.
    assert (built.quantize_layers, built.dequantize_layers) == (tensors, tensors + layers)
    assert steps[0] == ("parsing", 0, 1)
    what, done, of = steps[-1]
    assert (what, done) == ("Building engine", of)


def foreign(path: Path) -> Path:
    """An operator that nobody but onnxruntime has."""
    graph = helper.make_graph(
        [helper.make_node("Inverse", ["x"], ["y"], domain="com.microsoft", name="turned")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 2))],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@RTX
def test_what_is_refused_is_told(tmp_path: Path) -> None:
    builder = find_builder("tensorrt_rtx")
    path = tmp_path / "model.onnx"
    with pytest.raises(NotFoundError):
        build(path, EngineSpec(), builder)
    for content in (b"", b"no model", b"\x08\x07" * 50):
        path.write_bytes(content)
        with pytest.raises(InvalidArgumentError, match=str(path)):
            build(path, EngineSpec(), builder)
    whole = onnx_models.mlp(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidArgumentError, match=str(path)):
        build(path, EngineSpec(), builder)
    with pytest.raises(UnimplementedError, match=r"node 'turned' \(Inverse\)"):
        build(foreign(path), EngineSpec(), builder)
    onnx_models.mlp(path)
    with pytest.raises(InvalidArgumentError, match="no target 'SM1'; it must be of SM75, "):
        build(path, EngineSpec((1,), targets=("SM1",)), builder)
    with pytest.raises(HeadraceError, match="'x'"):
        build(path, EngineSpec((1,), dims={"x": (-1, 5)}, targets=("SM80",)), builder)


@RTX
def test_the_process_builds(tmp_path: Path) -> None:
    """As a server runs it, with a timing cache that is no good."""
    path = onnx_models.mlp(tmp_path / "model.onnx")
    timing = tmp_path / "timing.cache"
    timing.write_bytes(b"damaged")
    request = {
        "onnx": str(path),
        "plan": str(tmp_path / "model.plan"),
        "runtime": "tensorrt_rtx",
        "spec": spec_to_json(EngineSpec((1, 8), targets=("SM80",))),
        "timing": str(timing),
        "threads": 1,
        "nice": 10,
    }

    def run() -> list[Any]:
        with subprocess.Popen(
            [sys.executable, "-m", "headrace.optimize.build_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return [json.loads(line) for line in process.stdout]

    events = run()
    assert events[-1]["built"]["bytes"] == (tmp_path / "model.plan").stat().st_size
    assert events[-1]["built"]["profiles"] == 2
    assert {"progress": ["parsing", 0, 1]} in events
    assert timing.read_bytes() != b"damaged"
    foreign(path)
    assert "node 'turned'" in run()[-1]["error"]


def test_the_process_ends_with_who_asked() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import headrace.optimize.build_process as b\n"
         "b.find_builder = lambda runtime: __import__('time').sleep(600)\nb.main()"],
        stdin=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdin is not None
    request = {"onnx": "", "plan": "", "runtime": "", "spec": {}, "timing": "", "threads": 1}
    process.stdin.write(json.dumps({**request, "nice": 0}) + "\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    assert process.returncode != -signal.SIGTERM


def test_a_timing_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    code = """
import headrace.optimize.build_process as b
from headrace.optimize.engines import Builder, Built
b.find_builder = lambda runtime: Builder("tensorrt", "11.1.0", None)
b.build = lambda *a, **k: Built(b"engine", 0.1, 1, 0, 0, b"times")
raise SystemExit(b.main())
"""
    plan = tmp_path / "model.plan"
    request = {
        "onnx": "",
        "plan": str(plan),
        "runtime": "tensorrt",
        "spec": spec_to_json(EngineSpec()),
        "timing": str(tmp_path / "missing" / "timing.cache"),
        "threads": 1,
        "nice": 0,
    }
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        events = [json.loads(line) for line in process.stdout]
    assert events[-1]["built"]["bytes"] == len(plan.read_bytes())


@RTX
def test_the_command_builds_a_file_and_a_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, status: int = 0) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["build", *arguments])
        output = capsys.readouterr()
        assert (ended.value.code or 0) == status, output.err
        return json.loads(output.out)["engines"] if "--json" in arguments else output

    repository = tmp_path / "models"
    version = repository / "mlp" / "1"
    version.mkdir(parents=True)
    onnx = str(onnx_models.mlp(version / "model.onnx"))
    plan = tmp_path / "mlp.plan"
    arguments = ("--onnx", onnx, "--plan", str(plan), "--batch", "1,8", "--target", "SM80")
    (row,) = run(*arguments, "--json")
    assert row["bytes"] == plan.stat().st_size
    assert row["profiles"] == 2
    assert "exists; --force replaces it" in run(*arguments, status=1).err
    assert "MB of" in run(*arguments, "--force").out

    where = ("--target", "SM80", "--place", "--cache-dir", str(tmp_path / "cache"))
    assert 'no model with backend: "tensorrt"' in run(str(repository), *where, status=1).err
    assert 'set backend: "tensorrt"' in run(str(repository), "mlp", *where, status=1).err
    (repository / "mlp" / "config.pbtxt").write_text(
        'backend: "tensorrt" max_batch_size: 16 dynamic_batching { preferred_batch_size: 4 }'
    )
    (row,) = run(str(repository), *where, "--json")
    assert row["profiles"] == 3
    assert row["plan"] == str(version / "model.plan")
    assert (version / "model.plan").stat().st_size == row["bytes"]
    assert "exists; --force" in run(str(repository), *where, status=1).err
    (row,) = run(str(repository), "mlp", *where, "--force", "--json")
    assert "seconds" in row
    (version / "model.plan").unlink()
    (row,) = run(str(repository), "mlp", *where, "--json")
    assert "seconds" not in row  # it was in the cache
