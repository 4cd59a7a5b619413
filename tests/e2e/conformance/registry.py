"""The rows of docs/CONFORMANCE.md: what is required, by whom, and what tests it.

    @case(SHOULD, "PROTOCOL-HTTP2 Timeout", "a malformed grpc-timeout ends the call", values=["1x"])
    def timeout_malformed(server: Target, value: str) -> None: ...

A case without `values` is one test, otherwise one a value. A row tested elsewhere names that test.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MUST, SHOULD, MAY = "MUST", "SHOULD", "MAY"
ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs" / "CONFORMANCE.md"
MODULES = ("http2", "hpack_rules", "grpc_requests", "grpc_responses", "grpc_streams", "elsewhere")


@dataclass(frozen=True)
class Case:
    name: str
    level: str
    source: str
    text: str
    run: Callable[..., None] | None = None
    values: Mapping[str, Any] | None = None
    where: str = ""  # "path::test", for rows tested elsewhere
    deviation: str = ""  # what is done instead; that is then what the case tests

    @property
    def ids(self) -> list[str]:
        return [f"{self.name}[{key}]" for key in self.values] if self.values else [self.name]


CASES: dict[str, Case] = {}


def add(made: Case) -> None:
    assert made.name not in CASES, f"two cases are named {made.name}"
    CASES[made.name] = made


def case(
    level: str,
    source: str,
    text: str,
    *,
    values: Mapping[str, Any] | Sequence[Any] | None = None,
    deviation: str = "",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    named = values if isinstance(values, Mapping) or values is None else {str(v): v for v in values}

    def register(run: Callable[..., None]) -> Callable[..., None]:
        add(Case(run.__name__, level, source, text, run, named, deviation=deviation))
        return run

    return register


def elsewhere(name: str, level: str, source: str, text: str, where: str) -> None:
    add(Case(name, level, source, text, where=where))


def load() -> dict[str, Case]:
    for module in MODULES:
        importlib.import_module(f"conformance.{module}")
    return CASES


def exists(where: str) -> bool:
    """Whether "path::test" is there: a Python function, or a TEST_CASE of that text."""
    path, _, test = where.partition("::")
    file = ROOT / path
    if not file.exists():
        return False
    text = file.read_text()
    if path.endswith(".py"):
        return re.search(rf"^def {re.escape(test)}\(", text, re.MULTILINE) is not None
    return f'TEST_CASE("{test}"' in text


_HEAD = """# Conformance

What RFC 9113 (HTTP/2), RFC 7541 (HPACK) and gRPC's own documents ask of a server, and the test
that holds this server to it. Most are cases of `tests/e2e/conformance/`, which speaks to a running
server with frames of its own making: `pytest tests/e2e/conformance -k NAME`. This page is written
from the cases (`python -m conformance.document` in `tests/e2e`), and a test compares the two.
"""


def sections() -> Iterator[tuple[str, list[Case]]]:
    by_source: dict[str, list[Case]] = {}
    for one in CASES.values():
        by_source.setdefault(one.source.partition(" ")[0], []).append(one)
    titles = {
        "PROTOCOL-HTTP2": "gRPC over HTTP/2 (PROTOCOL-HTTP2.md)",
        "compression": "Compression (compression.md)",
        "statuscodes": "Status codes (statuscodes.md, status_ordering.md)",
        "keepalive": "Keepalive and connection management (keepalive.md, A8, A9)",
        "services": "Health and reflection (health-checking.md, server-reflection.md)",
        "9113": "HTTP/2 (RFC 9113)",
        "7541": "HPACK (RFC 7541)",
    }
    assert set(by_source) <= set(titles), set(by_source) - set(titles)
    for source, title in titles.items():
        if source in by_source:
            yield title, by_source[source]


def document() -> str:
    out = [_HEAD]
    counted = [c for c in CASES.values() if not c.deviation]
    rows = {level: sum(c.level == level for c in counted) for level in (MUST, SHOULD, MAY)}
    deviations = sum(bool(c.deviation) for c in CASES.values())
    out.append(
        f"{rows[MUST]} MUST, {rows[SHOULD]} SHOULD and {rows[MAY]} MAY rows hold"
        f"; {deviations} deviate, which are marked.\n"
    )
    for title, cases in sections():
        out.append(f"## {title}\n\n| requirement | section | level | test |\n|--|--|--|--|")
        for one in cases:
            section = one.source.partition(" ")[2]
            test = f"`{one.where or one.name}`"
            if one.values:
                test += f" x {len(one.values)}"
            if one.deviation:
                test += f" (deviates: {one.deviation})"
            out.append(f"| {one.text} | {section} | {one.level} | {test} |")
        out.append("")
    return "\n".join(out)
