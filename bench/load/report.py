"""Medians, ratios, the table, and what there is to know of the machine."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

from rows import COLUMNS, value_of

__all__ = ["best", "machine", "medians", "ratios", "ratios_of", "table"]

Round = dict[str, dict[str, Any]]  # server -> results of Driver.measure

# Rates are compared as ours / theirs, times as theirs / ours: above 1 is always better.
RATIO_COLUMNS = (
    "req/s",
    "h2load req/s",
    "live req/s",
    "p50 1 call us",
    "p99 1 call us",
    "cpu us/call",
)
BASES = ("triton", "triton-cached", "pytriton", "grpcio", "grpcio-aio", "nghttp2-echo")


def _output(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=cwd)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def machine(root: Path, grpcio_python: Path, triton_venv: Path | None) -> dict[str, Any]:
    """CPU, cores, load, kernel and versions; no paths."""
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    versions = {"python": platform.python_version()}
    version_of = "import importlib.metadata as m; print(m.version('{}'))"
    versions["grpcio"] = _output(str(grpcio_python), "-c", version_of.format("grpcio"))
    if triton_venv is not None:
        python = str(triton_venv / "bin" / "python")
        versions["nvidia-pytriton"] = _output(python, "-c", version_of.format("nvidia-pytriton"))
        versions["triton's python"] = _output(
            python, "-c", "import platform as p; print(p.python_version())"
        )
    found = re.search(r"nghttp2/([\d.]+)", _output("h2load", "--version"))
    versions["nghttp2 (h2load)"] = found[1] if found else ""
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "load_average_before": [round(x, 2) for x in os.getloadavg()],
        "versions": {name: version for name, version in versions.items() if version},
        "commit": _output("git", "rev-parse", "HEAD", cwd=root),
        "uncommitted_changes": bool(_output("git", "status", "--porcelain", cwd=root)),
    }


def medians(rounds: list[Round]) -> dict[str, dict[str, float]]:
    """server -> column -> median over the rounds that have the figure."""
    out: dict[str, dict[str, float]] = {}
    for name in {name: None for round_ in rounds for name in round_}:
        row: dict[str, float] = {}
        for column in COLUMNS:
            values = [value_of(round_[name], column) for round_ in rounds if name in round_]
            present = [value for value in values if value is not None]
            if present:
                row[column] = statistics.median(present)
        out[name] = row
    return out


def best(rounds: list[Round]) -> dict[str, dict[str, float]]:
    """server -> column -> the best round. Other work on the machine only ever makes figures worse,
    so on a machine that is not quiet this is the steadier estimate of what a server can do."""
    out: dict[str, dict[str, float]] = {}
    for name in medians(rounds):
        row: dict[str, float] = {}
        for column in RATIO_COLUMNS:
            values = [value_of(round_.get(name, {}), column) for round_ in rounds]
            present = [value for value in values if value is not None]
            if present:
                row[column] = max(present) if "req/s" in column else min(present)
        out[name] = row
    return out


def ratios(rounds: list[Round], ours: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """ours -> base -> column -> median of the rounds' ratios; above 1 is better for ours.

    Both sides of a ratio come from one round, minutes apart, so that a machine whose speed drifts
    moves both.
    """
    tables = []
    for round_ in rounds:
        one = {name: _row(results) for name, results in round_.items()}
        tables.append(ratios_of(one, ours))
    out: dict[str, dict[str, dict[str, float]]] = {}
    for our in ours:
        for base in BASES:
            row: dict[str, float] = {}
            for column in RATIO_COLUMNS:
                cells = [table.get(our, {}).get(base, {}).get(column) for table in tables]
                present = [cell for cell in cells if cell is not None]
                if present:
                    row[column] = statistics.median(present)
            if row:
                out.setdefault(our, {})[base] = row
    return out


def ratios_of(
    figures: dict[str, dict[str, float]], ours: list[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """ours -> base -> column -> ratio of two figures of one table."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for our in ours:
        for base in BASES:
            row: dict[str, float] = {}
            for column in RATIO_COLUMNS:
                mine = figures.get(our, {}).get(column)
                theirs = figures.get(base, {}).get(column)
                if mine and theirs and base != our:
                    row[column] = mine / theirs if "req/s" in column else theirs / mine
            if row:
                out.setdefault(our, {})[base] = row
    return out


def _row(results: dict[str, Any]) -> dict[str, float]:
    cells = {column: value_of(results, column) for column in RATIO_COLUMNS}
    return {column: cell for column, cell in cells.items() if cell is not None}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _grid(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def table(
    middle: dict[str, dict[str, float]],
    top: dict[str, dict[str, float]],
    ratio: dict[str, dict[str, dict[str, float]]],
    top_ratio: dict[str, dict[str, dict[str, float]]],
) -> str:
    """Medians, best rounds, and the ratios of each, as text."""
    parts = [
        _figures("median of the rounds", middle, COLUMNS),
        _figures("best round", top, RATIO_COLUMNS),
        _ratios("median ratio", ratio),
        _ratios("ratio of best rounds", top_ratio),
    ]
    return "\n\n".join(part for part in parts if part)


def _figures(title: str, figures: dict[str, dict[str, float]], columns: tuple[str, ...]) -> str:
    rows = [[title, *columns]]
    for name, row in figures.items():
        rows.append([name, *(_number(row.get(column)) for column in columns)])
    return _grid(rows)


def _ratios(title: str, ratio: dict[str, dict[str, dict[str, float]]]) -> str:
    rows = [[title, *RATIO_COLUMNS]]
    for our, bases in ratio.items():
        for base, row in bases.items():
            cells = [f"x{row[c]:.2f}" if c in row else "-" for c in RATIO_COLUMNS]
            rows.append([f"{our} / {base}", *cells])
    return _grid(rows) if len(rows) > 1 else ""
