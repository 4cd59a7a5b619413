"""The columns of the front-end table and where each figure stands in a round's results."""

from __future__ import annotations

from typing import Any

__all__ = ["COLUMNS", "value_of"]

_PATHS: dict[str, tuple[str, ...]] = {
    "req/s": ("full", "requests_per_s"),
    "h2load req/s": ("h2load", "requests_per_s"),
    "live req/s": ("live", "requests_per_s"),
    "p50 1 call us": ("single", "latency_us", "p50"),
    "p99 1 call us": ("single", "latency_us", "p99"),
    "cpu us/call": ("full", "server", "cpu_us_per_call"),
    "cpu us/call at 1": ("single", "server", "cpu_us_per_call"),
    "open p50 us": ("open_common", "latency_us", "p50"),
    "open p99 us": ("open_common", "latency_us", "p99"),
    "half p50 us": ("open_half", "latency_us", "p50"),
    "half p99 us": ("open_half", "latency_us", "p99"),
    "rss MiB": ("full", "server", "rss_mib"),
    "others' cores": ("full", "other_cores"),
    "errors": (),
}
COLUMNS = tuple(_PATHS)


def value_of(results: dict[str, Any], column: str) -> float | None:
    """A figure of one round; None when it was not measured.

    "errors" counts wrong answers, dropped and unanswered calls of all steps, and a failed step as
    one; h2load's are not in it.
    """
    if not results:
        return None
    if column == "errors":
        steps = [step for name, step in results.items() if name != "h2load"]
        return float(sum(_errors(step) for step in steps if isinstance(step, dict)))
    at: Any = results
    for key in _PATHS[column]:
        if not isinstance(at, dict) or key not in at:
            return None
        at = at[key]
    return float(at)


def _errors(step: dict[str, Any]) -> int:
    if "failed" in step:
        return 1
    return int(step["wrong"] + step["open"]["dropped"] + step["open"]["unanswered"])
