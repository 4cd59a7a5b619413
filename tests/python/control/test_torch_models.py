"""PyTorch models: torch.export programs, TorchScript, exports of transformers. Needs torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.control import torch_openvino
from headrace.errors import HeadraceError, InvalidArgumentError

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # the files live on
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CONFIG = """
max_batch_size: 8
input [ {{ name: "{}" data_type: TYPE_FP32 dims: [3] }} ]
output [ {{ name: "{}" data_type: TYPE_FP32 dims: [3] }} ]
"""


class Twice(torch.nn.Module):
    def forward(self, x):
        return x * 2


class Several(torch.nn.Module):
    """Positional and keyword arguments, a constant, a mapping of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 5)

    def forward(self, a, b, scale: float = 2.0, *, shift):
        return {"y": self.linear(a) + b, "z": (a * scale).sum(-1) + shift}


class Several2(torch.nn.Module):
    def forward(self, a, mask):
        return a.to(torch.bfloat16) * 2, mask.logical_not(), None, a.sum(-1)


def program(model: Any, args: tuple[Any, ...], kwargs: Any = None, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model.eval(), args, kwargs, **more)


def saved(exported: Any, path: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(exported, str(path))
    return path.read_bytes()


@pytest.fixture
def serve(repository, start_server, connect, tmp_path) -> Callable[..., Any]:
    def start(content: bytes, config: str = "", kind: str = "pt2") -> Any:
        repository.put(f"t/1/model.{kind}", content)
        if config:
            repository.put("t/config.pbtxt", config)
        return connect(start_server(load_model=("t",)))

    return start


@pytest.mark.parametrize("kind", ["pt", "pt2"])
@pytest.mark.parametrize(("given", "answered"), [("x", "y"), ("INPUT__0", "OUTPUT__0")])
def test_names_of_the_configuration(serve, tmp_path, kind: str, given: str, answered: str) -> None:
    path = tmp_path / f"model.{kind}"
    if kind == "pt":
        torch.jit.script(Twice()).save(str(path))
        content = path.read_bytes()
    else:
        batch = torch.export.Dim("batch", max=8)
        exported = program(Twice(), (torch.ones(2, 3),), dynamic_shapes={"x": {0: batch}})
        content = saved(exported, path)
    client = serve(content, CONFIG.format(given, answered), kind)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert client.infer("t", {given: x})[answered].tolist() == (x * 2).tolist()


def test_a_program_tells_its_signature(serve, tmp_path) -> None:
    batch = torch.export.Dim("batch", max=8)
    model = Several()
    exported = program(
        model,
        (torch.ones(2, 3), torch.ones(2, 5), 3.0),
        {"shift": torch.ones(2)},
        dynamic_shapes={"a": {0: batch}, "b": {0: batch}, "scale": None, "shift": {0: batch}},
    )
    client = serve(saved(exported, tmp_path / "m.pt2"))
    config = client.model_config("t")
    assert config.max_batch_size == 8  # what the program was exported for
    assert [(t.name, list(t.dims)) for t in config.input] == [
        ("a", [3]),
        ("b", [5]),
        ("shift", [1]),
    ]
    assert [(t.name, list(t.dims)) for t in config.output] == [("y", [5]), ("z", [1])]
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(4, n)).astype(np.float32) for n in (3, 5))
    shift = np.arange(4, dtype=np.float32)[:, None]
    got = client.infer("t", {"shift": shift, "b": b, "a": a})
    with torch.inference_mode():
        expected = model.linear(torch.from_numpy(a)).numpy() + b
    np.testing.assert_allclose(got["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["z"][:, 0], (a * 3).sum(-1) + shift[:, 0], rtol=1e-5, atol=1e-6)


def test_answers_without_names(serve, tmp_path) -> None:
    """Of several datatypes; None is no answer."""
    exported = program(Several2(), (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)))
    client = serve(saved(exported, tmp_path / "m.pt2"))
    config = client.model_config("t")
    assert config.max_batch_size == 0  # the program has fixed sizes
    names = [(t.name, t.data_type) for t in config.output]
    assert [name for name, _ in names] == ["output__0", "output__1", "output__2"]
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    mask = np.array([[True, False, True]] * 2)
    got = client.infer("t", {"a": x, "mask": mask})
    assert (got["output__0"].view(np.uint16).astype(np.uint32) << 16).view(np.float32).tolist() == (
        x * 2
    ).tolist()
    assert got["output__1"].tolist() == (~mask).tolist()
    assert got["output__2"].tolist() == [6, 15]


def test_wrong_configurations_are_refused(serve, repository, tmp_path) -> None:
    batch = torch.export.Dim("batch", max=8)
    exported = program(Twice(), (torch.ones(2, 3),), dynamic_shapes={"x": {0: batch}})
    content = saved(exported, tmp_path / "m.pt2")
    wrong = CONFIG.format("x", "output__0").replace("TYPE_FP32", "TYPE_INT32")
    with pytest.raises(HeadraceError, match="the configuration has data type TYPE_INT32"):
        serve(content, wrong)
    with pytest.raises(HeadraceError, match="Guard failed"):
        serve(content, CONFIG.format("x", "output__0").replace("size: 8", "size: 9"))


def test_without_a_gpu_kind_gpu_is_refused(serve, tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    content = saved(program(Twice(), (torch.ones(2, 3),)), tmp_path / "m.pt2")
    with pytest.raises(HeadraceError, match="finds no GPU: set kind: KIND_CPU"):
        serve(content, "instance_group { kind: KIND_GPU }")


def test_damaged_files(repository, start_server, connect, tmp_path) -> None:
    batch = torch.export.Dim("batch", max=8)
    exported = program(Twice(), (torch.ones(2, 3),), dynamic_shapes={"x": {0: batch}})
    whole = saved(exported, tmp_path / "m.pt2")
    client = connect(start_server())
    for name, content in (("empty", b""), ("half", whole[: len(whole) // 2]), ("text", b"no zip")):
        path = repository.put(f"{name}/1/model.pt2", content)
        with pytest.raises(InvalidArgumentError) as caught:
            client.load(name)
        assert f"PyTorch cannot load {path}" in caught.value.details


def test_what_transformers_exports(serve, tmp_path) -> None:
    """Keyword arguments, and a ModelOutput, of which PyTorch knows only with transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config).eval()
    ids = torch.ones(2, 8, dtype=torch.long)
    auto = torch.export.Dim.AUTO
    exported = program(
        model,
        (),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        dynamic_shapes={"input_ids": {0: auto, 1: auto}, "attention_mask": {0: auto, 1: auto}},
    )
    client = serve(saved(exported, tmp_path / "m.pt2"))
    served = client.model_config("t")
    assert served.max_batch_size == 32
    assert [t.name for t in served.input] == ["input_ids", "attention_mask"]
    assert [t.name for t in served.output] == ["last_hidden_state", "pooler_output"]
    rng = np.random.default_rng(0)
    x = rng.integers(0, 50, (3, 11))
    got = client.infer("t", {"input_ids": x, "attention_mask": np.ones_like(x)})
    with torch.inference_mode():
        expected = model(torch.from_numpy(x)).last_hidden_state.numpy()
    np.testing.assert_allclose(got["last_hidden_state"], expected, rtol=1e-4, atol=1e-5)
    assert got["pooler_output"].shape == (3, 16)


def test_auto_measures_what_openvino_makes_of_a_program(
    serve, repository, start_server, tmp_path
) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)]
    batch = torch.export.Dim("batch", max=8)
    model = torch.nn.Sequential(*layers)
    exported = program(model, (torch.ones(2, 16),), dynamic_shapes=({0: batch},))
    repository.put("t/1/model.pt2", saved(exported, tmp_path / "m.pt2"))
    repository.put("t/config.pbtxt", 'backend: "auto"')
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    cache = tmp_path / "cache"
    server = start_server(load_model=("t",), cache_dir=str(cache))
    loaded = server.manager.registry.find("t")
    for file in (cache / "auto").glob("*.json"):
        decision = json.loads(file.read_text())
        first, second = decision["measured"]
        assert (first["name"], second["name"]) == ("pytorch", "openvino converted")
        assert second["left_out"] == ""
        assert 0 < second["error"] < 1e-4
        assert decision["rows"] == [1, 8]
    (folder,) = (cache / "converted").iterdir()
    assert folder.name.endswith(f"-torch-{torch.__version__}")
    assert {file.name for file in folder.iterdir()} == {"model.xml", "model.bin"}
    # Another process made it meanwhile; what it reads must not be a mixture of two files.
    path = repository.root / "t/1/model.pt2"
    read = torch_openvino._read

    def beaten(*arguments: Any) -> Any:
        model = read(*arguments)
        aside.rename(folder)
        return model

    aside = folder.with_name("aside")
    folder.rename(aside)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_openvino, "_read", beaten)
        assert torch_openvino.convert(torch, path, folder.parent) == folder / "model.xml"
    assert list(folder.parent.iterdir()) == [folder]

    def changed(*arguments: Any) -> Any:
        model = read(*arguments)
        path.write_bytes(b"another")
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_openvino, "_read", changed)
        folder.rename(aside)
        with pytest.raises(InvalidArgumentError, match="changed while it was converted"):
            torch_openvino.convert(torch, path, folder.parent)
    assert list(folder.parent.iterdir()) == [aside]
    with torch.inference_mode():
        expected = model(torch.from_numpy(x)).numpy()
    (given,) = (t.name for t in loaded.config.input)
    got = loaded.version.infer({given: x})["output__0"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
