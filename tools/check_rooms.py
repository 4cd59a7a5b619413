"""Checks the house rules that a compiler does not: who may include or import whom.

C++ (csrc/): a folder is a room on a floor. Includes go down; rooms of one floor do not include each
other. No getenv in a room, no alloca, third-party headers only where they belong.
Python (python/headrace/): the same with imports; runtime.py alone imports headrace._ext.

    python tools/check_rooms.py [root]     # one line a finding; exit status 1 when there are any
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FLOORS = {
    "base": 1,
    "core": 2,
    "kernels": 2,
    "transport": 2,
    "rpc": 3,
    "routing": 3,
    "cache": 3,
    "batching": 3,
    "backends": 3,
    "speech": 3,
    "frontend": 4,
    "serving": 4,
    "server": 5,
    "bindings": 6,
}

# Includes that break the rule and why they may.
EXCEPTIONS = {
    ("batching", "backends/backend.h"): "gather writes into the memory that an Instance offers",
    ("speech", "backends/backend.h"): "networks run through an Instance, whatever executes it",
}

# Third-party headers with one home each.
HOMES = {
    "pybind11/": "bindings",
    "Python.h": "bindings",
    "openvino/": "backends",
    "nghttp2/": "transport",
    "openssl/": "transport",
}

# Python rooms, bottom up. Those of one floor do not import each other.
PYTHON_FLOORS = {
    "errors": 1,
    "protocol": 2,
    "datatypes": 2,
    "limits": 2,
    "logs": 2,
    "config": 3,
    "access": 3,
    "admin_socket": 3,
    "runtime": 4,
    "repository": 4,
    "rollout": 4,
    "human": 4,
    "monitoring": 4,
    "guards": 4,
    "audit": 4,
    "optimize": 4,
    "speech": 4,
    "client": 4,
    "cuda_kernels": 4,
    "admin_cli": 5,
    "control": 5,
    "speech_web": 5,
    "grpc": 5,
    "int8": 5,
    "app": 6,
    "doctor": 6,
    "progress": 6,
    "calibrate_cli": 6,
    "feedback_cli": 6,
    "human_cli": 6,
    "load_cli": 6,
    "rollout_cli": 6,
    "rules_cli": 6,
    "speech_cli": 6,
    "transcribe_cli": 7,
    "quantize_cli": 7,
    "build_cli": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 10,
}

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', re.MULTILINE)
_BANNED = {
    "getenv": re.compile(r"\b(?:secure_)?getenv\s*\("),
    "alloca": re.compile(r"\b(?:__builtin_)?alloca\s*\("),
}
_COMMENT_OR_STRING = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL
)


def _blank(text: str, *, strings: bool) -> str:
    """`text` without comments (and string contents), line numbers kept."""

    def replace(match: re.Match[str]) -> str:
        found = match.group()
        if found[0] in "\"'" and not strings:
            return found
        return "\n" * found.count("\n") + " "

    return _COMMENT_OR_STRING.sub(replace, text)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _backend(path: str) -> str | None:
    """The runtime's folder of a path below backends/, None for the room's own files."""
    parts = path.split("/")
    return parts[1] if parts[0] == "backends" and len(parts) > 2 else None


def _check_include(path: str, included: str) -> str | None:
    room = path.split("/")[0]
    if "/" not in included or included.startswith("."):
        return f'include "{included}": name it from csrc, as "room/file.h"'
    target = included.split("/")[0]
    if target not in FLOORS:
        return f'include "{included}": no room of that name'
    if target == room:
        mine, theirs = _backend(path), _backend(included)
        if theirs is not None and theirs != mine:
            return f'include "{included}": a backend does not know another'
        return None
    if (room, included) in EXCEPTIONS:
        return None
    if FLOORS[target] == FLOORS[room]:
        return f'include "{included}": {room}/ and {target}/ share floor {FLOORS[room]}'
    if FLOORS[target] > FLOORS[room]:
        return f'include "{included}": goes up, from floor {FLOORS[room]} to {FLOORS[target]}'
    return None


def check_cpp(csrc: Path) -> Iterator[str]:
    """Findings in csrc/, as "path:line: text"."""
    for file in sorted(csrc.rglob("*")):
        if file.suffix not in (".h", ".cc", ".cuh", ".cu"):
            continue
        path = file.relative_to(csrc).as_posix()
        room = path.split("/")[0]
        where = f"{csrc.name}/{path}"
        if room not in FLOORS or "/" not in path:
            yield f"{where}:1: not in a room (rooms: {', '.join(FLOORS)})"
            continue
        text = file.read_text(encoding="utf-8")
        code = _blank(text, strings=False)
        for match in _INCLUDE.finditer(code):
            quote, included = match.groups()
            line = _line(code, match.start())
            if quote == '"':
                finding = _check_include(path, included)
                if finding:
                    yield f"{where}:{line}: {finding}"
            for prefix, home in HOMES.items():
                if included.startswith(prefix) and room != home:
                    yield f"{where}:{line}: include <{included}>: only {home}/ knows it"
        bare = _blank(text, strings=True)
        for word, pattern in _BANNED.items():
            for match in pattern.finditer(bare):
                yield f"{where}:{_line(bare, match.start())}: {word} has no place in a room"


def _imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything a module imports; `package` is where it lives."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package[: len(package) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            if base == "headrace":
                for alias in node.names:
                    yield node.lineno, f"headrace.{alias.name}"
            else:
                yield node.lineno, base


def check_python(package: Path) -> Iterator[str]:
    """Findings in python/headrace/, as "path:line: text"."""
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        room = inside.parts[0].removesuffix(".py")
        where = f"python/headrace/{inside.as_posix()}"
        if room not in PYTHON_FLOORS:
            yield f"{where}:1: not in a room (rooms: {', '.join(PYTHON_FLOORS)})"
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        except SyntaxError as error:
            yield f"{where}:{error.lineno or 1}: {error.msg}"
            continue
        for line, name in _imports(tree, ["headrace", *inside.parts[:-1]]):
            parts = name.split(".")
            if parts[0] != "headrace" or len(parts) < 2:
                continue
            target = parts[1]
            if target == "_ext":
                if inside.as_posix() != "runtime.py":
                    yield f"{where}:{line}: only runtime.py imports headrace._ext"
                continue
            # `from headrace import __version__`: a name, not a room.
            if target == room or target not in PYTHON_FLOORS:
                continue
            mine, theirs = PYTHON_FLOORS[room], PYTHON_FLOORS[target]
            if theirs == mine:
                yield f"{where}:{line}: import {name}: {room} and {target} share a floor"
            elif theirs > mine:
                yield f"{where}:{line}: import {name}: goes up, from {room} to {target}"


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    findings = [*check_cpp(root / "csrc"), *check_python(root / "python" / "headrace")]
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} finding(s); the rules are in docs/ARCHITECTURE.md")
        return 1
    print("rooms: includes and imports go down only")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
