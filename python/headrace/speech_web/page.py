"""The page's headers: what it may load is said by digests of its own text."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

__all__ = ["page_of"]


def page_of(path: Path) -> tuple[dict[str, str], bytes]:
    """(headers, body)."""
    page = path.read_text(encoding="utf-8")

    def digests(tag: str) -> str:
        blocks: list[str] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() for b in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in hashes)

    policy = (
        f"default-src 'none'; script-src 'self' {digests('script')}; "
        f"style-src {digests('style')}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return (
        {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy,
            "Permissions-Policy": "microphone=(self)",
        },
        page.encode(),
    )
