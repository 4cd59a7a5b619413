"""Every admin method needs a right that docs/RPC_RIGHTS.md names."""

from __future__ import annotations

import re
from pathlib import Path

from headrace import runtime
from headrace.control.admin_service import AdminService

DOC = Path(__file__).resolve().parents[3] / "docs" / "RPC_RIGHTS.md"


def test_the_table_has_every_method() -> None:
    core = runtime.Server(runtime.ServerOptions(host="127.0.0.1", port=0, kserve=False))
    AdminService(None, None).add_to(core)  # type: ignore[arg-type]
    core.start()
    try:
        registered = dict(core.rights())
    finally:
        core.stop(0)
    table = dict(re.findall(r"^\| `(/headrace\S+)` \| (\w+) \|$", DOC.read_text(), re.MULTILINE))
    assert registered == table
    assert "call" not in table.values()
