"""The committed .pyi files say what proto/ says."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
STUBS = ROOT / "python" / "headrace" / "protocol"


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location(
        "generate_stubs", ROOT / "proto" / "generate_stubs.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declarations(text: str) -> dict[str, str]:
    """{"ModelConfig.name": "str", ...}: what does not depend on the protoc that wrote it."""
    found: dict[str, str] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = "class"
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign):
                found[prefix + ast.unparse(node.target)] = ast.unparse(node.annotation)
            elif isinstance(node, ast.FunctionDef):
                arguments = node.args.args + node.args.kwonlyargs
                found[prefix + node.name] = ", ".join(a.arg for a in arguments)

    visit(ast.parse(text).body, "")
    return found


@pytest.fixture(scope="module")
def fresh() -> dict[str, str]:
    pytest.importorskip("grpc_tools", reason="grpcio-tools makes the stubs")
    generated: dict[str, str] = load_generator().generate()
    return generated


@pytest.mark.parametrize("name", ["health.pyi", "kserve.pyi", "model_config.pyi", "riva_asr.pyi"])
def test_stubs_are_fresh(fresh: dict[str, str], name: str) -> None:
    committed = declarations((STUBS / name).read_text())
    assert len(committed) > 5
    assert committed == declarations(fresh[name]), "run python proto/generate_stubs.py"
