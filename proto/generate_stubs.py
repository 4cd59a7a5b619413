"""Writes python/headrace/protocol/*.pyi, the types of the messages in proto/headrace/.

    python proto/generate_stubs.py          # needs grpcio-tools and ruff

Run it after changing a .proto file; a test compares the committed stubs with fresh ones.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
STUBS = PROTO_ROOT.parent / "python" / "headrace" / "protocol"
NAMES = ("admin", "health", "kserve", "model_config", "riva_asr", "riva_common")


def _polish(text: str) -> str:
    """Our module names, and what mypy --strict asks of protoc's stubs: no bare types."""
    text = re.sub(r"from headrace import (\w+)_pb2", r"from headrace.protocol import \1", text)
    text = re.sub(r"\b_Mapping\b(?!\[)", "_Mapping[str, _Any]", text)
    text = text.replace("Mapping as _Mapping[str, _Any]", "Mapping as _Mapping")
    text = text.replace("**kwargs)", "**kwargs: _Any)")
    text = text.replace("from typing import ", "from typing import Any as _Any, ", 1)
    return f"# ruff: noqa\n# Made by proto/generate_stubs.py: do not edit.\n{text}"


def generate() -> dict[str, str]:
    """{file name: text}, before formatting."""
    with tempfile.TemporaryDirectory() as out:
        protos = [f"headrace/{name}.proto" for name in NAMES]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO_ROOT}", f"--pyi_out={out}"]
        subprocess.run([*command, *protos], check=True)
        texts = {f"{n}.pyi": Path(out, "headrace", f"{n}_pb2.pyi").read_text() for n in NAMES}
    return {name: _polish(text) for name, text in texts.items()}


def main() -> None:
    for name, text in generate().items():
        path = STUBS / name
        path.write_text(text)
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(path)], check=True)


if __name__ == "__main__":
    main()
