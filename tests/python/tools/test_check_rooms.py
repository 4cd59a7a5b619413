"""tools/check_rooms.py finds each kind of breach, and nothing in a clean tree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_rooms", ROOT / "tools" / "check_rooms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_rooms = _load()


def _cpp(tmp_path: Path, path: str, text: str) -> list[str]:
    file = tmp_path / "csrc" / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return list(check_rooms.check_cpp(tmp_path / "csrc"))


def _python(tmp_path: Path, path: str, text: str) -> list[str]:
    file = tmp_path / "headrace" / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return list(check_rooms.check_python(tmp_path / "headrace"))


@pytest.mark.parametrize(
    ("path", "text", "finding"),
    [
        ("core/a.h", '#include "serving/reaper.h"\n', "goes up, from floor 2 to 4"),
        ("core/a.h", '\n#include "transport/stream.h"\n', "csrc/core/a.h:2: "),
        ("routing/a.h", '#include "batching/batcher.h"\n', "share floor 3"),
        ("core/a.h", '#include "util/a.h"\n', "no room of that name"),
        ("core/a.h", '#include "a.h"\n', "name it from csrc"),
        ("core/a.h", '#include "../base/a.h"\n', "name it from csrc"),
        ("backends/openvino/a.cc", '#include "backends/callback/b.h"\n', "does not know another"),
        ("backends/a.cc", '#include "backends/callback/b.h"\n', "does not know another"),
        ("server/a.cc", "#include <pybind11/pybind11.h>\n", "only bindings/ knows it"),
        ("serving/a.cc", "#include <openvino/openvino.hpp>\n", "only backends/ knows it"),
        ("base/a.cc", 'auto* x = std::getenv("X");\n', "getenv has no place"),
        ("base/a.cc", "void* p = alloca(3);\n", "alloca has no place"),
        ("util/a.cc", "\n", "not in a room"),
        ("a.cc", "\n", "not in a room"),
    ],
)
def test_a_breach_in_cpp_is_found(tmp_path: Path, path: str, text: str, finding: str) -> None:
    findings = _cpp(tmp_path, path, text)
    assert len(findings) == 1
    assert finding in findings[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("serving/a.cc", '#include <vector>\n#include "core/request.h"\n#include "base/a.h"\n'),
        ("backends/openvino/a.cc", '#include "backends/backend.h"\n#include <openvino/o.hpp>\n'),
        ("backends/openvino/a.cc", '#include "backends/openvino/a.h"\n'),
        ("core/a.h", '// #include "serving/a.h"\n/* #include "serving/a.h"\n*/\n'),
        ("core/a.cc", 'auto x = "getenv(";  // getenv(3) is banned, so is alloca(1)\n'),
        ("core/a.cc", "int my_getenv_count();\nint allocate(int);\n"),
    ],
)
def test_clean_cpp_has_no_findings(tmp_path: Path, path: str, text: str) -> None:
    assert _cpp(tmp_path, path, text) == []


@pytest.mark.parametrize(
    ("path", "text", "finding"),
    [
        ("control/a.py", "from headrace._ext import Server\n", "only runtime.py imports"),
        ("control/a.py", "from headrace import _ext\n", "only runtime.py imports"),
        ("control/a.py", "from .. import _ext\n", "only runtime.py imports"),
        ("repository/a.py", "import headrace.monitoring.metrics\n", "share a floor"),
        ("repository/a.py", "from ..monitoring import metrics\n", "share a floor"),
        ("config.py", "def f() -> None:\n    from headrace.control import load\n", "goes up"),
        ("helpers/a.py", "\n", "not in a room"),
        ("control/a.py", "def f(:\n", "headrace/control/a.py:1: "),
    ],
)
def test_a_breach_in_python_is_found(tmp_path: Path, path: str, text: str, finding: str) -> None:
    findings = _python(tmp_path, path, text)
    assert len(findings) == 1
    assert finding in findings[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("runtime.py", "from headrace import _ext, errors\n"),
        ("control/a.py", "from headrace.repository import find\nfrom . import b\nimport numpy\n"),
        ("repository/a.py", "from ..errors import NotFoundError\nfrom .layout import scan\n"),
        ("client/a.py", "from headrace import __version__\n"),
    ],
)
def test_clean_python_has_no_findings(tmp_path: Path, path: str, text: str) -> None:
    assert _python(tmp_path, path, text) == []


def test_this_checkout_keeps_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    status = check_rooms.main([str(ROOT)])
    assert status == 0, capsys.readouterr().out
