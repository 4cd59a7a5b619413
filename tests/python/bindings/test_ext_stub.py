"""`_ext.pyi` is reviewed text: it names what the module has, with the same parameters."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace import _ext

# Beside the Python sources, which an editable install leaves where they are.
STUB = ast.parse(Path(headrace.__file__).with_name("_ext.pyi").read_text())


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def functions() -> dict[str, ast.FunctionDef]:
    found = {}
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    found[f"{node.name}.{member.name}"] = member
    return found


def is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)


def resolve(path: str) -> Any:
    value: Any = _ext
    for name in path.split("."):
        value = getattr(value, name)
    return value


def parameters_of(node: ast.FunctionDef) -> tuple[list[str], list[str]]:
    """Positional and keyword-only names, without self."""
    positional = [a.arg for a in node.args.posonlyargs + node.args.args]
    return [n for n in positional if n != "self"], [a.arg for a in node.args.kwonlyargs]


def parameters_of_extension(path: str) -> tuple[list[str], list[str]]:
    """The same out of pybind11's signature line, the docstring's first."""
    signature = resolve(path).__doc__.splitlines()[0]
    inside = re.sub(r"\[[^\[\]]*(\[[^\[\]]*\][^\[\]]*)*\]", "", signature)  # types' own commas
    inside = inside[inside.index("(") + 1 : inside.rindex(")")]
    positional: list[str] = []
    keyword: list[str] = []
    into = positional
    for part in inside.split(", "):
        name = part.split(":")[0].strip()
        if name == "*":
            into = keyword
        elif name not in ("", "self") and not re.fullmatch(r"arg\d+", name):
            into.append(name)
    return positional, keyword


def test_the_stub_names_what_the_module_has() -> None:
    declared = set()
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            declared.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared.add(node.target.id)
    assert public(declared) == public(vars(_ext))
    assert isinstance(_ext.__version__, str)


@pytest.mark.parametrize(
    "node", [n for n in STUB.body if isinstance(n, ast.ClassDef)], ids=lambda n: n.name
)
def test_the_stub_names_what_each_class_has(node: ast.ClassDef) -> None:
    declared = {m.name for m in node.body if isinstance(m, ast.FunctionDef)}
    attributes = {  # that may be set too
        m.target.id
        for m in node.body
        if isinstance(m, ast.AnnAssign) and isinstance(m.target, ast.Name)
    }
    assert public(declared | attributes) == public(vars(getattr(_ext, node.name)))
    for name in attributes:
        assert vars(getattr(_ext, node.name))[name].fset is not None, name
    for member in node.body:
        if isinstance(member, ast.FunctionDef):
            actual = isinstance(vars(getattr(_ext, node.name)).get(member.name, None), property)
            assert actual == is_property(member), member.name


@pytest.mark.parametrize(
    "path", sorted(path for path, node in functions().items() if not is_property(node))
)
def test_the_stub_has_the_modules_parameters(path: str) -> None:
    node = functions()[path]
    assert parameters_of(node) == parameters_of_extension(path)
