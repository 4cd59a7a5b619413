"""docs/CONFIGURATION.md names every flag and every metric."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from headrace.config import ServerConfig
from headrace.monitoring import exporter

DOC = Path(__file__).resolve().parents[2] / "docs" / "CONFIGURATION.md"


def test_every_flag_is_documented_with_its_default() -> None:
    text = DOC.read_text()
    for field in fields(ServerConfig):
        flag = "--" + field.name.replace("_", "-")
        (row,) = re.findall(rf"^\| `{flag}(?![a-z-]).*$", text, re.MULTILINE)
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            default = field.default
            assert f"| {default if isinstance(default, int) else f'{default:g}'} |" in row


def test_every_metric_is_documented() -> None:
    text = DOC.read_text()
    source = Path(exporter.__file__).read_text()
    for name in set(re.findall(r'"((?:nv|headrace)_[a-z_]+)"', source)):
        assert f"`{name}" in text, name
