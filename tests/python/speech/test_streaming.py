"""What is read of exported streaming models, and what becomes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from streaming_models import ZIPFORMER, add

from headrace.errors import FailedPreconditionError, InvalidArgumentError
from headrace.speech.entry import write_entry
from headrace.speech.sources import find_folder
from headrace.speech.streaming import read_scores, read_symbols

onnx = pytest.importorskip("onnx")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    shutil.copytree(ZIPFORMER, folder)
    return folder


def lines_of(folder: Path) -> dict[int, list[str]]:
    lines = (folder / "tokens.txt").read_text(encoding="ascii").splitlines()
    return {int(line.split()[1]): line.split() for line in lines}


def change_graph(path: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(str(path))
    change(model.graph)
    onnx.save(model, str(path))


def test_symbols_of_the_lexicon_are_no_tokens(source: Path, tmp_path: Path) -> None:
    plain = lines_of(add(source, tmp_path, "plain"))
    size = max(read_symbols(source / "tokens.txt")) + 1
    with (source / "tokens.txt").open("a", encoding="utf-8") as file:
        file.write(f"#0 {size}\n#1 {size + 1}\n")
    assert lines_of(add(source, tmp_path, "lexicon")) == plain
    with (source / "tokens.txt").open("a", encoding="utf-8") as file:
        file.write(f"other {size + 2}\n")
    with pytest.raises(InvalidArgumentError, match="different models"):
        write_entry(tmp_path, "other", find_folder(source), None)


def test_bytes_are_the_last_resort(source: Path, tmp_path: Path) -> None:
    text = (source / "tokens.txt").read_text(encoding="utf-8")
    symbols = read_symbols(source / "tokens.txt")
    number = max(symbols)
    (source / "tokens.txt").write_text(
        text.replace(f"{symbols[number]} {number}\n", f"<0x41> {number}\n"), encoding="utf-8"
    )
    with (source / "bpe.vocab").open("a", encoding="utf-8") as file:
        file.write("<0x41>\t0\n")
    assert lines_of(add(source, tmp_path, "bytes"))[number] == ["QQ==", str(number), "-10000"]


@pytest.mark.parametrize("inner", [False, True])
def test_a_scale_of_all_streams_means_one_at_a_time(
    source: Path, tmp_path: Path, inner: bool
) -> None:
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "q_scale", "q_zero"])
    if inner:
        graph = onnx.helper.make_graph([node], "inner", [], [])
        node = onnx.helper.make_node("If", ["c"], ["i"], then_branch=graph, else_branch=graph)
    change_graph(source / "encoder.onnx", lambda graph: graph.node.append(node))
    folder = add(source, tmp_path, "int8")
    assert yaml.safe_load((folder / "speech.yaml").read_text())["max_batch"] == 1
    folder = add(ZIPFORMER, tmp_path, "float")
    assert "max_batch" not in yaml.safe_load((folder / "speech.yaml").read_text())


def test_onnxruntime_is_not_needed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    write_entry(tmp_path, "streams", find_folder(source), None)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install onnx$"):
        write_entry(tmp_path, "none", find_folder(source), None)


def test_pieces_may_hold_what_ends_lines_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_bytes("a 0\r\n\n\u2028 1\n\u00a0b 2\n 3\n".encode())
    assert read_symbols(path) == {0: "a", 1: "\u2028", 2: "\u00a0b", 3: " "}
    path.write_bytes("a\t-1.5\r\n\n\u2028\t-2\nx y\t-3\n".encode())
    assert read_scores(path) == {"a": -1.5, "\u2028": -2, "x y": -3}


@pytest.mark.parametrize(
    ("read", "content", "why"),
    [
        (read_symbols, b"\xff 0\n", "is no UTF-8"),
        (read_symbols, b"a 0\nb\n", "line 2: expected a piece and its id"),
        (read_symbols, "a \u00b2\n".encode(), "line 1: expected a piece and its id"),
        (read_symbols, b"\n", "has no tokens"),
        (read_scores, b"\xff\t0\n", "is no UTF-8"),
        (read_scores, b"a 1\n", "line 1: expected a piece, a tab"),
        (read_scores, b"\na\tnan\n", "line 2: expected"),
        (read_scores, b"a\t-inf\n", "line 1: expected"),
    ],
)
def test_files_that_are_not_as_they_must_be(
    tmp_path: Path, read: Callable[[Path], object], content: bytes, why: str
) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=f"file.txt.*{why}"):
        read(path)
