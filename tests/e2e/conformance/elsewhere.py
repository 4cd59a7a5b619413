"""Rows that need more than frames, and where they are tested."""

from __future__ import annotations

from conformance.registry import MUST, elsewhere

elsewhere(
    "readiness",
    MUST,
    "services Health",
    "health follows readiness",
    "tests/e2e/test_wire.py::test_health",
)
